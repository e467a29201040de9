"""What a lane has fetched and not yet applied: bounded by pausing the partition, never the loop."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from contracts.json_values import NOT_OPENING
from worker.record import Record

_DECODED_BYTES = 128


class Inbox:
    """Records of one partition without a gap; `next_offset` is the one that follows what was put in."""

    def __init__(
        self,
        next_offset: int,
        max_records: int,
        max_bytes: int,
        pause: Callable[[], None],
        resume: Callable[[], None],
    ) -> None:
        self.next_offset = next_offset
        self.taken_bytes = 0
        """What the last batch counted as."""
        self._records: deque[tuple[Record, int]] = deque()
        self._bytes = 0
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._pause = pause
        self._resume = resume
        self._full = asyncio.Event()
        self._ready = asyncio.Event()
        self._closed = False
        self._error: Exception | None = None

    def put(self, records: Sequence[Record], next_offset: int) -> None:
        for record in records:
            size = _size(record)
            self._records.append((record, size))
            self._bytes += size
        self.next_offset = next_offset
        self._ready.set()
        if not self.full and (len(self._records) >= self._max_records or self._bytes >= self._max_bytes):
            self._full.set()
            self._pause()

    def close(self) -> None:
        """Nothing more is taken: what was not taken is for the next owner."""
        self._closed = True
        self._ready.set()

    def fail(self, error: Exception) -> None:
        """`filled` raises it."""
        self._error = error
        self._ready.set()

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def full(self) -> bool:
        """It holds a whole batch, and the partition is paused."""
        return self._full.is_set()

    async def until_full(self) -> None:
        await self._full.wait()

    async def filled(self, timeout: float) -> bool:
        """Whether there is a batch to take, within `timeout` seconds; not when closed. Raises what it has failed with."""
        try:
            async with asyncio.timeout(timeout):
                await self._ready.wait()
        except TimeoutError:
            return False
        if self._error is not None:
            raise self._error
        return not self._closed

    def take(self) -> tuple[list[Record], int]:
        """A batch, and the offset after it."""
        batch: list[Record] = []
        size = 0
        while self._records and len(batch) < self._max_records:
            record, its_size = self._records[0]
            if batch and size + its_size > self._max_bytes:
                break
            self._records.popleft()
            batch.append(record)
            size += its_size
        self._bytes -= size
        self.taken_bytes = size
        if not self._records:
            self._ready.clear()
        if self.full and len(self._records) < self._max_records and self._bytes < self._max_bytes:
            self._full.clear()
            self._resume()
        return batch, self._records[0][0].offset if self._records else self.next_offset


def _size(record: Record) -> int:
    """What it takes in memory, about. An object or a list is a few bytes of JSON and some hundred decoded: `{"":0}`."""
    value = record.value or b""
    decoded = _DECODED_BYTES * len(value.translate(None, NOT_OPENING))
    return len(value) + decoded + len(record.key or b"") + 64 * len(record.headers) + 200
