"""decode: a record of the input topic → the update that it carries, or why it is rejected. Pure and total."""

from collections.abc import Mapping
from hashlib import blake2b

from pydantic import ValidationError

from contracts import events
from contracts.envelope import InvalidEnvelope, read_position, read_update
from contracts.events import RejectionCode, Violation
from contracts.json_values import Json, NotJson, canonical, deeper_than, read_json, shortened
from contracts.patch import holds_nul, validate_patch, violations_of
from worker.record import (
    CutBytes,
    DecodeLimits,
    Position,
    Record,
    Rejection,
    Update,
    headers_bytes,
    position,
    whole_length,
)


def decode(record: Record, arrival: int, limits: DecodeLimits) -> Update | Rejection:
    """Whether the form is right; the first code in this order that holds is given:

    1. `empty_event`  2. `too_large`  3. `invalid_event`  4. `invalid_json`  5. `invalid_patch`

    No record makes it raise. `arrival` is in ms since 1970, 0 to 2^63-1.
    """
    value = record.value
    if not value:  # 1.
        found = Violation("$", "the PATCH body: a JSON object", None)
        return _rejected(record, arrival, "empty_event", "The record has no value.", [found])
    key = record.key
    if (  # 2.
        len(value) > limits.max_event_bytes
        or type(value) is CutBytes
        or (key is not None and len(key) > limits.max_key_bytes)
        or headers_bytes(record.headers) > limits.max_headers_bytes
        or deeper_than(limits.max_depth, value)
    ):
        return _too_large(record, arrival, limits)

    headers = dict(record.headers)  # of a header given twice the last counts
    own = first = position(arrival, record.partition, record.offset)
    faults: list[Violation] = []
    if events.REQUEUED_FROM in headers:
        first = min(own, _requeued_from(headers, record.topic, faults) or own)
    reapply = _reapply(headers, faults) if events.REAPPLY in headers else None
    try:
        envelope = read_update(key, headers, value)
        if faults:  # 3.
            return _invalid_event(record, arrival, faults)
        body = envelope.data if envelope.form == "structured" else read_json(value)
    except InvalidEnvelope as error:  # 3.
        return _invalid_event(record, arrival, [*faults, *error.violations])
    except NotJson as error:  # 4., but a structured event's envelope is in the value
        if faults:
            return _invalid_event(record, arrival, faults)
        violation = Violation("$", "JSON (RFC 8259) in UTF-8 without byte-order mark", shortened(value))
        return _rejected(record, arrival, "invalid_json", f"The value isn't JSON: {error}.", [violation])

    try:
        validate_patch(body)
    except ValidationError:  # 5.
        return _invalid_patch(record, arrival, body)
    if b"\\" in value and b"\\u0000" in value and holds_nul(body):
        return _invalid_patch(record, arrival, body)

    source, id_ = envelope.source, envelope.id
    if envelope.form == "bare":
        source, id_ = f"kafka:{record.topic}", _bare_id(first)
    measurement_id, expected_revision = envelope.measurement_id, envelope.expected_revision
    identity = _identity(measurement_id, source, id_, reapply)
    plain_identity = None if reapply is None else _identity(measurement_id, source, id_, None)
    content = _content(body, expected_revision)
    return Update(  # in its fields' order: fourteen names cost half a microsecond
        record, arrival, measurement_id, source, id_, identity, plain_identity, content, body, first, expected_revision,
        envelope.organization_id, envelope.traceparent, first is not own,
    )  # fmt: skip


def _requeued_from(
    headers: Mapping[str, bytes | None], topic: str, faults: list[Violation]
) -> Position | None:
    raw = headers[events.REQUEUED_FROM]
    if raw is not None and (stated := read_position(raw, topic)):
        return position(stated.arrival, stated.partition, stated.offset)
    expected = f"{topic}/partition/offset@arrival, a position in the input topic (numbers up to 2^63-1)"
    faults.append(Violation(events.REQUEUED_FROM, expected, shortened(raw)))
    return None


def _reapply(headers: Mapping[str, bytes | None], faults: list[Violation]) -> str | None:
    raw = headers[events.REAPPLY]
    try:
        if raw is not None:
            return raw.decode()
    except UnicodeDecodeError:
        pass
    faults.append(Violation(events.REAPPLY, "the id of a replay run, in UTF-8", shortened(raw)))
    return None


def _bare_id(first: Position) -> str:
    arrival, partition, offset = (int.from_bytes(first[start : start + 8], "big") for start in (0, 8, 16))
    return f"{partition}/{offset}@{arrival}"


def _identity(measurement_id: str, source: str, id_: str, reapply: str | None) -> bytes:
    # U+0000 is in none of the three: no two identities are the same text.
    text = (
        f"{measurement_id}\0{source}\0{id_}"
        if reapply is None
        else f"{measurement_id}\0{source}\0{id_}\0{reapply}"
    )
    return _digest(text.encode())


def _content(body: Json, expected_revision: int | None) -> bytes:
    """The body ends where its JSON ends, so what follows it can't be taken for a part of it."""
    text = canonical(body)
    if expected_revision is not None:
        text += b"%d" % expected_revision
    return _digest(text)


_EMPTY = blake2b(digest_size=16)


def _digest(text: bytes) -> bytes:
    digest = _EMPTY.copy()  # quicker than a new one: no arguments to read
    digest.update(text)
    return digest.digest()


# Rejections -------------------------------------------------------------------------------------------------


def _rejected(
    record: Record,
    arrival: int,
    code: RejectionCode,
    message: str,
    violations: list[Violation],
    total: int | None = None,
) -> Rejection:
    return Rejection(
        record, arrival, code, message, tuple(violations), len(violations) if total is None else total
    )


def _too_large(record: Record, arrival: int, limits: DecodeLimits) -> Rejection:
    violations = []
    for path, found, most in (
        ("$", whole_length(record.value or b""), limits.max_event_bytes),
        ("key", whole_length(record.key or b""), limits.max_key_bytes),
        ("headers", headers_bytes(record.headers), limits.max_headers_bytes),
    ):
        if found > most:
            violations.append(Violation(path, f"at most {most:,} bytes", f"{found:,} bytes"))
    if not violations:
        expected = f"objects and lists nested at most {limits.max_depth} deep"
        violations.append(Violation("$", expected, "nested deeper"))
    return _rejected(
        record, arrival, "too_large", f"The record is too large: {_summary(violations[0])}.", violations
    )


def _invalid_event(record: Record, arrival: int, faults: list[Violation]) -> Rejection:
    message = f"The envelope of the event is wrong: {_summary(faults[0])}."
    return _rejected(record, arrival, "invalid_event", message, faults)


def _invalid_patch(record: Record, arrival: int, body: Json) -> Rejection:
    violations, total = violations_of(body)
    count = "in one place" if total == 1 else f"in {total:,} places, the first"
    message = f"The body breaks the PATCH schema {count}: {_summary(violations[0])}."
    return _rejected(record, arrival, "invalid_patch", message, violations, total)


def _summary(violation: Violation) -> str:
    found = canonical(violation.found).decode()
    return f"{violation.path}: expected {violation.expected}, found {found}"
