"""What Kafka says of the input and its group, for operators' commands. Nothing is consumed from anybody."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocol
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    KafkaError,
    NotCoordinatorForGroupError,
    for_code,
)

from worker.connecting import stop_client
from worker.consumer import LogConsumer
from worker.errors import DependencyAway
from worker.settings import Settings
from worker.verification.topics import Broker, broker

GROUP_HIDDEN = "this client may not look at it"
_Answer = TypeVar("_Answer")
_TIMEOUT = 10.0
_FETCH, _LIST_TRANSACTIONS = 1, 66


@dataclass(frozen=True, slots=True)
class LogState:
    """One partition of the input."""

    first: int
    end: int
    """Offset after the last record whose transaction has ended."""
    committed: int | None
    """The group's next offset."""
    member: str | None
    """Host of the group's member to which it is assigned."""


@dataclass(frozen=True, slots=True)
class KafkaState:
    """At one moment."""

    cluster: str
    version: str
    latency_ms: float
    brokers: int
    topics: Mapping[str, int]
    """Ours that are there → number of partitions."""
    group_state: str
    members: int
    logs: Mapping[int, LogState]
    """By partition of the input; empty where the topic isn't there."""

    @property
    def group_words(self) -> str:
        """Its state, for people."""
        return "nobody has joined it yet" if self.group_state == "Dead" else self.group_state

    @property
    def rebalancing(self) -> bool:
        return self.group_state in ("PreparingRebalance", "CompletingRebalance")


class KafkaLook:
    """Open with `kafka_look`. Every question is bounded in time; raises DependencyAway."""

    def __init__(self, settings: Settings, log: Broker, admin: AIOKafkaAdminClient) -> None:
        self._settings = settings
        self._log = log
        self.admin = admin

    async def state(self) -> KafkaState:
        settings, admin = self._settings, self.admin
        async with bounded(settings):
            started = time.perf_counter()
            described = await admin.describe_cluster()
            latency_ms = (time.perf_counter() - started) * 1000
            topics = {
                topic["topic"]: len(topic["partitions"])
                for topic in await admin.describe_topics()
                if topic["error_code"] == 0
            }
            version = kafka_version(await self.api_versions())
            try:
                group_state, assigned, members = await self._group()
            except GroupAuthorizationFailedError:
                group_state, assigned, members = GROUP_HIDDEN, {}, 0
        name = settings.worker_updates_topic
        logs: dict[int, LogState] = {}
        if name in topics:
            topic = await self._log.topic(name)
            ends = await self._log.stable_ends(topic)
            committed = {} if group_state == GROUP_HIDDEN else await self._log.committed(topic)
            logs = {
                tp.partition: LogState(
                    topic.first[tp], ends[tp], committed.get(tp), assigned.get((name, tp.partition))
                )
                for tp in topic.partitions
            }
        ours = (name, settings.worker_updated_topic, settings.worker_rejected_topic)
        return KafkaState(
            str(described["cluster_id"]),
            version,
            latency_ms,
            len(described["brokers"]),
            {topic: topics[topic] for topic in ours if topic in topics},
            group_state,
            members,
            logs,
        )

    async def api_versions(self) -> dict[int, tuple[int, int]]:
        """API key → lowest and highest version that a broker speaks."""
        connection = await self.admin._client._get_conn(self.admin._client.get_random_node())
        return {} if connection is None else dict(connection._versions)

    async def _group(self) -> tuple[str, dict[tuple[str, int], str], int]:
        """The group's state, (topic, partition) → member's host, and how many members it has."""
        group = self._settings.worker_group

        async def described() -> tuple[str, Any]:
            coordinator = await self.admin.find_coordinator(group)
            [response] = await self.admin.describe_consumer_groups([group], coordinator)
            [(code, _group, state, _type, _protocol, members)] = [found[:6] for found in response.groups]
            if code:
                raise for_code(code)(f"group {group}")
            return state, members

        state, members = await once_settled(described)
        assigned = {}
        for _member, _client, host, _metadata, assignment in members:
            if assignment:
                for topic, partitions in ConsumerProtocol.ASSIGNMENT.decode(assignment).assignment:
                    assigned.update({(topic, partition): host.lstrip("/") for partition in partitions})
        return state, assigned, len(members)


async def once_settled(ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """A broker that has just begun makes the topic of offsets, or of transactions, when it is first asked, or reads it."""
    for _ in range(50):
        try:
            return await ask()
        except (GroupCoordinatorNotAvailableError, GroupLoadInProgressError, NotCoordinatorForGroupError):
            await asyncio.sleep(0.1)
    return await ask()


@asynccontextmanager
async def kafka_look(settings: Settings) -> AsyncIterator[KafkaLook]:
    """Raises DependencyAway."""
    async with AsyncExitStack() as stack:
        log = await stack.enter_async_context(broker(settings))
        admin = AIOKafkaAdminClient(
            bootstrap_servers=settings.bootstrap_servers, client_id="measurement-updates"
        )
        stack.push_async_callback(admin.close)
        async with bounded(settings):
            await admin.start()
        yield KafkaLook(settings, log, admin)


@asynccontextmanager
async def bounded(settings: Settings) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_TIMEOUT):
            yield
    except (KafkaError, OSError, TimeoutError) as error:
        raise DependencyAway(
            f"Kafka at {settings.bootstrap_servers} doesn't answer: {type(error).__name__}: {error}"
        ) from error


async def next_timestamps(settings: Settings, wanted: Mapping[TopicPartition, int]) -> dict[int, int]:
    """Partition → timestamp (ms) of its first record from this offset on; none where there is none, or not in time.

    Raises DependencyAway.
    """
    found: dict[int, int] = {}
    if not wanted:
        return found
    consumer = LogConsumer(
        bootstrap_servers=settings.bootstrap_servers,
        auto_offset_reset="none",
        isolation_level="read_committed",
        enable_auto_commit=False,
        max_partition_fetch_bytes=64 * 1024,  # a larger record is given all the same
    )
    try:
        async with bounded(settings):
            await consumer.start()
            ends = await consumer.end_offsets(list(wanted))
        consumer.assign(list(wanted))
        for tp, offset in wanted.items():
            consumer.seek(tp, offset)
        unread = {tp for tp, offset in wanted.items() if offset < ends[tp]}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TIMEOUT):
                while unread:
                    for tp, pieces in (await consumer.getmany()).items():
                        for piece in pieces:
                            if piece.records:
                                found.setdefault(tp.partition, piece.records[0].timestamp)
                            if piece.records or piece.error is not None or piece.next_offset >= ends[tp]:
                                unread.discard(tp)
    finally:
        await stop_client(consumer)
    return found


def kafka_version(versions: Mapping[int, tuple[int, int]]) -> str:
    """A broker doesn't say which version it is, only what it speaks (KIP-664, -516, -903, -951, -853, -896, -1166)."""
    if _LIST_TRANSACTIONS not in versions:
        return "older than 3.0"
    lowest, highest = versions[_FETCH]
    if highest >= 18:
        return "4.1 or newer"
    if lowest >= 4:
        return "4.0"
    for fetch, version in ((17, "3.9"), (16, "3.7 or 3.8"), (15, "3.5 or 3.6"), (13, "3.1 to 3.4")):
        if highest >= fetch:
            return version
    return "3.0"


def as_json(state: KafkaState) -> dict[str, Any]:
    """What a command prints of it."""
    return {
        "reachable": True,
        "latency_ms": round(state.latency_ms, 2),
        "version": state.version,
        "cluster": state.cluster,
        "brokers": state.brokers,
        "topics": dict(state.topics),
        "group": {"state": state.group_state, "members": state.members},
    }
