"""Applied updates as rows of `applied_updates`: few as columns, many in COPY's binary format. Pure.

asyncpg makes that format, too, of any types; for these columns it takes three times as long.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Any

from worker.plan import Applied

COLUMNS = (
    "log_offset",
    "arrival",
    "identity",
    "content",
    "revision",
    "measurement_id",
    "event_source",
    "event_id",
    "changed",
    "answer",
    "traceparent",
    "previous_lane",
    "previous_offset",
)
"""Beside `lane` and `answer_source`, which are the same for all rows of a batch."""

_CHUNK = 512 * 1024
_BEGIN = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END = struct.pack(">h", -1)
_NULL = struct.pack(">i", -1)
_NO_PREVIOUS = _NULL + _NULL
_length = struct.Struct(">i").pack
# A row is the number of its fields, then each field after its length.
_count_and_source = struct.Struct(">hi").pack
# lane, log_offset, arrival, identity, content, revision
_fixed = struct.Struct(">iiiqiqi16si16siq").pack
_previous = struct.Struct(">iiiq").pack


def in_columns(applied: Sequence[Applied]) -> Iterator[tuple[Any, ...]]:
    """A sequence for each of COLUMNS."""
    return zip(
        *(
            (
                one.update.record.offset,
                one.update.arrival,
                one.update.identity,
                one.update.content,
                one.revision,
                one.update.measurement_id,
                one.update.source,
                one.update.id,
                one.changed,
                one.model.decode(),
                one.update.traceparent,
                *(one.previous or (None, None)),
            )
            for one in applied
        ),
        strict=True,
    )


def in_binary(applied: Sequence[Applied], lane: int, answer_source: str) -> Iterator[bytes]:
    """`answer_source`, `lane` and COLUMNS, in pieces of about 512 kB (PostgreSQL's documentation of COPY: Binary Format)."""
    source = answer_source.encode()
    begin = _count_and_source(2 + len(COLUMNS), len(source)) + source
    parts = [_BEGIN]
    size = 0
    for one in applied:
        update, model, previous = one.update, one.model, one.previous
        id_ = update.measurement_id.encode()
        event_source, event_id = update.source.encode(), update.id.encode()
        changed = one.changed.encode()
        parts += (
            begin,
            _fixed(
                4, lane, 8, update.record.offset, 8, update.arrival, 16, update.identity, 16, update.content, 8, one.revision
            ),
            _length(len(id_)), id_,
            _length(len(event_source)), event_source,
            _length(len(event_id)), event_id,
            _length(len(changed)), changed,
            _length(len(model)), model,
            _NULL if update.traceparent is None else _text(update.traceparent),
            _NO_PREVIOUS if previous is None else _previous(4, previous[0], 8, previous[1]),
        )  # fmt: skip
        size += len(model)
        if size >= _CHUNK:
            yield b"".join(parts)
            parts, size = [], 0
    parts.append(_END)
    yield b"".join(parts)


def _text(value: str) -> bytes:
    encoded = value.encode()
    return _length(len(encoded)) + encoded
