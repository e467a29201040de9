"""Cutting a batch: every event once, in order, and each piece ends where the next one begins."""

from itertools import pairwise

import pytest

from tests.unit.test_plan import LogRecord
from worker.apply import Batch
from worker.pipeline import _in_pieces, decode_batch
from worker.record import DecodeLimits, Rejection


def batch(offsets: list[int], next_offset: int) -> Batch:
    return Batch(
        [
            Rejection(LogRecord("u", 0, offset, 1, 1, None, None, ()), 1, "empty_event", "no")
            for offset in offsets
        ],
        next_offset,
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
def test_pieces_follow_on_without_a_gap(size: int) -> None:
    offsets = [3, 4, 7, 8, 12]
    pieces = _in_pieces(batch(offsets, 20), size)[::-1]
    assert [event.record.offset for piece in pieces for event in piece.events] == offsets
    for piece, following in pairwise(pieces):
        assert piece.next_offset == following.events[0].record.offset
    assert pieces[-1].next_offset == 20
    assert all(len(piece.events) <= size for piece in pieces)


def test_arrivals_never_go_back_and_a_producers_clock_counts_for_nothing() -> None:
    broker, producer = 1, 0
    stamped = [(100, broker), (90, broker), (500, producer), (110, broker)]
    records = [
        LogRecord("u", 0, offset, timestamp, kind, b"m", b"{}", ())
        for offset, (timestamp, kind) in enumerate(stamped)
    ]
    assert [event.arrival for event in decode_batch(records, 95, DecodeLimits())] == [100, 100, 100, 110]
