"""The three topics, read from one offset to another, whatever their bytes are; and what there is to know about them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from worker.connecting import stop_client
from worker.consumer import LogConsumer
from worker.errors import KAFKA_AWAY, DependencyAway, Fatal
from worker.settings import Settings

_START_WITHIN = 15.0
_ASK_WITHIN = 20.0
_STALLED_AFTER = 100.0
"""Seconds. A worker that has died in a transaction holds back what was answered after it until Kafka has aborted that:
its timeout of 60 s, and up to 10 s more."""

Records = Sequence["ConsumerRecord[bytes, bytes]"]


@dataclass(slots=True)
class Topic:
    """One topic as it is now."""

    name: str
    partitions: list[TopicPartition]
    compacted: bool = False
    first: dict[TopicPartition, int] = field(default_factory=dict)
    """Offset of the first record that is still there; greater than 0: records are gone."""


class Broker:
    """Open with `broker`. Every question is bounded in time; raises DependencyAway."""

    def __init__(self, settings: Settings, stable: AIOKafkaConsumer, latest: AIOKafkaConsumer) -> None:
        self._settings = settings
        self._stable = stable
        self._latest = latest

    async def topic(self, name: str) -> Topic:
        """Raises Fatal where there is none."""
        async with _bounded(self._settings):
            cluster = await self._stable._client.fetch_all_metadata()
            numbers = cluster.partitions_for_topic(name)
            if numbers is None:
                raise Fatal(
                    f"topic {name} doesn't exist on this broker: create it with `measurement-updates topics`, or name"
                    " another one (WORKER_UPDATES_TOPIC, WORKER_UPDATED_TOPIC, WORKER_REJECTED_TOPIC)"
                )
            partitions = [TopicPartition(name, number) for number in sorted(numbers)]
            first = await self._stable.beginning_offsets(partitions)
        return Topic(name, partitions, first=dict(first))

    async def stable_ends(self, topic: Topic) -> dict[TopicPartition, int]:
        """Offsets after the last records whose transactions have ended."""
        async with _bounded(self._settings):
            return dict(await self._stable.end_offsets(topic.partitions))

    async def latest_ends(self, *topics: Topic) -> dict[TopicPartition, int]:
        """Offsets after the last records, whether their transactions have ended or not."""
        async with _bounded(self._settings):
            return dict(await self._latest.end_offsets([tp for topic in topics for tp in topic.partitions]))

    async def found_at(
        self, partitions: Iterable[TopicPartition], time: int
    ) -> dict[TopicPartition, tuple[int, int] | None]:
        """Offset and timestamp of each partition's first record that isn't from before `time` (ms since 1970)."""
        async with _bounded(self._settings):
            found = await self._stable.offsets_for_times(dict.fromkeys(partitions, time))
        return {tp: None if at is None else (at.offset, at.timestamp) for tp, at in found.items()}

    async def committed(self, topic: Topic) -> dict[TopicPartition, int | None]:
        """The group's next offsets, None where it has none."""
        async with _bounded(self._settings):
            return {tp: await self._stable.committed(tp) for tp in topic.partitions}

    async def cluster_and_compacted(self, *topics: Topic) -> str:
        """The cluster's id; and notes which of the topics are compacted."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self._settings.bootstrap_servers)
        async with _bounded(self._settings):
            try:
                await admin.start()
                for topic in topics:
                    responses = await admin.describe_configs(
                        [ConfigResource(ConfigResourceType.TOPIC, topic.name)]
                    )
                    entries: Mapping[str, Any] = {
                        entry[0]: entry[1]
                        for response in responses
                        for resource in response.resources
                        for entry in resource[4]
                    }
                    topic.compacted = "compact" in str(entries.get("cleanup.policy"))
                return str((await admin.describe_cluster())["cluster_id"])
            finally:
                await admin.close()

    async def read(
        self, topics: Iterable[Topic], ends: Mapping[TopicPartition, int], value_bytes: int | None = None
    ) -> AsyncGenerator[tuple[TopicPartition, int, Records], None]:
        """Everything below `ends`, in order in each partition, a few records at a time, with the offset that comes next.

        Where retention takes records away meanwhile, it goes on after them, and moves the topic's `first`.
        value_bytes: so much is kept of each value; without it as much as a digest needs.
        """
        of = {tp: topic for topic in topics for tp in topic.partitions}
        unread = {tp: topic.first[tp] for tp, topic in of.items() if topic.first[tp] < ends[tp]}
        if not unread:
            return
        async with _started(
            _consumer(LogConsumer, self._settings, auto_offset_reset="none"), self._settings
        ) as reader:
            reader.value_bytes = value_bytes or reader.value_bytes
            reader.assign(list(unread))
            for tp, offset in unread.items():
                reader.seek(tp, offset)
            heard = asyncio.get_running_loop().time()
            while unread:
                for tp, pieces in (await reader.getmany()).items():
                    for piece in pieces:
                        if isinstance(piece.error, OffsetOutOfRangeError):
                            first = (await reader.beginning_offsets([tp]))[tp]
                            of[tp].first[tp] = first
                            reader.seek(tp, first)
                            unread[tp] = first
                        elif piece.error is not None:
                            raise piece.error
                        else:
                            unread[tp] = piece.next_offset
                            records = piece.records
                            if piece.next_offset > ends[tp]:
                                records = [record for record in records if record.offset < ends[tp]]
                            yield tp, min(piece.next_offset, ends[tp]), records
                            heard = asyncio.get_running_loop().time()
                        if unread[tp] >= ends[tp]:
                            del unread[tp]
                            reader.pause(tp)
                if asyncio.get_running_loop().time() - heard > _STALLED_AFTER:
                    places = ", ".join(f"{tp.topic}/{tp.partition} from {at}" for tp, at in unread.items())
                    raise DependencyAway(
                        f"Kafka has given nothing for {_STALLED_AFTER:.0f} s of {places}: is a broker away, or a"
                        " transaction open?"
                    )


@asynccontextmanager
async def broker(settings: Settings) -> AsyncIterator[Broker]:
    """Nothing is consumed from anybody: no group is joined, nothing committed. Raises DependencyAway, KafkaError."""
    async with AsyncExitStack() as running:
        stable = await running.enter_async_context(
            _started(_consumer(AIOKafkaConsumer, settings, group_id=settings.worker_group), settings)
        )
        uncommitted = _consumer(AIOKafkaConsumer, settings, isolation_level="read_uncommitted")
        latest = await running.enter_async_context(_started(uncommitted, settings))
        yield Broker(settings, stable, latest)


def _consumer(kind: Any, settings: Settings, **options: Any) -> Any:
    return kind(
        bootstrap_servers=settings.bootstrap_servers,
        client_id="measurement-updates",
        enable_auto_commit=False,
        retry_backoff_ms=50,
        **{"isolation_level": "read_committed", **options},
    )


@asynccontextmanager
async def _started(client: Any, settings: Settings) -> AsyncIterator[Any]:
    try:
        try:
            async with asyncio.timeout(_START_WITHIN):
                await client.start()
        except (KafkaError, OSError, TimeoutError) as error:
            raise DependencyAway(
                f"Kafka can't be reached at {settings.bootstrap_servers}: {str(error) or type(error).__name__}",
                do=KAFKA_AWAY,
            ) from error
        yield client
    finally:
        await stop_client(client)


@asynccontextmanager
async def _bounded(settings: Settings) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_ASK_WITHIN):
            yield
    except (KafkaError, TimeoutError) as error:
        raise DependencyAway(
            f"Kafka at {settings.bootstrap_servers} doesn't answer: {type(error).__name__}: {error}"
        ) from error
