"""The values that travel along the path: a record of the log, and what decoding makes of it. No I/O here."""

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NewType, Protocol

from contracts.events import RejectionCode, Violation

Json = Any
"""A JSON value as orjson reads it: dict, list, str, int, float, bool or None."""

Position = NewType("Position", bytes)
"""(arrival, partition, offset) as 24 bytes, big-endian: compared as bytes they compare in that order."""


position: Callable[[int, int, int], Position] = struct.Struct(">QQQ").pack  # type: ignore[assignment]  # bytes
"""Of arrival (milliseconds since 1970), partition and offset; all three are 0 to 2^63 - 1."""


MAX_KEPT_BYTES = 64 * 1024
"""A key, or all headers together, over this are left out of the rejected record."""


DIGESTED_BYTES = 1024**2
"""Of a value, in `digest_of`: more may not be held the next time that it is read."""


class CutBytes(bytes):
    """The beginning of a record's value (or key, or header) that is larger than what is ever kept of one."""

    length: int
    """Of the whole, as `sha256` (hex) is."""
    sha256: str

    @classmethod
    def of(cls, kept: bytes, length: int, sha256: str) -> "CutBytes":
        cut = cls(kept)
        cut.length, cut.sha256 = length, sha256
        return cut


def whole_length(value: bytes) -> int:
    """Of what was received, if not all of it is held."""
    return value.length if isinstance(value, CutBytes) else len(value)


def whole_sha256(value: bytes) -> str:
    """Hex; of what was received."""
    return value.sha256 if isinstance(value, CutBytes) else hashlib.sha256(value).hexdigest()


def headers_bytes(headers: Sequence[tuple[str, bytes | None]]) -> int:
    """Names and values; a byte for each at least: a million empty ones fit into a batch."""
    size = 0
    for name, value in headers:
        # `replace`: one byte for each surrogate escape, which stood for one.
        size += len(name) if name.isascii() else len(name.encode("utf-8", "replace"))
        if value is not None:
            size += len(value)
    return max(size, len(headers))


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
    plain_identity: bytes | None
    """The identity without the replay run; None where there is none."""
    content: bytes
    """16 bytes: digest of the body as a JSON value and `expectedrevision`; equal for equal JSON values."""
    patch: dict[str, Json]
    """The fields that are present, validated."""
    position: Position
    """What its fields are stamped with: its own position, or an earlier `requeued-from`."""
    expected_revision: int | None
    organization_id: str | None
    traceparent: str | None
    sent_again: bool = False
    """Its `requeued-from` is earlier than its own position."""


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
