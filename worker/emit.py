"""emit: the one Kafka transaction of a batch, by a producer whose transactional id only one owner can hold.

1. begin
2. send the answers, batched by topic and partition, and meanwhile add the next input offset to the transaction
3. wait for all of it (a failed batch fails only its own future: a commit would go on without it)
4. commit

Where the cluster takes Kafka's newer transactions, `transactions.py` does that in fewer requests.
"""

import asyncio
from collections.abc import Sequence

import aiokafka.producer.sender as sender_module
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.producer.message_accumulator import BatchBuilder

from worker.answer import Answer
from worker.crash_points import reached
from worker.partitioner import key_hashes, partition_of
from worker.transactions import Transactions

MAX_BATCH_BYTES = 512 * 1024
# How long aiokafka waits before it asks again whether the last transaction's markers are written. Its 20 ms are long beside
# the 5 that a transaction takes by itself.
sender_module.BACKOFF_OVERRIDE = 0.002
_TIMEOUT = 30.0
"""Seconds for each step. aiokafka itself waits for ever for a coordinator or a leader that is away."""
_stopping: set["asyncio.Task[None]"] = set()
"""The event loop itself holds its tasks weakly."""


class Emitter:
    """One lane's transactional producer. Any failure ends it: throw it away and start another one."""

    def __init__(self, bootstrap_servers: str, group: str, tp: TopicPartition, max_batch_bytes: int) -> None:
        self._tp = tp
        self._group = group
        self._transactions: Transactions | None = None
        self._producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap_servers,
            client_id=f"{group}.{tp.topic}.{tp.partition}",
            transactional_id=f"{group}.{tp.topic}.{tp.partition}",
            transaction_timeout_ms=60_000,
            max_batch_size=min(MAX_BATCH_BYTES, max_batch_bytes),
            request_timeout_ms=10_000,  # that a connection has died without a word is noticed by nothing else
            # Asked only when something has failed, aiokafka would next ask the broker that is gone where its successors are,
            # and wait as long again (issue 1145 has more of this kind).
            metadata_max_age_ms=5_000,
            # right after a commit the broker refuses while it still writes the last transaction's markers
            retry_backoff_ms=10,
        )

    async def start(self) -> None:
        """Fences the former owner of this partition and settles its last transaction. Raises KafkaError, TimeoutError."""
        async with asyncio.timeout(_TIMEOUT):
            await self._producer.start()
            transactions = Transactions(self._producer, self._group)
            self._transactions = transactions if await transactions.are_spoken() else None

    async def emit(self, answers: Sequence[Answer], next_offset: int) -> None:
        """All answers and the next input offset, or nothing. Raises KafkaError, TimeoutError; then it is done for."""
        try:
            await self._transaction(answers, next_offset)
        except AssertionError as error:
            # aiokafka's transaction state after an error that it has reported before (a transaction that timed out)
            raise KafkaError(f"the producer's transaction is broken: {error!r}") from error

    async def _transaction(self, answers: Sequence[Answer], next_offset: int) -> None:
        offsets = {self._tp: next_offset}
        async with asyncio.timeout(_TIMEOUT):
            batches = await self._batches(answers)
        if (transactions := self._transactions) is not None:
            async with asyncio.timeout(_TIMEOUT):
                await transactions.send(batches, offsets)
            reached("in_kafka_transaction")
            async with asyncio.timeout(_TIMEOUT):
                await transactions.end()
        else:
            producer = self._producer
            async with asyncio.timeout(_TIMEOUT):
                await producer.begin_transaction()
            async with asyncio.timeout(_TIMEOUT):
                sent = [
                    await producer.send_batch(batch, tp.topic, partition=tp.partition)
                    for tp, batch in batches
                ]
                await asyncio.gather(*sent, producer.send_offsets_to_transaction(offsets, self._group))
            reached("in_kafka_transaction")
            async with asyncio.timeout(_TIMEOUT):
                await producer.commit_transaction()
        reached("after_kafka_commit")

    async def _batches(self, answers: Sequence[Answer]) -> list[tuple[TopicPartition, BatchBuilder]]:
        """Closed; those of one partition in the order of its answers."""
        producer = self._producer
        partitions = {
            topic: len(await producer.partitions_for(topic)) for topic in {a.topic for a in answers}
        }
        batches: dict[TopicPartition, BatchBuilder] = {}
        full = []
        hashes = key_hashes({answer.key for answer in answers if answer.key is not None})
        for answer in answers:
            partition = partition_of(answer.key, partitions[answer.topic], self._tp.partition, hashes)
            to = TopicPartition(answer.topic, partition)
            batch = batches.get(to)
            headers = answer.headers
            appended = batch and batch.append(
                key=answer.key, value=answer.value, timestamp=answer.arrival, headers=headers
            )
            if appended is None:
                if batch is not None:
                    full.append((to, batch))
                batches[to] = batch = producer.create_batch()
                # the first record of a batch is always taken, however large
                batch.append(key=answer.key, value=answer.value, timestamp=answer.arrival, headers=headers)
        full += batches.items()
        for _, batch in full:
            batch.close()
        return full

    async def stop(self) -> None:
        """Bounded, and finished in the background where whoever waits for it is cancelled."""
        stopping = asyncio.create_task(self._stop())
        _stopping.add(stopping)
        stopping.add_done_callback(_stopping.discard)
        await asyncio.shield(stopping)

    async def _stop(self) -> None:
        """`stop()` of a producer with something in flight may hang."""
        try:
            async with asyncio.timeout(2):
                await self._producer.stop()
        except (Exception, asyncio.CancelledError):  # it is thrown away whatever it says
            await self._abandon()

    async def _abandon(self) -> None:
        sender = self._producer._sender.sender_task
        if sender is not None and not sender.done():
            sender.cancel()
            await asyncio.wait([sender], timeout=1)
        await self._producer.client.close()
