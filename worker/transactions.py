"""Kafka's transactions of version 2 (KIP-890), which aiokafka doesn't speak: produce, commit the offset, end. Three requests
instead of five: neither partitions nor group are added beforehand, and ending a transaction begins the next one's epoch.

Brokers say whether they take them (the feature `transaction.version`, by default from Kafka 4.0 on).
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from io import BytesIO

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.errors import IncompatibleBrokerVersion, KafkaError, ProducerFenced, for_code
from aiokafka.producer.message_accumulator import BatchBuilder

from worker.transaction_requests import (
    FEATURES,
    NO_TAGS,
    ApiVersions,
    EndTxn,
    Produce,
    TxnOffsetCommit,
    Versioned,
    by_topic,
)

_FEATURE, _VERSION = "transaction.version", 2
_FINALIZED = 2
"""The tag in a response to ApiVersions."""
_FENCED = {47, 90}
"""INVALID_PRODUCER_EPOCH, PRODUCER_FENCED."""
_TOO_EARLY = 51
"""CONCURRENT_TRANSACTIONS: the markers of the last one aren't written yet."""
_NO_LEADER = 5
_ELSEWHERE = {3, _NO_LEADER, 6, 14, 15, 16}
"""The partition, or the coordinator, is another broker's by now, or isn't ready there yet."""
_NOT_NOW = {19, 20}
"""NOT_ENOUGH_REPLICAS (also where a leader doesn't reach the coordinator), and the same, but already written there."""
_DUPLICATE = 46
"""DUPLICATE_SEQUENCE_NUMBER: taken already."""
_UNKNOWN = -1
_TOO_EARLY_SECONDS, _NOT_NOW_SECONDS = 0.002, 0.05

Batches = list[tuple[TopicPartition, BatchBuilder]]


class Transactions:
    """Those of one producer of aiokafka's, which has been started and does nothing else. No step is bounded in time, and
    after any error it is done for.
    """

    def __init__(self, producer: AIOKafkaProducer, group: str) -> None:
        state = producer._txn_manager
        self._producer = producer
        self._id, self._group = state.transactional_id, group
        self._producer_id, self._epoch = state.producer_id, state.producer_epoch

    async def are_spoken(self) -> bool:
        """Does the cluster take them? Raises KafkaError."""
        node = await self._coordinator(CoordinationType.TRANSACTION, self._id)
        request = ApiVersions("measurement-updates", "1", NO_TAGS)
        try:
            said = await self._producer.client.send(
                node, Versioned(request), group=ConnectionGroup.COORDINATION
            )
        except IncompatibleBrokerVersion:
            return False
        raw = said.tags.get(_FINALIZED)
        features = [] if raw is None else FEATURES.decode(BytesIO(raw))
        return any(name == _FEATURE and most >= _VERSION for name, most, _, _ in features)

    async def send(self, batches: Batches, offsets: dict[TopicPartition, int]) -> None:
        """Everything that becomes visible when the transaction ends. Raises KafkaError.

        `batches` is emptied: what is sent isn't kept, it may be large.
        """
        sequences: defaultdict[TopicPartition, int] = defaultdict(int)  # they begin anew with each epoch
        while batches:
            wave: dict[TopicPartition, bytes] = {}  # a request takes one batch of each partition
            later: Batches = []
            for tp, batch in batches:
                if tp in wave:
                    later.append((tp, batch))
                    continue
                batch._set_producer_state(self._producer_id, self._epoch, sequences[tp])
                sequences[tp] += batch.record_count()
                wave[tp] = batch._build()
            batches[:] = later
            del batch
            await self._produce(wave)
        await self._commit(offsets)

    async def end(self) -> None:
        """Commit. Raises KafkaError: whether it is committed isn't known then."""

        async def attempt() -> list[int]:
            node = await self._coordinator(CoordinationType.TRANSACTION, self._id)
            request = EndTxn(self._id, self._producer_id, self._epoch, True, NO_TAGS)
            said = await self._producer.client.send(
                node, Versioned(request), group=ConnectionGroup.COORDINATION
            )
            if said.error_code == 0:
                self._producer_id, self._epoch = said.producer_id, said.producer_epoch
            return [said.error_code]

        await self._until_taken(attempt)

    async def _produce(self, wave: dict[TopicPartition, bytes]) -> None:
        """Of what isn't taken at once the same bytes are sent again: brokers tell by their sequence numbers."""

        async def attempt() -> list[int]:
            by_leader: defaultdict[int, list[TopicPartition]] = defaultdict(list)
            for tp in wave:
                leader = self._producer.client.cluster.leader_for_partition(tp)
                by_leader[-1 if leader is None else leader].append(tp)
            if -1 in by_leader:
                return [_NO_LEADER]
            # one after the other: the coordinator takes one request of a producer at a time
            return [
                code
                for leader, tps in by_leader.items()
                for code in await self._produce_to(leader, tps, wave)
            ]

        await self._until_taken(attempt)

    async def _produce_to(
        self, leader: int, tps: Sequence[TopicPartition], wave: dict[TopicPartition, bytes]
    ) -> list[int]:
        """What isn't taken stays in `wave`. Returns the error codes."""
        records = by_topic((tp, (wave[tp],)) for tp in tps)
        request = Produce(self._id, -1, self._producer._request_timeout_ms, records, NO_TAGS)
        said = await self._producer.client.send(leader, Versioned(request))
        codes = {
            TopicPartition(topic, partition): code
            for topic, partitions, _ in said.topics
            for partition, code, *_ in partitions
        }
        for tp in tps:
            if codes.get(tp) in (0, _DUPLICATE):
                del wave[tp]
        return [codes.get(tp, _UNKNOWN) for tp in tps if tp in wave]

    async def _commit(self, offsets: dict[TopicPartition, int]) -> None:
        topics = by_topic((tp, (offset, -1, "")) for tp, offset in offsets.items())

        async def attempt() -> list[int]:
            node = await self._coordinator(CoordinationType.GROUP, self._group)
            request = TxnOffsetCommit(
                self._id, self._group, self._producer_id, self._epoch, -1, "", None, topics, NO_TAGS
            )  # fmt: skip
            said = await self._producer.client.send(
                node, Versioned(request), group=ConnectionGroup.COORDINATION
            )
            codes = [code for _, partitions, _ in said.topics for _, code, _ in partitions]
            if len(codes) != len(offsets):
                raise KafkaError(f"{len(offsets)} offsets were sent, the answer is about {len(codes)}")
            return codes

        await self._until_taken(attempt)

    async def _coordinator(self, kind: CoordinationType, key: str) -> int:
        return int(await self._producer._sender._find_coordinator(kind, key))

    async def _until_taken(self, attempt: Callable[[], Awaitable[list[int]]]) -> None:
        while codes := {code for code in await attempt() if code != 0}:
            if codes & _FENCED:
                raise ProducerFenced
            if wrong := codes - _ELSEWHERE - _NOT_NOW - {_TOO_EARLY}:
                raise for_code(wrong.pop())
            if codes & _ELSEWHERE:
                self._producer._sender._coordinators.clear()
                await self._producer.client.force_metadata_update()
            await asyncio.sleep(_TOO_EARLY_SECONDS if codes == {_TOO_EARLY} else _NOT_NOW_SECONDS)
