"""A system of its own for one test: fresh topics, a fresh migrated database, a worker in this process or in its own."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import asyncpg
import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from aiokafka.structs import RecordMetadata

from worker.app import Worker
from worker.settings import Settings, load_settings
from worker.topics import create_topics

Header = tuple[str, bytes | None]
RawRecord = tuple[bytes | None, bytes | None, Sequence[tuple[bytes, bytes | None]]]
Place = tuple[int, int]
"""(partition, offset) in the input log."""

COMMAND = Path(sys.executable).with_name("measurement-updates")


async def until(
    state: Callable[[], Awaitable[bool]], what: str | Callable[[], str], timeout: float = 60
) -> None:
    """Look until it holds: the one place where tests poll. Raises AssertionError after `timeout` seconds, with `what` as
    it is then."""
    try:
        async with asyncio.timeout(timeout):
            while not await state():  # noqa: ASYNC110  # it comes true in other processes
                await asyncio.sleep(0.02)
    except TimeoutError:
        said = what if isinstance(what, str) else what()
        raise AssertionError(f"not within {timeout:.0f} s: {said}") from None


@dataclass(frozen=True, slots=True)
class Answer:
    """One record of an answer topic, read_committed."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes | None]
    raw_headers: tuple[Header, ...]

    @property
    def rejected(self) -> bool:
        return "rejection-code" in self.headers

    @property
    def code(self) -> str:
        return self.text("rejection-code")

    @property
    def detail(self) -> dict[str, Any]:
        return dict(orjson.loads(self.headers["rejection-detail"] or b""))

    @property
    def model(self) -> dict[str, Any]:
        return dict(orjson.loads(self.value or b""))

    @property
    def place(self) -> Place:
        """Where the record stands that this answers."""
        if self.rejected:
            return int(self.text("rejection-partition")), int(self.text("rejection-offset"))
        _, partition, offset = self.text("ce_id").split("@")[0].rsplit("/", 2)
        return int(partition), int(offset)

    @property
    def arrival(self) -> int:
        """Of the record that this answers, in ms."""
        return int(
            self.text("rejection-timestamp") if self.rejected else self.text("ce_id").rpartition("@")[2]
        )

    @property
    def revision(self) -> int:
        return int(self.text("ce_revision"))

    @property
    def changed(self) -> list[str]:
        return [name for name in self.text("ce_changed").split(",") if name]

    def text(self, header: str) -> str:
        return (self.headers[header] or b"").decode()


@dataclass(slots=True)
class System:
    """Build with `system(…)` below. Every wait is bounded."""

    settings: Settings
    database: "asyncpg.Connection[asyncpg.Record]"
    producer: AIOKafkaProducer
    base: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The rows as `seed` has made them, by id."""
    added_partitions: int = 0

    @property
    def updates(self) -> str:
        return self.settings.worker_updates_topic

    async def seed(self, measurement_id: str, **columns: Any) -> str:
        """A row of cell_measurements; jsonb columns take Python values."""
        row: dict[str, Any] = {
            "id": measurement_id,
            "cell_instance_id": "cell-1",
            "name": "formation",
            **columns,
        }
        for name in ("protocol", "test_setup", "properties", "file_metadata"):
            if row.get(name) is not None:
                row[name] = orjson.dumps(row[name]).decode()
        names = list(row)
        placeholders = ", ".join(f"${number}" for number in range(1, len(names) + 1))
        await self.database.execute(
            f"INSERT INTO cell_measurements ({', '.join(names)}) VALUES ({placeholders})", *row.values()
        )
        self.base[measurement_id] = await self.row(measurement_id)
        return measurement_id

    async def row(self, measurement_id: str) -> dict[str, Any]:
        found = await self.database.fetchrow("SELECT * FROM cell_measurements WHERE id = $1", measurement_id)
        assert found is not None
        return {
            name: orjson.loads(value)
            if name in ("protocol", "test_setup", "properties", "file_metadata") and value is not None
            else value
            for name, value in found.items()
        }

    async def rows(self) -> list[dict[str, Any]]:
        """Every measurement, without when it was created."""
        found = await self.database.fetch("SELECT * FROM cell_measurements ORDER BY id")
        return [{name: value for name, value in row.items() if name != "created_at"} for row in found]

    async def publish(
        self,
        key: str | bytes | None,
        value: bytes | Mapping[str, Any] | None,
        headers: Sequence[Header] = (),
        partition: int | None = None,
    ) -> RecordMetadata:
        """One record, acknowledged: its place in the log and the broker's timestamp."""
        if isinstance(value, Mapping):
            value = orjson.dumps(value)
        if isinstance(key, str):
            key = key.encode()
        if key is None and value is None:  # aiokafka's producer refuses it, others don't
            raw = [(name.encode(), content) for name, content in headers]
            return (await self.publish_raw((None, None, raw), partition=partition or 0))[0]
        sent = await self.producer.send(
            self.updates, key=key, value=value, headers=list(headers), partition=partition
        )
        return await asyncio.wait_for(sent, 30)

    async def update(
        self,
        measurement_id: str,
        patch: Mapping[str, Any] | bytes,
        *,
        id: str,
        source: str = "cycler",
        **more: str,
    ) -> RecordMetadata:
        """A binary CloudEvent. `more`: further headers, `_` for `-`; extensions with their `ce_`."""
        headers: list[Header] = [
            ("ce_specversion", b"1.0"),
            ("ce_id", id.encode()),
            ("ce_source", source.encode()),
            ("ce_type", b"cell_measurement.update.v1"),
            ("content-type", b"application/json"),
        ]
        headers += [
            (name if name.startswith("ce_") else name.replace("_", "-"), text.encode())
            for name, text in more.items()
        ]
        return await self.publish(measurement_id, patch, headers)

    async def structured(
        self,
        measurement_id: str | None,
        patch: Any,
        *,
        id: str,
        source: str = "cycler",
        partition: int | None = None,
        **attributes: Any,
    ) -> RecordMetadata:
        """A structured CloudEvent. `attributes`: further members of the envelope."""
        envelope = {
            "specversion": "1.0",
            "type": "cell_measurement.update.v1",
            "id": id,
            "source": source,
            "data": patch,
            **attributes,
        }
        headers: list[Header] = [("content-type", b"application/cloudevents+json")]
        return await self.publish(measurement_id, envelope, headers, partition)

    async def publish_raw(
        self, *records: RawRecord, partition: int = 0, compression: int = 0
    ) -> list[RecordMetadata]:
        """As `publish`, in one batch, and header names are bytes: what aiokafka's producer refuses, others send.
        `compression`: 0 none, 1 gzip, 2 snappy, 3 lz4, 4 zstd."""
        async with AIOKafkaProducer(
            bootstrap_servers=self.settings.bootstrap_servers, max_request_size=16 * 1024**2
        ) as producer:
            batch = producer.create_batch()
            # in place of the one in C, which takes UTF-8 only
            batch._builder = _DefaultRecordBatchBuilderPy(2, compression, 0, -1, -1, 0, 128 * 1024**2)
            for key, value, headers in records:
                named = [(_RawName(name), content) for name, content in headers]
                batch.append(key=key, value=value, headers=named, timestamp=None)
            sent = await producer.send_batch(batch, self.updates, partition=partition)
            first = await asyncio.wait_for(sent, 30)
            return [first._replace(offset=first.offset + index) for index in range(len(records))]

    @contextlib.asynccontextmanager
    async def worker(self, **overrides: Any) -> AsyncIterator[Worker]:
        """A worker in this process; drained at the end. What it died of is raised."""
        worker = Worker(self.settings.model_copy(update=overrides))
        running = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()
            await asyncio.wait_for(running, 30)

    @contextlib.contextmanager
    def process(
        self, log: int | IO[bytes] = subprocess.DEVNULL, **environment: str
    ) -> Iterator["subprocess.Popen[bytes]"]:
        """A worker as users run it; SIGKILL at the end, if it still runs."""
        worker = subprocess.Popen([COMMAND, "run"], env={**self.environment, **environment}, stderr=log)
        try:
            yield worker
        finally:
            if worker.poll() is None:
                worker.send_signal(signal.SIGKILL)
            worker.wait()

    @property
    def environment(self) -> dict[str, str]:
        """For a command of its own process."""
        settings = self.settings
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("WORKER_")},
            "KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
            "DATABASE_URL": settings.dsn,
            "WORKER_GROUP": settings.worker_group,
            "WORKER_UPDATES_TOPIC": settings.worker_updates_topic,
            "WORKER_UPDATED_TOPIC": settings.worker_updated_topic,
            "WORKER_REJECTED_TOPIC": settings.worker_rejected_topic,
            "WORKER_PARTITIONS": str(settings.worker_partitions),
            "WORKER_SESSION_TIMEOUT_MS": str(settings.worker_session_timeout_ms),
        }

    async def rewind(self, to: int = 0) -> None:
        """Move the group's committed offsets, as `kafka-consumer-groups --reset-offsets` does. No worker may run."""
        await self.commit(dict.fromkeys(self.partitions(), to))

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """The group's offsets, from outside. No worker may run."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.settings.bootstrap_servers,
            group_id=self.settings.worker_group,
            enable_auto_commit=False,
        )
        await consumer.start()
        try:
            consumer.assign(list(offsets))
            await consumer.commit(dict(offsets))
        finally:
            await consumer.stop()

    async def committed(self) -> dict[TopicPartition, int | None]:
        """The group's offsets, as they stand."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.settings.bootstrap_servers,
            group_id=self.settings.worker_group,
            enable_auto_commit=False,
        )
        await consumer.start()
        try:
            return {tp: await consumer.committed(tp) for tp in self.partitions()}
        finally:
            await consumer.stop()

    def partitions(self) -> list[TopicPartition]:
        """The input's; `added_partitions` counts those that came later."""
        count = self.settings.worker_partitions + self.added_partitions
        return [TopicPartition(self.updates, number) for number in range(count)]

    async def reconnect(self) -> None:
        """After Postgres was away."""
        self.database.terminate()
        self.database = await asyncpg.connect(self.settings.dsn)

    async def renew_producer(self) -> None:
        """After the input has lost records: an idempotent producer doesn't go on over a gap."""
        await self.producer.stop()
        self.producer = await _producer(self.settings)

    async def settled(self, timeout: float = 30) -> None:
        """Until every record of the input is answered, as the group's committed offsets say."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.settings.bootstrap_servers,
            group_id=self.settings.worker_group,
            enable_auto_commit=False,
            isolation_level="read_committed",
        )
        await consumer.start()
        try:

            async def all_answered() -> bool:
                ends = await consumer.end_offsets(self.partitions())
                return all([(await consumer.committed(tp) or 0) >= ends[tp] for tp in self.partitions()])

            await until(all_answered, "every record of the input is answered", timeout)
        finally:
            await consumer.stop()

    async def answers(self, count: int | None = None, timeout: float = 30) -> list[Answer]:
        """Every answer from the topics' beginnings, read_committed: `count` of them and then none more for a moment, or,
        without `count`, all after everything is settled. In log order by partition, the topics one after the other."""
        if count is None:
            await self.settled(timeout)
            return await self._read()
        found: list[Answer] = []

        async def are_there() -> bool:
            found[:] = await self._read()
            return len(found) >= count

        await until(are_there, f"{count} answers", timeout)
        return found

    async def answers_to(self, *records: RecordMetadata) -> list[Answer]:
        """The one answer to each of these records, after everything is settled."""
        found = await self._by_place()
        return [found[record.partition, record.offset] for record in records]

    async def verdicts(self, *records: RecordMetadata) -> list[str]:
        """What became of each of these records, after everything is settled: revision and changed fields (`3 name,notes`),
        the code of its rejection, or `duplicate`."""
        found = await self._by_place()
        verdicts = []
        for record in records:
            answer = found.get((record.partition, record.offset))
            if answer is None:
                verdicts.append("duplicate")
            elif answer.rejected:
                verdicts.append(answer.code)
            else:
                verdicts.append(f"{answer.revision} {','.join(answer.changed)}".rstrip())
        return verdicts

    async def _by_place(self) -> dict[Place, Answer]:
        found: dict[Place, Answer] = {}
        for answer in await self.answers():
            assert answer.place not in found, f"record {answer.place} was answered twice"
            found[answer.place] = answer
        return found

    async def _read(self) -> list[Answer]:
        """Up to the last record that is there now, once the transaction that it belongs to has ended: a group's offsets
        may be seen before that transaction's markers are."""
        topics = (self.settings.worker_updated_topic, self.settings.worker_rejected_topic)
        partitions = [
            TopicPartition(topic, number)
            for topic in topics
            for number in range(self.settings.worker_partitions)
        ]
        ends = await self._ends(partitions)
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.settings.bootstrap_servers,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            max_partition_fetch_bytes=16 * 1024**2,
        )
        await consumer.start()
        try:
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            found: list[Answer] = []
            async with asyncio.timeout(30):
                while any([await consumer.position(tp) < ends[tp] for tp in partitions]):
                    for records in (await consumer.getmany(timeout_ms=200)).values():
                        found += [answer_of(record) for record in records]
            return sorted(
                found, key=lambda answer: (topics.index(answer.topic), answer.partition, answer.offset)
            )
        finally:
            await consumer.stop()

    async def _ends(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """The offsets after the last records, whether their transactions have ended or not."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.settings.bootstrap_servers)
        await consumer.start()
        try:
            return dict(await consumer.end_offsets(partitions))
        finally:
            await consumer.stop()


class _RawName(str):
    """A header name that encodes to these bytes, whatever they are."""

    def __new__(cls, raw: bytes) -> "_RawName":
        name = super().__new__(cls, raw.decode("latin-1"))
        name.raw = raw
        return name

    raw: bytes

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return self.raw


def answer_of(record: ConsumerRecord[bytes, bytes]) -> Answer:
    return Answer(
        record.topic,
        record.partition,
        record.offset,
        record.key,
        record.value,
        dict(record.headers),
        tuple(record.headers),
    )


async def _producer(settings: Settings) -> AIOKafkaProducer:
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers,
        enable_idempotence=True,
        max_request_size=settings.worker_max_event_bytes * 4,
        request_timeout_ms=90_000,  # a Kafka that is taken away is there again by then
        retry_backoff_ms=20,
        metadata_max_age_ms=1_000,  # partitions are added, topics made anew
    )
    await producer.start()
    return producer


@contextlib.asynccontextmanager
async def system(bootstrap_servers: str, database_url: str, **overrides: Any) -> AsyncIterator[System]:
    """`database_url` names a migrated database; the topics are made here."""
    name = f"t-{uuid.uuid4().hex[:10]}"
    settings = load_settings(
        _env_file=None,
        kafka_bootstrap_servers=bootstrap_servers,
        database_url=database_url,
        worker_group=f"{name}-group",
        worker_updates_topic=f"{name}-updates",
        worker_updated_topic=f"{name}-updated",
        worker_rejected_topic=f"{name}-rejected",
        **{"worker_partitions": 2, **overrides},
    )
    for topic in await create_topics(settings):
        assert not topic.faults, topic.faults
    database = await asyncpg.connect(database_url)
    built = System(settings, database, await _producer(settings))
    try:
        yield built
    finally:
        await built.producer.stop()
        await built.database.close()
