"""The consumer of the input log: hands over what it fetched one partition at a time, with its place in the log.

It differs from aiokafka's own in three things, each needed because a record must never be lost or stop the others:
- a header name that isn't UTF-8 doesn't raise in the middle of a batch (aiokafka decodes names strictly, and records
  of other partitions already drained would be lost to that call while their positions have moved on);
- what is fetched says from which position to which it reaches, past transaction markers and aborted records too;
- an error of one partition is handed over as that partition's, instead of being raised for all.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import aiokafka.consumer.fetcher as fetcher_module
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import CorruptRecordException, KafkaError, NoOffsetForPartitionError

from worker.batches import WHOLE_BYTES, LogRecords
from worker.connecting import is_cancelled
from worker.record import DIGESTED_BYTES, MAX_KEPT_BYTES

log = logging.getLogger(__name__)

_RECORDS_AT_ONCE = 2_000
_BYTES_AT_ONCE = 4 * 1024**2
_HEADER_BYTES = 64
"""What a header takes in memory beside its name and value."""
_IDLE_WAIT = 1.0
_PACE = 0.003
"""Seconds from one fetch to the next, at least: where records come one by one, each would cost a round of its own
through aiokafka and FastStream while the batch before it is still being applied."""


@dataclass(slots=True)
class Fetched:
    """What one partition had: either records (maybe none, where only markers were passed), or an error."""

    topic: str
    partition: int
    position: int
    """Offset at which this begins."""
    next_offset: int
    """Offset at which the next one begins."""
    records: list[ConsumerRecord[bytes, bytes]]
    error: KafkaError | None = None


class LogConsumer(AIOKafkaConsumer):  # type: ignore[misc]  # aiokafka ships no complete types
    """An AIOKafkaConsumer whose `getmany` returns `{partition: [Fetched]}`, one partition a call."""

    value_bytes = DIGESTED_BYTES
    """So much is kept of the value of a record in a long batch; who applies records has to keep what is admitted."""
    broken: Callable[[BaseException], None] | None = None
    """Hears what one of aiokafka's two main tasks has died of: nothing is fetched, or no group joined, any more."""

    def __init__(self, *topics: str, **options: Any) -> None:
        super().__init__(*topics, **options)
        self._unpacking: Unpacking | None = None
        self._last_wait = 0.0

    async def start(self) -> None:
        # aiokafka's fetcher has no seam for the class that reads a fetch response's bytes
        fetcher_module.MemoryRecords = partial(LogRecords, bytearray(WHOLE_BYTES))
        await super().start()
        self._fetcher._fetch_task.add_done_callback(self._ended)
        if self._group_id is not None:
            self._coordinator._coordination_task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Also where one of its tasks has died: `broken` has heard of that."""
        self._stop_unpacking()
        try:
            await super().stop()
        except KafkaError:
            await self._client.close()
        except asyncio.CancelledError:
            await self._client.close()
            if is_cancelled():
                raise

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None and self.broken is not None:
            self.broken(error)

    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[Fetched]]:
        """Waits up to a second whatever `timeout_ms` says: an empty answer makes FastStream sleep once more."""
        try:
            return await self._next()
        except KafkaError as error:
            if self._group_id is None:
                raise
            # aiokafka's heartbeats (or its reading of committed offsets) may have ended with this: it would report it
            # for ever, and only joining the group anew starts them again. FastStream would sleep 5 s each time.
            log.warning(
                "the consumer joins its group anew: %r. Nothing to do, where it is once or twice: else see that the brokers"
                " are up and let the group be used",
                error,
            )
            self._coordinator.request_rejoin()
            await asyncio.sleep(_IDLE_WAIT)
            return {}

    async def _next(self) -> dict[TopicPartition, list[Fetched]]:
        self._coordinator.check_errors()
        with self._subscription.fetch_context():
            fetched = self._drain_one()
            if fetched is None and (early := self._last_wait + _PACE - time.monotonic()) > 0:
                await asyncio.sleep(early)
                fetched = self._drain_one()
            if fetched is None:
                waiter = self._fetcher._create_fetch_waiter()
                done, _ = await asyncio.wait([waiter], timeout=_IDLE_WAIT)
                if done:
                    waiter.result()  # raises coordination errors
                else:
                    waiter.cancel()
                self._last_wait = time.monotonic()
                fetched = self._drain_one()
        return {} if fetched is None else {TopicPartition(fetched.topic, fetched.partition): [fetched]}

    def resume(self, *partitions: TopicPartition) -> None:
        """Also wakes a `getmany` that waits: what was kept for a paused partition is ready now."""
        super().resume(*partitions)
        self._wake()

    def _wake(self, *_: object) -> None:
        for waiter in self._fetcher._fetch_waiters:
            self._fetcher._notify(waiter)

    @property
    def busy(self) -> bool:
        """A batch is being read that takes a while: nothing is handed over meanwhile, and nothing is amiss."""
        return self._unpacking is not None and self._unpacking.step is not None

    def _drain_one(self) -> Fetched | None:
        """Take what lies ready for one partition. No await: a rebalance can't come between."""
        fetcher = self._fetcher
        if self._subscription.reassignment_in_progress:
            return None
        if self._unpacking is not None and self._unpacking.result not in fetcher._records.values():
            self._stop_unpacking()  # revoked, or moved by a seek
        for tp in list(fetcher._records):
            result = fetcher._records[tp]
            if isinstance(result, fetcher_module.FetchError):
                self._forget(tp)
                if isinstance(result._error, NoOffsetForPartitionError):
                    continue  # its lane is about to seek
                if not isinstance(result._error, KafkaError):
                    raise result._error
                return Fetched(tp.topic, tp.partition, -1, -1, [], result._error)
            if result._assignment.active and result._assignment.state_value(tp).paused:
                continue  # kept for when its lane resumes
            taken = self._take(tp, result)
            if taken is None:
                continue
            if not result._assignment.active or result._assignment.state_value(tp).position != taken.position:
                self._forget(tp)  # revoked, or moved by a seek meanwhile
                continue
            result._assignment.state_value(tp).consumed_to(taken.next_offset)
            if taken.ended:
                self._forget(tp)
            else:
                fetcher._records.move_to_end(tp)  # the next call begins with another partition
            if taken.error is not None:
                # whatever the bytes make a decompressor or a parser say: this partition's trouble, not that of all. It is
                # fetched again from the position that stands, and its lane says so
                error = CorruptRecordException(
                    f"{tp.topic}/{tp.partition} from {taken.position} on: {taken.error!r}"
                )
                return Fetched(tp.topic, tp.partition, -1, -1, [], error)
            if taken.next_offset > taken.position:
                return Fetched(tp.topic, tp.partition, taken.position, taken.next_offset, taken.records)
        return None

    def _forget(self, tp: TopicPartition) -> None:
        """So that the partition is fetched from again."""
        del self._fetcher._records[tp]
        self._fetcher._notify(self._fetcher._wait_consume_future)

    def _take(self, tp: TopicPartition, result: Any) -> "Taken | None":
        """What comes next of a fetch response; None where that takes a while."""
        long = result._partition_records._records.long
        if long is None:
            return take(result._partition_records)
        unpacking = self._unpacking
        if unpacking is None or unpacking.result is not result:
            # one at a time: a decompressor may take as much memory as its window is large (zstd: 128 MiB)
            if unpacking is not None:
                if not unpacking.paused:
                    return None
                self._forget(unpacking.tp)
                self._stop_unpacking()
            unpacking = self._unpacking = Unpacking(tp, result)
            long.value_bytes = self.value_bytes
        if unpacking.step is None:
            # in small steps, each in a thread: nothing else waits for it
            step = unpacking.step = asyncio.create_task(asyncio.to_thread(take, result._partition_records))
            step.add_done_callback(self._wake)
        if not unpacking.step.done():
            return None
        taken, unpacking.step = unpacking.step.result(), None
        return taken

    def _stop_unpacking(self) -> None:
        if self._unpacking is not None:
            self._unpacking.result._partition_records._records.long.stopped = True
            self._unpacking = None


@dataclass(slots=True)
class Unpacking:
    """A long batch that is being read."""

    tp: TopicPartition
    result: Any
    step: "asyncio.Task[Taken] | None" = None

    @property
    def paused(self) -> bool:
        return bool(self.result._assignment.state_value(self.tp).paused)


@dataclass(slots=True)
class Taken:
    """The next records of a fetch response."""

    position: int
    next_offset: int
    records: list[ConsumerRecord[bytes, bytes]]
    ended: bool
    """There are no more, or none that can be read."""
    error: Exception | None = None


def take(partition_records: Any) -> Taken:
    """Of aiokafka's PartitionRecords: a number of records, or of bytes, at a time."""
    position = partition_records.next_fetch_offset
    records: list[ConsumerRecord[bytes, bytes]] = []
    size = 0
    try:
        for record in partition_records:
            if (
                len(record.headers) > MAX_KEPT_BYTES
            ):  # too large, and each takes more memory than it has bytes
                record = replace(record, headers=record.headers[: MAX_KEPT_BYTES + 1])
            records.append(record)
            size += (
                record.serialized_value_size
                + record.serialized_key_size
                + _HEADER_BYTES * len(record.headers)
            )
            if len(records) >= _RECORDS_AT_ONCE or size >= _BYTES_AT_ONCE:
                return Taken(position, partition_records.next_fetch_offset, records, ended=False)
    except Exception as error:
        if not records:
            return Taken(position, position, [], ended=True, error=error)
        # what was read is good, and the rest is fetched again
    return Taken(position, partition_records.next_fetch_offset, records, ended=True)
