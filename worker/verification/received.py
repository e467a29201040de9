"""A record of the input log, by what an answer to it has to say. Pure, and total: whatever the bytes are."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from contracts import events
from contracts.envelope import InvalidEnvelope, read_position, read_update
from contracts.json_values import NotJson, deeper_than, read_json
from contracts.patch import CellMeasurementPatch
from worker.record import whole_length, whole_sha256
from worker.verification.digests import digest, json_digest, position

PATCHABLE = tuple(CellMeasurementPatch.model_fields)
_MAX_DEPTH = 100

Headers = Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class ReceivedUpdate:
    """What may have been applied: an envelope that is right, and a body that is a JSON object of known fields."""

    measurement: str
    event: bytes | None
    """Digest of measurement, source and id; None for a bare event, which is known by its first position."""
    reapply: bytes
    """Digest of the id of a replay run; of none where there is none."""
    content: bytes
    first: bytes | None
    """The position that `requeued-from` states."""
    fields: tuple[bytes | None, ...]
    """Digests of the patch's values in the order of PATCHABLE; None where a field is left alone."""
    traceparent: str | None


@dataclass(frozen=True, slots=True)
class Received:
    """One record."""

    value: bytes
    """SHA-256."""
    length: int
    """-1 for null."""
    rest: bytes
    """Digest of key and headers, as a rejected record keeps them."""
    update: ReceivedUpdate | None


def received(key: bytes | None, value: bytes | None, headers: Headers, topic: str) -> Received:
    """A record as it stands in `topic`."""
    return Received(
        bytes.fromhex(whole_sha256(value or b"")),
        -1 if value is None else whole_length(value),
        kept_digest(key, headers),
        _update(key, value, dict(headers), topic) if value else None,
    )


def kept_digest(key: bytes | None, headers: Headers) -> bytes:
    """Of what a rejected record keeps beside its value; the odd bytes of a name come escaped there."""
    if not headers:
        return digest(key)
    return digest(key, *(part for name, value in headers for part in (emitted_name(name), value)))


def emitted_name(name: str) -> str:
    """A header name with its odd bytes as surrogate escapes → as it is sent."""
    return (
        name
        if name.isascii()
        else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    )


def _update(
    key: bytes | None, value: bytes, headers: dict[str, bytes | None], topic: str
) -> ReceivedUpdate | None:
    first = None
    if events.REQUEUED_FROM in headers:
        first = read_position(headers[events.REQUEUED_FROM] or b"", topic)
        if first is None:
            return None
    try:
        reapply = headers.get(events.REAPPLY, b"")
        if reapply is None or deeper_than(_MAX_DEPTH, value):
            return None
        envelope = read_update(key, headers, value)
        body: Any = envelope.data if envelope.form == "structured" else read_json(value)
    except (InvalidEnvelope, NotJson):
        return None
    if type(body) is not dict or not body.keys() <= set(PATCHABLE):
        return None
    measurement = envelope.measurement_id
    return ReceivedUpdate(
        measurement,
        None if envelope.form == "bare" else event_digest(measurement, envelope.source, envelope.id),
        digest(reapply) if events.REAPPLY in headers else b"",
        json_digest([body, envelope.expected_revision]),
        first and position(first.arrival, first.partition, first.offset),
        tuple(
            json_digest(body[name]) if name in body and not _keeps(name, body) else None for name in PATCHABLE
        ),
        envelope.traceparent,
    )


def _keeps(name: str, body: dict[str, Any]) -> bool:
    """A measurement always has a name: null leaves it as it is."""
    return name == "name" and body[name] is None


def event_digest(measurement: str, source: str, id_: str) -> bytes:
    return digest(measurement, source, id_)


def bare_event(measurement: str, topic: str, first: bytes) -> bytes:
    """A bare event is known by the position at which it stood first."""
    arrival, partition, offset = struct.unpack(">QQQ", first)
    return event_digest(measurement, f"kafka:{topic}", f"{partition}/{offset}@{arrival}")
