"""What an operator decides about a lane that has stopped. Each act raises the lane's epoch: its owner, if there is one,
takes it over again and finds the decision."""

from dataclasses import dataclass
from typing import Literal

from aiokafka import AIOKafkaConsumer, TopicPartition

from worker.database import Connection
from worker.errors import Fatal
from worker.input_log import LogEnds
from worker.settings import Settings
from worker.topics import check_topics

Decision = Literal["skip", "restart", "accept"]


@dataclass(frozen=True, slots=True)
class Decided:
    """What an act has done, in words."""

    lane: int
    detail: str


async def log_ends(settings: Settings, tp: TopicPartition) -> LogEnds:
    """Raises Fatal where there is no such partition, KafkaError where Kafka is away."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers, isolation_level="read_committed"
    )
    await consumer.start()
    try:
        partitions = await consumer._client._wait_on_metadata(tp.topic)
        if tp.partition not in partitions:
            raise Fatal(
                f"{tp.topic}/{tp.partition}: expected one of its partitions, {min(partitions)} to {max(partitions)}"
            )
        first, end = await consumer.beginning_offsets([tp]), await consumer.end_offsets([tp])
        return LogEnds(first[tp], end[tp])
    finally:
        await consumer.stop()


async def decide(
    connection: Connection, settings: Settings, tp: TopicPartition, decision: Decision, by: str, why: str
) -> Decided:
    """Raises Fatal where the decision doesn't fit the lane's state."""
    name = f"{tp.topic}/{tp.partition}"
    ends = await log_ends(settings, tp)
    cluster, _ = await check_topics(settings)
    async with connection.transaction():
        row = await connection.fetchrow(
            """SELECT * FROM measurement_updates.lanes
               WHERE topic = $1 AND partition = $2 AND retired_at IS NULL FOR UPDATE""",
            *tp,
        )
        if row is None and decision != "restart":
            raise Fatal(
                f"{name} has no lane in this database yet: expected one that a worker has taken over before"
            )
        if decision == "skip":
            if row["next_to_apply"] >= ends.first:
                raise Fatal(
                    f"{name} misses nothing: it is applied up to {row['next_to_apply']}, the log begins at {ends.first}"
                )
            lane = row["lane"]
            detail = f"records {row['next_to_apply']} to {ends.first - 1}, taken by retention, are given up"
            await connection.execute(
                """UPDATE measurement_updates.lanes
                   SET next_to_apply = $2, last_offset = NULL, last_timestamp = NULL, last_digest = NULL,
                       epoch = epoch + 1
                   WHERE lane = $1""",
                lane,
                ends.first,
            )
        elif decision == "accept":
            lane = row["lane"]
            until = 2**62
            detail = "arrivals ahead of the database's clock are accepted from now on"
            latest = await _latest_in_log(settings, tp)
            if latest is not None:
                until = latest
                detail = (
                    f"arrivals up to {latest} ms are accepted though the database's clock isn't there yet"
                )
            await connection.execute(
                "UPDATE measurement_updates.lanes SET accepted_until = $2, epoch = epoch + 1 WHERE lane = $1",
                lane,
                until,
            )
        else:
            if row is not None:
                await connection.execute(
                    "UPDATE measurement_updates.lanes SET retired_at = clock_timestamp(), epoch = epoch + 1 WHERE lane = $1",
                    row["lane"],
                )
            lane = await connection.fetchval(
                """INSERT INTO measurement_updates.lanes
                       (topic, partition, cluster, consumer_group, next_to_apply, next_to_answer)
                   VALUES ($1, $2, $3, $4, $5, $5) RETURNING lane""",
                *tp,
                cluster,
                settings.worker_group,
                ends.first,
            )
            detail = f"applied as a new log, from record {ends.first} on"
        await connection.execute(
            """INSERT INTO measurement_updates.lane_decisions (lane, decision, decided_by, why, detail)
               VALUES ($1, $2, $3, $4, $5)""",
            lane,
            decision,
            by,
            why,
            detail,
        )
    return Decided(lane, detail)


async def _latest_in_log(settings: Settings, tp: TopicPartition) -> int | None:
    """Timestamp of the last record in the log, in ms."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        consumer.assign([tp])
        end = (await consumer.end_offsets([tp]))[tp]
        if end == 0:
            return None
        consumer.seek(tp, max(0, end - 20))
        records = (await consumer.getmany(tp, timeout_ms=5_000)).get(tp, [])
        return max((record.timestamp for record in records), default=None)
    finally:
        await consumer.stop()
