"""The producer of one replay: records, and how far the range is read, in one Kafka transaction.

1. begin
2. send the records, batched by partition
3. wait for every one of them (a failed batch fails only its own future: a commit would go on without it)
4. have it noted where they stand
5. add to the transaction how far the range is read
6. commit

The input's readers don't pass an open transaction: it is aborted whatever happens, and times out soon.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, ProducerFenced
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from aiokafka.structs import RecordMetadata

from worker.crash_points import reached
from worker.emit import MAX_BATCH_BYTES
from worker.errors import Superseded
from worker.partitioner import key_hashes, partition_of
from worker.replay.runs import Written
from worker.replay.selection import Again

_TIMEOUT = 10
"""Seconds for each step. aiokafka itself waits for ever for a coordinator or a leader that is away."""
_TRANSACTION_TIMEOUT_MS = 20_000
"""Of a process that was killed: so long, and up to 10 s more, workers don't see what comes after."""

Positions = Mapping[TopicPartition, tuple[int, str]]
"""Next offset of each partition of the range, and what there is to know about it."""
Keep = Callable[[Sequence[Written]], Awaitable[None]]


class ReplayProducer:
    """Whoever starts it fences the process that had this replay before. Any failure ends it."""

    def __init__(self, bootstrap_servers: str, name: str, topic: str, max_record_bytes: int) -> None:
        """`name`: of the replay's group, and transactional id."""
        self._name = name
        self._topic = topic
        self._batch_bytes = min(MAX_BATCH_BYTES, max_record_bytes)
        self._producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap_servers,
            client_id=name,
            transactional_id=name,
            transaction_timeout_ms=_TRANSACTION_TIMEOUT_MS,
            max_batch_size=self._batch_bytes,
            request_timeout_ms=_TIMEOUT * 1000,
            # right after a commit the broker refuses while it still writes the last transaction's markers
            retry_backoff_ms=10,
        )

    async def start(self) -> None:
        """Fences its predecessor and settles its last transaction. Raises Superseded, KafkaError, TimeoutError."""
        try:
            async with asyncio.timeout(30):
                await self._producer.start()
        except ProducerFenced:
            raise _fenced() from None

    async def publish(self, records: Sequence[Again], positions: Positions, keep: Keep) -> None:
        """All of it, or nothing; what has begun is ended even if the caller is cancelled meanwhile.

        Raises Superseded where another process goes on with this replay, KafkaError, TimeoutError and what `keep` raises.
        """
        task = asyncio.create_task(self._publish(records, positions, keep))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task], timeout=_TIMEOUT)
            if task.done() and not task.cancelled():
                task.exception()  # seen: the caller's end is what counts
            raise

    async def _publish(self, records: Sequence[Again], positions: Positions, keep: Keep) -> None:
        try:
            await self._transaction(records, positions, keep)
        except ProducerFenced:
            raise _fenced() from None
        except AssertionError as error:
            # aiokafka's transaction state after an error that it has reported before
            raise KafkaError(f"the producer's transaction is broken: {error!r}") from error
        except Exception as error:
            if await self._abort() == "fenced":
                raise _fenced() from error
            raise

    async def _transaction(self, records: Sequence[Again], positions: Positions, keep: Keep) -> None:
        producer = self._producer
        async with asyncio.timeout(_TIMEOUT):
            await producer.begin_transaction()  # 1
        async with asyncio.timeout(_TIMEOUT):
            sent = await self._send(records)  # 2
            acknowledged = await asyncio.gather(*(future for future, _, _ in sent))  # 3
            written = [
                Written(partition, at.offset, at.offset + count)
                for at, (_, partition, count) in zip(acknowledged, sent, strict=True)
            ]
            await keep(joined(written))  # 4
            reached("replay_in_transaction")
            await producer.send_offsets_to_transaction(dict(positions), self._name)  # 5
        async with asyncio.timeout(_TIMEOUT):
            await producer.commit_transaction()  # 6
        reached("replay_after_commit")

    async def _send(
        self, records: Sequence[Again]
    ) -> list[tuple["asyncio.Future[RecordMetadata]", int, int]]:
        """What was sent: a future, the partition, how many records."""
        producer = self._producer
        partitions = len(await producer.partitions_for(self._topic))
        batches: dict[int, BatchBuilder] = {}
        sent = []

        async def send(partition: int, batch: BatchBuilder) -> None:
            batch.close()
            future = await producer.send_batch(batch, self._topic, partition=partition)
            sent.append((future, partition, batch.record_count()))

        hashes = key_hashes({record.key for record in records if record.key is not None})
        for record in records:
            # as any producer; without a key where it was, so that a measurement that is named elsewhere keeps its order
            partition = partition_of(record.key, partitions, record.partition, hashes)
            headers, plain = _named(record)
            batch = batches.get(partition)
            if batch is not None and not plain and not isinstance(batch, RawBatch):
                await send(partition, batches.pop(partition))
                batch = None
            appended = batch and batch.append(
                key=record.key, value=record.value, timestamp=None, headers=headers
            )
            if appended is None:
                if batch is not None:
                    await send(partition, batch)
                batches[partition] = batch = producer.create_batch() if plain else RawBatch(self._batch_bytes)
                # the first record of a batch is always taken, however large
                batch.append(key=record.key, value=record.value, timestamp=None, headers=headers)
        for partition, batch in batches.items():
            await send(partition, batch)
        return sent

    async def _abort(self) -> Literal["aborted", "fenced", "in doubt"]:
        try:
            async with asyncio.timeout(_TIMEOUT / 2):
                await self._producer.abort_transaction()
        except ProducerFenced:
            return "fenced"
        except Exception:  # its time-out does it, or whoever goes on with the replay
            return "in doubt"
        return "aborted"

    async def stop(self) -> None:
        """Bounded: `stop()` of a producer with something in flight may hang."""
        try:
            async with asyncio.timeout(2):
                await self._producer.stop()
        except Exception:
            sender = self._producer._sender.sender_task
            if sender is not None and not sender.done():
                sender.cancel()
                await asyncio.wait([sender], timeout=1)
            await self._producer.client.close()


def _fenced() -> Superseded:
    return Superseded(
        "Kafka has fenced this process: another one goes on with this replay, or it has been cancelled"
    )


class RawBatch(BatchBuilder):  # type: ignore[misc]  # aiokafka ships no complete types
    """A batch of a transaction whose header names may be any bytes: aiokafka's builder in C takes UTF-8 only."""

    def __init__(self, batch_bytes: int) -> None:
        super().__init__(batch_bytes, 0, is_transactional=True)
        self._builder = _DefaultRecordBatchBuilderPy(2, 0, 1, -1, -1, 0, batch_bytes)

    def _set_producer_state(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        self._builder.set_producer_state(producer_id, producer_epoch, base_sequence)


class _RawName(str):
    """A header name whose odd bytes are surrogate escapes: it encodes to what was received."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return super().encode("utf-8", "surrogateescape")


def _named(record: Again) -> tuple[list[tuple[str, bytes | None]], bool]:
    """The headers, and whether aiokafka's own builder takes them."""
    try:
        for name, _ in record.headers:
            name.encode()
    except UnicodeEncodeError:
        return [(_RawName(name), value) for name, value in record.headers], False
    return record.headers, True


def joined(written: Sequence[Written]) -> list[Written]:
    """Batches of one partition that follow on without a gap, as one."""
    pieces: list[Written] = []
    for one in sorted(written, key=lambda one: (one.partition, one.first_offset)):
        last = pieces[-1] if pieces else None
        if last is not None and (last.partition, last.next_offset) == (one.partition, one.first_offset):
            pieces[-1] = Written(one.partition, last.first_offset, one.next_offset)
        else:
            pieces.append(one)
    return pieces
