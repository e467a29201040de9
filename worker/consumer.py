"""The consumer of the input log: hands over what it fetched one partition at a time, with its place in the log.

It differs from aiokafka's own in three things, each needed because a record must never be lost or stop the others:
- a header name that isn't UTF-8 doesn't raise in the middle of a batch (aiokafka decodes names strictly, and records
  of other partitions already drained would be lost to that call while their positions have moved on);
- what is fetched says from which position to which it reaches, past transaction markers and aborted records too;
- an error of one partition is handed over as that partition's, instead of being raised for all.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import aiokafka.consumer.fetcher as fetcher_module
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.codec import gzip_decode, lz4_decode, snappy_decode, zstd_decode
from aiokafka.errors import CorruptRecordException, KafkaError, NoOffsetForPartitionError
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatch
from aiokafka.record.util import decode_varint

log = logging.getLogger(__name__)

_LOG_OVERHEAD = 12  # base offset and length
_BATCH_HEADER = 61
_MAGIC_AT = 16
_RECORDS_AT_ONCE = 2_000
_IDLE_WAIT = 1.0


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

    broken: Callable[[BaseException], None] | None = None
    """Hears what one of aiokafka's two main tasks has died of: nothing is fetched, or no group joined, any more."""

    async def start(self) -> None:
        # aiokafka's fetcher has no seam for the class that reads a fetch response's bytes
        fetcher_module.MemoryRecords = LogRecords
        await super().start()
        self._fetcher._fetch_task.add_done_callback(self._ended)
        if self._group_id is not None:
            self._coordinator._coordination_task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Also where one of its tasks has died: `broken` has heard of that."""
        try:
            await super().stop()
        except KafkaError:
            await self._client.close()

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
            log.warning("the consumer joins its group anew: %r", error)
            self._coordinator.request_rejoin()
            await asyncio.sleep(_IDLE_WAIT)
            return {}

    async def _next(self) -> dict[TopicPartition, list[Fetched]]:
        self._coordinator.check_errors()
        with self._subscription.fetch_context():
            fetched = self._drain_one()
            if fetched is None:
                waiter = self._fetcher._create_fetch_waiter()
                done, _ = await asyncio.wait([waiter], timeout=_IDLE_WAIT)
                if done:
                    waiter.result()  # raises coordination errors
                else:
                    waiter.cancel()
                fetched = self._drain_one()
        return {} if fetched is None else {TopicPartition(fetched.topic, fetched.partition): [fetched]}

    def resume(self, *partitions: TopicPartition) -> None:
        """Also wakes a `getmany` that waits: what was kept for a paused partition is ready now."""
        super().resume(*partitions)
        for waiter in self._fetcher._fetch_waiters:
            self._fetcher._notify(waiter)

    def _drain_one(self) -> Fetched | None:
        """Take what lies ready for one partition. No await: a rebalance can't come between."""
        fetcher = self._fetcher
        if self._subscription.reassignment_in_progress:
            return None
        for tp in list(fetcher._records):
            result = fetcher._records[tp]
            if isinstance(result, fetcher_module.FetchError):
                del fetcher._records[tp]
                fetcher._notify(fetcher._wait_consume_future)
                if isinstance(result._error, NoOffsetForPartitionError):
                    continue  # its lane is about to seek
                if not isinstance(result._error, KafkaError):
                    raise result._error
                return Fetched(tp.topic, tp.partition, -1, -1, [], result._error)
            if result._assignment.active and result._assignment.state_value(tp).paused:
                continue  # kept for when its lane resumes
            if not result.check_assignment(tp):  # revoked, or moved by a seek meanwhile
                del fetcher._records[tp]
                fetcher._notify(fetcher._wait_consume_future)
                continue
            fetched = self._take(tp, result)
            if not result.has_more():
                del fetcher._records[tp]
                fetcher._notify(fetcher._wait_consume_future)
            if fetched is not None:
                # the next call begins with another partition
                if tp in fetcher._records:
                    fetcher._records.move_to_end(tp)
                return fetched
        return None

    @staticmethod
    def _take(tp: TopicPartition, result: Any) -> Fetched | None:
        position = result._partition_records.next_fetch_offset
        try:
            records = result.getall(_RECORDS_AT_ONCE)
        except Exception as error:
            # whatever the bytes make a decompressor or a parser say: this partition's trouble, not that of all. It is
            # fetched again from the position that stands, and its lane says so
            result._partition_records = None
            corrupt = CorruptRecordException(f"{tp.topic}/{tp.partition} from {position} on: {error!r}")
            return Fetched(tp.topic, tp.partition, -1, -1, [], corrupt)
        next_offset = result._assignment.state_value(tp).position
        if next_offset == position:
            return None
        return Fetched(tp.topic, tp.partition, position, next_offset, records)


class LogRecords:
    """The batches of one fetch response, as aiokafka's MemoryRecords gives them, but with tolerant records."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def size_in_bytes(self) -> int:
        return len(self._data)

    def has_next(self) -> bool:
        """The last batch of a response may be cut off: it doesn't count."""
        at, data = self._at, self._data
        if len(data) - at < _LOG_OVERHEAD:
            return False
        return at + _LOG_OVERHEAD + int.from_bytes(data[at + 8 : at + 12], "big") <= len(data)

    def next_batch(self) -> Any:
        at = self._at
        end = at + _LOG_OVERHEAD + int.from_bytes(self._data[at + 8 : at + 12], "big")
        self._at = end
        batch = memoryview(self._data)[at:end]
        magic = batch[_MAGIC_AT]
        return TolerantBatch(batch) if magic >= 2 else LegacyRecordBatch(batch, magic)


@dataclass(slots=True)
class PlainRecord:
    """A record read by `TolerantBatch` itself: aiokafka's shape."""

    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    checksum: None = None


class TolerantBatch:
    """A batch of message format v2: aiokafka's, until one of its records has a header name that isn't UTF-8."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._batch = DefaultRecordBatch(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(iter(self._batch))  # control batches: aiokafka takes their one record so

    def __iter__(self) -> Iterator[Any]:
        yielded = 0
        try:
            for record in self._batch:
                yield record
                yielded += 1
        except (UnicodeDecodeError, CorruptRecordException):
            # UnicodeDecodeError is what the C reader raises; the Python one folds it into CorruptRecordException
            for index, record in enumerate(self._read()):
                if index >= yielded:
                    yield record

    def _read(self) -> Iterator[PlainRecord]:
        """KIP-98, message format v2. A name's odd bytes become surrogate escapes (PEP 383)."""
        batch = self._batch
        payload = bytes(self._data[_BATCH_HEADER:])
        match batch.compression_type:
            case 1:
                payload = gzip_decode(payload)
            case 2:
                payload = snappy_decode(payload)
            case 3:
                payload = lz4_decode(payload)
            case 4:
                payload = zstd_decode(payload)
        buffer = bytearray(payload)
        count = int.from_bytes(self._data[57:61], "big")
        log_append_time = batch.timestamp_type == 1
        at = 0
        for _ in range(count):
            length, at = decode_varint(buffer, at)
            end = at + length
            at += 1  # attributes
            timestamp_delta, at = decode_varint(buffer, at)
            offset_delta, at = decode_varint(buffer, at)
            key, at = _read_bytes(buffer, at)
            value, at = _read_bytes(buffer, at)
            headers = []
            header_count, at = decode_varint(buffer, at)
            for _ in range(header_count):
                name, at = _read_bytes(buffer, at)
                content, at = _read_bytes(buffer, at)
                headers.append(((name or b"").decode("utf-8", "surrogateescape"), content))
            if at != end:
                raise CorruptRecordException(f"record of {length} bytes at {at} doesn't end where it says")
            yield PlainRecord(
                offset=batch.base_offset + offset_delta,
                timestamp=batch.max_timestamp if log_append_time else batch.first_timestamp + timestamp_delta,
                timestamp_type=batch.timestamp_type,
                key=key,
                value=value,
                headers=headers,
            )


def _read_bytes(buffer: bytearray, at: int) -> tuple[bytes | None, int]:
    length, at = decode_varint(buffer, at)
    if length < 0:
        return None, at
    return bytes(buffer[at : at + length]), at + length
