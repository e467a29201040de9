"""What a lane asks of Kafka about its partition of the input: where the log begins and ends, one record, the group."""

import asyncio
from dataclasses import dataclass

from aiokafka import TopicPartition
from aiokafka.errors import OffsetOutOfRangeError

from worker.connecting import stop_client
from worker.consumer import LogConsumer
from worker.errors import DependencyAway, Superseded
from worker.record import Record

_TIMEOUT = 8.0


@dataclass(frozen=True, slots=True)
class LogEnds:
    """Offset of the first record that is still there, and the offset after the last one that is stable."""

    first: int
    end: int


class InputLog:
    """The group's consumer, as the lanes use it; every question is bounded in time."""

    def __init__(self, consumer: LogConsumer, bootstrap_servers: str, group: str) -> None:
        self._consumer = consumer
        self._bootstrap_servers = bootstrap_servers
        self.group = group

    async def ends(self, tp: TopicPartition) -> LogEnds:
        """Raises KafkaError, TimeoutError."""
        async with asyncio.timeout(_TIMEOUT):
            first = await self._consumer.beginning_offsets([tp])
            end = await self._consumer.end_offsets([tp])
        return LogEnds(first[tp], end[tp])

    async def all_ends(self, topic: str) -> dict[int, int]:
        """Partition → the offset after its last stable record, of all that there are; none where the topic is gone.

        Raises KafkaError, TimeoutError."""
        partitions = self._consumer.partitions_for_topic(topic)
        if not partitions:
            return {}
        async with asyncio.timeout(_TIMEOUT):
            ends = await self._consumer.end_offsets([TopicPartition(topic, number) for number in partitions])
        return {tp.partition: end for tp, end in ends.items()}

    async def committed(self, tp: TopicPartition) -> int | None:
        """The group's next offset, None where it has none. Raises KafkaError, TimeoutError."""
        async with asyncio.timeout(_TIMEOUT):
            offset: int | None = await self._consumer.committed(tp)
        return offset

    async def record_at(self, tp: TopicPartition, offset: int) -> Record | None:
        """The record at this offset; None where another one stands there or the log ends before it.

        Raises KafkaError, TimeoutError: that it can't be read now doesn't make it another one.
        """
        return await read_record(self._bootstrap_servers, tp, offset)

    async def confirm_membership(self) -> None:
        """A heartbeat in the present generation: whoever was stopped for a while must not fence its successor.

        Raises DependencyAway where the group doesn't confirm us; a rebalance will tell what comes next.
        """
        # aiokafka has no public call for it; its own routine does just this
        async with asyncio.timeout(_TIMEOUT):
            if not await self._consumer._coordinator._do_heartbeat():
                raise DependencyAway(
                    f"consumer group {self.group} doesn't confirm that this worker is a member"
                )

    def end_as_fetched(self, tp: TopicPartition) -> int | None:
        """The offset after the last stable record, as the last fetch has said: nothing is asked."""
        end: int | None = self._consumer.last_stable_offset(tp) if self.is_ours(tp) else None
        return end

    @property
    def reading(self) -> bool:
        """A long batch is being read, and nothing is handed over meanwhile."""
        return self._consumer.busy

    def is_ours(self, tp: TopicPartition) -> bool:
        return tp in self._consumer.assignment()

    def pause(self, tp: TopicPartition) -> None:
        """Nothing happens where the partition isn't ours any more."""
        if self.is_ours(tp):
            self._consumer.pause(tp)

    def resume(self, tp: TopicPartition) -> None:
        if self.is_ours(tp):
            self._consumer.resume(tp)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        """Raises Superseded where the partition isn't ours any more."""
        if not self.is_ours(tp):
            raise Superseded("the group has given the partition to another worker")
        self._consumer.seek(tp, offset)


async def read_record(
    bootstrap_servers: str, tp: TopicPartition, offset: int, value_bytes: int | None = None
) -> Record | None:
    """The record at this offset, with at most so many bytes of its value; None where another one stands there or the log
    ends before it.

    Raises KafkaError, TimeoutError: that it can't be read now doesn't make it another one.
    """
    consumer = LogConsumer(
        bootstrap_servers=bootstrap_servers,
        auto_offset_reset="none",
        isolation_level="read_committed",
        enable_auto_commit=False,
    )
    if value_bytes is not None:
        consumer.value_bytes = value_bytes
    try:
        async with asyncio.timeout(_TIMEOUT) as waiting:
            await consumer.start()
            consumer.assign([tp])
            consumer.seek(tp, offset)
            while True:
                if consumer.busy:
                    waiting.reschedule(asyncio.get_running_loop().time() + _TIMEOUT)
                for fetched in (await consumer.getmany()).get(tp, []):
                    if isinstance(fetched.error, OffsetOutOfRangeError):
                        return None
                    if fetched.error is not None:
                        raise fetched.error
                    for record in fetched.records:
                        return record if record.offset == offset else None
                    if fetched.next_offset > offset:
                        return None
    finally:
        await stop_client(consumer)
