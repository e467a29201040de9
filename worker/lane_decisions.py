"""What an operator decides about a lane that has stopped. Each act raises the lane's epoch: its owner, if there is one,
takes it over again and finds the decision."""

import asyncio
from dataclasses import dataclass
from typing import Literal

from aiokafka import AIOKafkaConsumer, TopicPartition

from worker.connecting import stop_client
from worker.consumer import LogConsumer
from worker.database import Connection
from worker.errors import Fatal
from worker.input_log import LogEnds
from worker.settings import Settings
from worker.sql import queries
from worker.topics import check_topics

Decision = Literal["skip", "restart", "accept"]

_QUIET_SECONDS = 10.0
"""Without a record, where there has to be one: then Kafka is away."""


@dataclass(frozen=True, slots=True)
class DecisionResult:
    """What an act has done, in words."""

    lane: int
    detail: str


async def log_ends(settings: Settings, tp: TopicPartition) -> LogEnds:
    """Raises Fatal where there is no such partition, KafkaError where Kafka is away."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers, isolation_level="read_committed"
    )
    try:
        await consumer.start()
        partitions = await consumer._client._wait_on_metadata(tp.topic)
        if tp.partition not in partitions:
            raise Fatal(
                f"{tp.topic}/{tp.partition}: expected one of its partitions, {min(partitions)} to {max(partitions)}"
            )
        first, end = await consumer.beginning_offsets([tp]), await consumer.end_offsets([tp])
        return LogEnds(first[tp], end[tp])
    finally:
        await stop_client(consumer)


async def decide(
    connection: Connection, settings: Settings, tp: TopicPartition, decision: Decision, by: str, why: str
) -> DecisionResult:
    """Raises Fatal where the decision doesn't fit the lane's state."""
    sql = queries()
    name = f"{tp.topic}/{tp.partition}"
    cluster, _ = await check_topics(settings)
    ends = await log_ends(settings, tp)
    async with connection.transaction():
        row = await connection.fetchrow(sql["lock_lane"], *tp)
        if row is None and decision != "restart":
            raise Fatal(
                f"{name} has no lane in this database yet: expected one that a worker has taken over before"
            )
        lane = None if row is None else row["lane"]
        if decision == "skip":
            if row["next_to_apply"] >= ends.first:
                raise Fatal(
                    f"{name} misses nothing: it is applied up to {row['next_to_apply']}, the log begins at {ends.first}"
                )
            detail = f"records {row['next_to_apply']} to {ends.first - 1}, taken by retention, are given up"
            await connection.execute(sql["skip_to"], lane, ends.first)
        elif decision == "accept":
            begin = max(row["next_to_apply"], ends.first)
            latest = max(row["latest_arrival"], await _latest_in_log(settings, tp, begin, ends.end))
            if not latest:
                raise Fatal(f"{name}: expected a record to accept, found none in the log")
            detail = f"arrivals up to {latest} ms are accepted though the database's clock isn't there yet"
            await connection.execute(sql["accept_until"], lane, latest)
        else:
            await connection.execute(sql["retire_lane"], lane)
            await connection.execute(sql["begin_lane"], *tp, cluster, settings.worker_group, ends.first)
            lane = (await connection.fetchrow(sql["find_lane"], *tp))["lane"]
            detail = f"applied as a new log, from record {ends.first} on"
        await connection.execute(sql["keep_decision"], lane, decision, by, why, detail)
    assert lane is not None
    return DecisionResult(lane, detail)


async def _latest_in_log(settings: Settings, tp: TopicPartition, begin: int, end: int) -> int:
    """The latest timestamp from `begin` on, in ms, 0 where there is no record. Not that of the last record: that one is
    stamped right again where the broker's clock was mended first. Raises KafkaError, TimeoutError."""
    if begin >= end:
        return 0
    consumer = LogConsumer(
        bootstrap_servers=settings.bootstrap_servers,
        isolation_level="read_committed",
        auto_offset_reset="none",
        enable_auto_commit=False,
    )
    latest = 0
    try:
        async with asyncio.timeout(_QUIET_SECONDS) as quiet:
            await consumer.start()
            consumer.assign([tp])
            consumer.seek(tp, begin)
            while begin < end:
                for fetched in (await consumer.getmany()).get(tp, []):
                    if fetched.error is not None:
                        raise fetched.error
                    begin = fetched.next_offset
                    # CreateTime is a producer's clock: it counts for nothing
                    stamps = [record.timestamp for record in fetched.records if record.timestamp_type == 1]
                    latest = max([latest, *stamps])
                    quiet.reschedule(asyncio.get_running_loop().time() + _QUIET_SECONDS)
    finally:
        await stop_client(consumer)
    return latest
