"""The values that travel along the path: a record of the log, and what decoding makes of it. No I/O here."""

import struct
from dataclasses import dataclass
from typing import Any, NewType, Protocol

from contracts.events import RejectionCode, Violation

Json = Any
"""A JSON value as orjson reads it: dict, list, str, int, float, bool or None."""

Position = NewType("Position", bytes)
"""(arrival, partition, offset) as 24 bytes, big-endian: compared as bytes they compare in that order."""


def position(arrival: int, partition: int, offset: int) -> Position:
    """`arrival` is in milliseconds since 1970; all three are 0 to 2^63 - 1."""
    return Position(struct.pack(">QQQ", arrival, partition, offset))


class Record(Protocol):
    """One record of the input topic (aiokafka's ConsumerRecord has this shape).

    A header name that isn't UTF-8 comes with its odd bytes as surrogate escapes (PEP 383).
    """

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int:
        """Milliseconds since 1970."""

    @property
    def timestamp_type(self) -> int:
        """0: CreateTime, 1: LogAppendTime."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> tuple[tuple[str, bytes | None], ...]: ...


@dataclass(slots=True)
class Update:
    """A measurement update whose form is right; whether it may be applied is `plan`'s decision."""

    record: Record
    arrival: int
    """Broker timestamp in ms, never less than that of the record before it in its partition."""
    measurement_id: str
    source: str
    """CloudEvents source; `kafka:<topic>` for a bare event."""
    id: str
    """CloudEvents id; `<partition>/<offset>@<arrival>` of its first position for a bare event."""
    identity: bytes
    """16 bytes: digest of measurement id, source, id and the id of a replay run (`reapply`), if there is one."""
    content: bytes
    """16 bytes: digest of the body as a JSON value and `expectedrevision`; equal for equal JSON values."""
    patch: dict[str, Json]
    """The fields that are present, validated."""
    position: Position
    """What its fields are stamped with: its own position, or an earlier `requeued-from`."""
    expected_revision: int | None
    organization_id: str | None
    traceparent: str | None


@dataclass(slots=True)
class Rejection:
    """A record that is rejected, and why."""

    record: Record
    arrival: int
    code: RejectionCode
    message: str
    violations: tuple[Violation, ...] = ()
    total: int = 0
    """How many violations there are; `violations` may be the first of them only."""


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What decoding measures against; values, so that decoding stays pure."""

    max_event_bytes: int = 1024**2
    max_depth: int = 100
    max_key_bytes: int = 64 * 1024
    max_headers_bytes: int = 64 * 1024
