"""Looking at database, Kafka and the consumer group for `status`, again and again if need be."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

import orjson
from aiokafka import TopicPartition

from worker.database import POSTGRES_ERRORS, Connection, close, connect, describe, schema_is_current
from worker.errors import DependencyAway, WorkerError, with_what_to_do
from worker.kafka_state import KafkaLook, KafkaState, LogState, kafka_look, next_timestamps
from worker.settings import Settings
from worker.sql import queries
from worker.status import DatabaseState, LaneRow, Status, judge, needs_attention, undecided_from

_TIMEOUT = 10.0
_MOST_COUNTED = 10_000


class StatusLook:
    """Open with `status_look`. A server that is away is no error: the status says so, and it is tried again each time."""

    def __init__(self, settings: Settings, stack: AsyncExitStack) -> None:
        self._settings = settings
        self._stack = stack
        self._connection: Connection | None = None
        self._kafka: KafkaLook | None = None
        self._kafka_stack = AsyncExitStack()
        self._before: dict[int, tuple[int, datetime]] = {}
        self._stamps: dict[tuple[int, int], int] = {}

    async def take(self) -> Status:
        """Raises SettingsError, Fatal. Rates are since the call before."""
        database, kafka = await asyncio.gather(self._look_at_database(), self._look_at_kafka())
        lanes = database.lanes if isinstance(database, DatabaseState) else {}
        logs = kafka.logs if isinstance(kafka, KafkaState) else {}
        stamps = await self._first_undecided(lanes, logs)
        now = database.now if isinstance(database, DatabaseState) else datetime.now(UTC)
        partitions = []
        for number in sorted({*lanes, *logs}):
            lane, log = lanes.get(number), logs.get(number)
            partitions.append(
                judge(
                    number,
                    lane,
                    log,
                    database=database,
                    kafka=kafka,
                    rate=self._rate(number, lane, now),
                    stamp=stamps.get(number),
                    now=now,
                )
            )
        settings = self._settings
        status = Status(
            now, settings.worker_updates_topic, settings.worker_group, partitions, database, kafka
        )
        return replace(status, attention=[*needs_attention(status, settings)])

    def _rate(self, number: int, lane: LaneRow | None, now: datetime) -> float | None:
        if lane is None:
            return None
        before, self._before[number] = self._before.get(number), (lane.next_to_apply, now)
        if before is None or now <= before[1]:
            return None
        return max(0.0, (lane.next_to_apply - before[0]) / (now - before[1]).total_seconds())

    async def _first_undecided(
        self, lanes: Mapping[int, LaneRow], logs: Mapping[int, LogState]
    ) -> dict[int, int]:
        """Partition → timestamp in ms, where something is undecided."""
        places = {
            number: max(undecided_from(lanes.get(number), log), log.first)
            for number, log in logs.items()
            if undecided_from(lanes.get(number), log) < log.end
        }
        unknown = {
            TopicPartition(self._settings.worker_updates_topic, number): offset
            for number, offset in places.items()
            if (number, offset) not in self._stamps
        }
        try:
            found = await next_timestamps(self._settings, unknown)
        except DependencyAway:
            found = {}
        self._stamps |= {(number, places[number]): stamp for number, stamp in found.items()}
        self._stamps = {
            (number, offset): self._stamps[number, offset]
            for number, offset in places.items()
            if (number, offset) in self._stamps
        }
        return {number: stamp for (number, _), stamp in self._stamps.items()}

    async def _look_at_database(self) -> DatabaseState | str:
        try:
            async with asyncio.timeout(_TIMEOUT):
                if self._connection is None or self._connection.is_closed():
                    self._connection = await connect(
                        self._settings.dsn, application="measurement-updates status"
                    )
                    self._stack.push_async_callback(close, self._connection)
                return await look_at_database(self._connection, self._settings.worker_updates_topic)
        except DependencyAway as error:
            return with_what_to_do(error)
        except (OSError, TimeoutError, *POSTGRES_ERRORS) as error:
            if self._connection is not None:
                self._connection.terminate()
            return f"Postgres doesn't answer: {describe(error)}"

    async def _look_at_kafka(self) -> KafkaState | str:
        try:
            if self._kafka is None:
                self._kafka = await self._kafka_stack.enter_async_context(kafka_look(self._settings))
            return await self._kafka.state()
        except WorkerError as error:
            self._kafka = None
            await self._kafka_stack.aclose()
            return with_what_to_do(error)

    async def close(self) -> None:
        await self._kafka_stack.aclose()


@asynccontextmanager
async def status_look(settings: Settings) -> AsyncIterator[StatusLook]:
    """Nothing is written, no group is joined."""
    async with AsyncExitStack() as stack:
        look = StatusLook(settings, stack)
        stack.push_async_callback(look.close)
        yield look


async def look_at_database(connection: Connection, topic: str) -> DatabaseState:
    """Raises what asyncpg raises."""
    sql = queries("status.sql")
    started = time.perf_counter()
    server = await connection.fetchrow(sql["clock_and_version"])
    latency_ms = (time.perf_counter() - started) * 1000
    assert server is not None
    if not await schema_is_current(connection):
        return DatabaseState(server["now"], server["version"], latency_ms, False, {}, 0, ())
    lanes = {row["partition"]: LaneRow(**row) for row in await connection.fetch(sql["lanes_now"], topic)}
    rejections = await connection.fetchval(sql["open_rejections"], _MOST_COUNTED + 1)
    replays = []
    if await connection.fetchval(sql["replays_are_known"]):
        replays = [orjson.loads(row["replay"]) for row in await connection.fetch(sql["running_replays"])]
    # the clock as it is when the lanes are read
    now = await connection.fetchval("SELECT clock_timestamp()")
    return DatabaseState(now, server["version"], latency_ms, True, lanes, rejections, replays)
