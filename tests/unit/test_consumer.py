"""What a partition's bytes make a library say is that partition's trouble; records are taken by number and by bytes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiokafka import ConsumerRecord
from aiokafka.errors import CorruptRecordException

from worker.consumer import take
from worker.record import MAX_KEPT_BYTES


@dataclass
class PartitionRecords:
    """As aiokafka's: an iterator that counts."""

    records: Sequence[Any]
    error: Exception | None = None
    next_fetch_offset: int = 7
    _left: Iterator[Any] = field(init=False)

    def __post_init__(self) -> None:
        self._left = iter(self.records)

    def __iter__(self) -> Iterator[Any]:
        for record in self._left:
            self.next_fetch_offset += 1
            yield record
        if self.error is not None:
            error, self.error = self.error, None
            raise error


def record(value: bytes = b"{}", headers: int = 0) -> "ConsumerRecord[bytes, bytes]":
    return ConsumerRecord("updates", 3, 0, 0, 1, b"", value, None, 0, len(value), (("", b""),) * headers)


@pytest.mark.parametrize(
    "error", [CorruptRecordException("crc"), IndexError("varint"), RuntimeError("bad frame")]
)
def test_bytes_that_cannot_be_read_are_an_error_at_the_position_that_stands(error: Exception) -> None:
    taken = take(PartitionRecords([], error))
    assert (taken.position, taken.next_offset, taken.records) == (7, 7, [])
    assert taken.error is error
    assert taken.ended, "fetched again"


def test_what_comes_before_bytes_that_cannot_be_read_is_taken() -> None:
    taken = take(PartitionRecords([record()] * 3, CorruptRecordException("crc")))
    assert (taken.position, taken.next_offset, len(taken.records)) == (7, 10, 3)
    assert taken.error is None
    assert taken.ended, "fetched again, from what can't be read on"


@pytest.mark.parametrize(
    ("size", "headers", "number"),
    [(100, 0, 2_000), (1024**2, 0, 4), (3_000_000, 0, 2), (9_000_000, 0, 1), (0, 32_000, 3)],
)
def test_so_many_records_are_taken_at_once_as_fit(size: int, headers: int, number: int) -> None:
    records = PartitionRecords([record(b"x" * size, headers)] * 5_000)
    for begun in (0, number):
        taken = take(records)
        assert (taken.position, taken.next_offset) == (7 + begun, 7 + begun + number)
        assert len(taken.records) == number
        assert not taken.ended


def test_more_headers_than_are_admitted_are_not_kept() -> None:
    """Each takes more memory than it has bytes."""
    [taken] = take(PartitionRecords([record(headers=300_000)])).records
    assert len(taken.headers) == MAX_KEPT_BYTES + 1
