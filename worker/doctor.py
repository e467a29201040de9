"""Everything a deployment needs, looked at one by one: what is wrong, and how to mend it. Nothing is written.

A server that is away fails its check, and what would have been asked of it isn't looked at.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from worker.apply import MAX_CLOCK_LEAD
from worker.checks import Area, Check, duration
from worker.connecting import stop_client
from worker.consumer import LogConsumer
from worker.database import POSTGRES_ERRORS, Connection, close, connect, describe
from worker.doctor_kafka import kafka_checks, topic_checks
from worker.doctor_postgres import postgres_checks
from worker.errors import DependencyAway, LaneStopped
from worker.input_log import InputLog
from worker.kafka_state import KafkaLook, KafkaState, bounded, kafka_look
from worker.settings import Settings
from worker.sql import queries
from worker.takeover import check_log
from worker.topics import TopicState, check_topics

_SKEW_WORTH_A_WORD = 1_000
"""Milliseconds."""
_LOOK_BACK = 50
"""Records at the log's end, of which the last one's time is looked at; the very last may be a transaction's marker."""
_LISTEN_SECONDS = 1.5


@dataclass(frozen=True, slots=True)
class _Kafka:
    look: KafkaLook
    state: KafkaState
    topics: Sequence[TopicState]


async def examine(settings: Settings) -> AsyncGenerator[Check, None]:
    """Each check as soon as it is known. Raises SettingsError, Fatal (a DSN that is none)."""
    async with AsyncExitStack() as stack:
        kafka: _Kafka | None = None
        connection: Connection | None = None
        try:
            look = await stack.enter_async_context(kafka_look(settings))
            kafka = _Kafka(look, await look.state(), (await check_topics(settings))[1])
        except (DependencyAway, KafkaError, OSError, TimeoutError) as error:
            mend = "start it, or correct KAFKA_BOOTSTRAP_SERVERS; a firewall, or a broker's advertised.listeners?"
            yield Check("kafka", "reachable", "failed", describe(error), mend)
        if kafka is not None:
            async for check in _answered("kafka", kafka_checks(settings, kafka.look, kafka.state)):
                yield check
            async for check in _answered("topics", topic_checks(settings, kafka.look, kafka.topics)):
                yield check
        try:
            connection = await connect(settings.dsn, application="measurement-updates doctor")
            stack.push_async_callback(close, connection)
        except DependencyAway as error:
            mend = "start it, or correct DATABASE_URL (host, user, password); a firewall, or pg_hba.conf?"
            yield Check("postgres", "reachable", "failed", str(error), mend)
        if connection is not None:
            state = None if kafka is None else kafka.state
            async for check in _answered("postgres", postgres_checks(settings, connection, state)):
                yield check
            async for check in _answered("clocks", _clock_checks(settings, connection, kafka)):
                yield check
            if state is not None:
                async for check in _answered("lanes", _lane_checks(settings, connection, state)):
                    yield check


async def _answered(area: Area, checks: AsyncIterator[Check]) -> AsyncGenerator[Check, None]:
    """As far as the server answers."""
    try:
        async for check in checks:
            yield check
    except asyncpg.InsufficientPrivilegeError:
        pass  # said among the rights: what they don't let through can't be looked at
    except (DependencyAway, KafkaError, OSError, TimeoutError, *POSTGRES_ERRORS) as error:
        yield Check(area, "answers", "failed", f"it stopped answering: {describe(error)}", "try again")


# Lanes ------------------------------------------------------------------------------------------------------


async def _lane_checks(
    settings: Settings, connection: Connection, kafka: KafkaState
) -> AsyncGenerator[Check, None]:
    topic = settings.worker_updates_topic
    if not await connection.fetchval("SELECT to_regclass('measurement_updates.lanes') IS NOT NULL"):
        return
    rows = await connection.fetch(queries("doctor.sql")["every_present_lane"], topic)
    if not rows:
        yield Check("lanes", "lanes", "ok", "none yet: no worker has taken a partition over in this database")
        return
    faults = 0
    consumer = LogConsumer(
        bootstrap_servers=settings.bootstrap_servers,
        isolation_level="read_committed",
        enable_auto_commit=False,
    )
    try:
        async with bounded(settings):
            await consumer.start()
        await asyncio.sleep(
            0
        )  # aiokafka's tasks must have begun before they can be ended, should nothing be asked
        log = InputLog(consumer, settings.bootstrap_servers, settings.worker_group)
        for row in rows:
            check = await _lane_check(row, kafka, log, settings)
            faults += check.verdict == "failed"
            if check.verdict != "ok":
                yield check
    finally:
        await stop_client(consumer)
    if not faults:
        yield Check(
            "lanes",
            "lanes",
            "ok",
            f"{len(rows)}, and their logs are those that were applied: none has stopped",
        )


async def _lane_check(row: "asyncpg.Record", kafka: KafkaState, log: InputLog, settings: Settings) -> Check:
    partition = row["partition"]
    name = f"partition {partition}"
    found, ours = (row["cluster"], row["consumer_group"]), (kafka.cluster, settings.worker_group)
    if found != ours:
        return Check(
            "lanes", name, "failed",
            f"it is applied from Kafka cluster {found[0]} in group {found[1]}, expected {ours[0]} and {ours[1]}",
            "point KAFKA_BOOTSTRAP_SERVERS, WORKER_GROUP and DATABASE_URL at what belongs together, or give the old log"
            f" up: measurement-updates lanes restart {settings.worker_updates_topic}/{partition} --why …",
        )  # fmt: skip
    if partition not in kafka.logs:
        return Check(
            "lanes", name, "warning", "the topic has no such partition (any more)",
            "was the topic made anew with fewer? measurement-updates topics --check",
        )  # fmt: skip
    try:
        await check_log(TopicPartition(settings.worker_updates_topic, partition), row, log)
    except LaneStopped as stopped:
        return Check(
            "lanes", name, "failed", str(stopped), "decide, as it says: measurement-updates lanes --help"
        )
    if row.get("state") == "stopped":
        return Check(
            "lanes", name, "failed", f"it has stopped: {row['waits_for']}",
            "decide, as it says: measurement-updates lanes --help",
        )  # fmt: skip
    return Check("lanes", name, "ok", "")


# Clocks -----------------------------------------------------------------------------------------------------


async def _clock_checks(
    settings: Settings, connection: Connection, kafka: _Kafka | None
) -> AsyncGenerator[Check, None]:
    skew, uncertain = await _host_skew(connection)
    said = f"this host's is {skew:+.0f} ms from the database's (± {uncertain:.0f} ms)"
    if abs(skew) - uncertain > _SKEW_WORTH_A_WORD:
        yield Check(
            "clocks", "host", "warning", said, "run a time service (NTP) on both; workers don't use their own"
        )
    else:
        yield Check("clocks", "host", "ok", said)
    if kafka is not None and kafka.state.logs:
        try:
            yield await _broker_clock(settings, connection, kafka.state)
        except (DependencyAway, KafkaError, OSError, TimeoutError) as error:
            yield Check("clocks", "broker", "ok", f"not measured: {describe(error)}")


async def _host_skew(connection: Connection) -> tuple[float, float]:
    """This host's clock before the database's, and how far that may be wrong; in ms. The quickest of some."""
    samples = []
    for _ in range(5):
        before = time.time()
        there = (await connection.fetchval("SELECT clock_timestamp()")).timestamp()
        after = time.time()
        samples.append(((after - before) / 2 * 1000, ((before + after) / 2 - there) * 1000))
    uncertain, skew = min(samples)
    return skew, uncertain


async def _broker_clock(settings: Settings, connection: Connection, kafka: KafkaState) -> Check:
    """Nothing is written to find it out: a record that comes in just now has the broker's time."""
    topic = settings.worker_updates_topic
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.bootstrap_servers, enable_auto_commit=False)
    partitions = [TopicPartition(topic, number) for number in kafka.logs]
    try:
        async with bounded(settings):
            await consumer.start()
            earlier = await consumer.end_offsets(partitions)
        began = (await connection.fetchval("SELECT clock_timestamp()")).timestamp() * 1000
        await asyncio.sleep(_LISTEN_SECONDS)
        async with bounded(settings):
            ends = await consumer.end_offsets(partitions)
    finally:
        await stop_client(consumer)
    ended = (await connection.fetchval("SELECT clock_timestamp()")).timestamp() * 1000
    came = {tp: ends[tp] for tp in partitions if ends[tp] > earlier[tp]}
    newest = await _last_timestamp(settings, came or {tp: ends[tp] for tp in partitions}, kafka)
    if newest is None:
        return Check("clocks", "broker", "ok", "not measured: no record is there to tell")
    ahead = newest - ended
    if ahead > _SKEW_WORTH_A_WORD:
        return Check(
            "clocks", "broker", "failed" if ahead > MAX_CLOCK_LEAD else "warning",
            f"the newest record is stamped {duration(ahead)} ahead of the database's clock; more than"
            f" {duration(MAX_CLOCK_LEAD)} stops its lane",
            "set the clocks of brokers and database right (NTP); then: measurement-updates lanes accept --help",
        )  # fmt: skip
    if not came:
        return Check(
            "clocks", "broker", "ok",
            "not measured: no record came in meanwhile (the newest one isn't ahead of the database's clock)",
        )  # fmt: skip
    behind = began - newest
    if behind > _SKEW_WORTH_A_WORD:
        return Check(
            "clocks", "broker", "warning",
            f"a record that came in just now is stamped {duration(behind)} behind the database's clock: changes made"
            " elsewhere count as newer than events that came after them",
            "set the clocks of brokers and database right (NTP)",
        )  # fmt: skip
    return Check(
        "clocks", "broker", "ok", "a record that came in just now has the database's time, to 1 s or two"
    )


async def _last_timestamp(
    settings: Settings, ends: "dict[TopicPartition, int]", kafka: KafkaState
) -> int | None:
    """Of the last records before these ends, in ms."""
    wanted = {
        tp: max(kafka.logs[tp.partition].first, end - _LOOK_BACK)
        for tp, end in ends.items()
        if end > kafka.logs[tp.partition].first
    }
    if not wanted:
        return None
    newest: int | None = None
    consumer = LogConsumer(
        bootstrap_servers=settings.bootstrap_servers, auto_offset_reset="none", enable_auto_commit=False
    )
    try:
        async with bounded(settings):
            await consumer.start()
            consumer.assign(list(wanted))
            for tp, offset in wanted.items():
                consumer.seek(tp, offset)
            while wanted:
                for tp, pieces in (await consumer.getmany()).items():
                    for piece in pieces:
                        if piece.error is not None:
                            raise piece.error
                        for record in piece.records:
                            if record.timestamp_type == 1:
                                newest = max(newest or 0, record.timestamp)
                        if piece.next_offset >= ends[tp]:
                            wanted.pop(tp, None)
    finally:
        await stop_client(consumer)
    return newest
