"""A rejected record → the record to send again, as it was or with another body. Pure."""

from dataclasses import dataclass

import orjson

from contracts import events
from contracts.cloudevents import UpdateRejected
from contracts.events import Violation
from contracts.json_values import NotJson, deeper_than, read_json, shortened
from contracts.patch import violations_of
from worker.case_list import read_object
from worker.decode import decode
from worker.record import DecodeLimits, Rejection


class CantRequeue(Exception):
    """This record can't be sent again as it is; the message says why and what to do."""


class WrongBody(Exception):
    """A body to send instead is wrong; `violations` says in which places."""

    def __init__(self, violations: list[Violation], total: int) -> None:
        super().__init__(f"{total} violations")
        self.violations, self.total = violations, total


@dataclass(frozen=True, slots=True)
class Again:
    """A record to send again. It has the shape of `Record`, so that it can be judged beforehand."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp_type: int = 1


def is_structured(record: UpdateRejected) -> bool:
    """The body is in `data` of an envelope."""
    content_type = dict(record.headers).get(events.CONTENT_TYPE) or b""
    media_type = content_type.decode("utf-8", "replace").partition(";")[0].strip(" \t").lower()
    return media_type == events.STRUCTURED_MEDIA_TYPE


def body_of(record: UpdateRejected) -> bytes:
    """The PATCH body as text to repair: indented where it is JSON, as it was received where it isn't."""
    value = record.value or b""
    try:
        if not deeper_than(DecodeLimits().max_depth, value):
            parsed = read_json(value)
            if not is_structured(record):
                return orjson.dumps(parsed, option=orjson.OPT_INDENT_2)
            if isinstance(parsed, dict):
                return orjson.dumps(parsed.get("data"), option=orjson.OPT_INDENT_2)
    except NotJson:
        pass
    return value


def with_body(record: UpdateRejected, body: bytes, limits: DecodeLimits) -> bytes:
    """The value that carries this PATCH body instead.

    Raises WrongBody where the body breaks the PATCH schema, CantRequeue where the envelope isn't there to hold it.
    """
    check_body(body, limits)
    if not is_structured(record):
        return body
    envelope = read_object(record.value)
    if not envelope:
        raise CantRequeue("its value isn't a CloudEvent that can be read, so there is no data to replace")
    value = orjson.dumps({**envelope, "data": read_json(body)})
    if len(value) > limits.max_event_bytes:
        raise WrongBody([_too_large(value, limits)], 1)
    return value


def check_body(body: bytes, limits: DecodeLimits) -> None:
    """Raises WrongBody."""
    if len(body) > limits.max_event_bytes:
        raise WrongBody([_too_large(body, limits)], 1)
    if deeper_than(limits.max_depth, body):
        expected = f"objects and lists nested at most {limits.max_depth} deep"
        raise WrongBody([Violation("$", expected, "nested deeper")], 1)
    try:
        found, total = violations_of(read_json(body))
    except NotJson as error:
        raise WrongBody([Violation("$", f"JSON ({error})", shortened(body))], 1) from None
    if found:
        raise WrongBody(found, total)


def _too_large(value: bytes, limits: DecodeLimits) -> Violation:
    expected = f"at most {limits.max_event_bytes:,} bytes (WORKER_MAX_EVENT_BYTES)"
    return Violation("$", expected, f"{len(value):,} bytes")


def to_send(record: UpdateRejected, value: bytes | None) -> Again:
    """The record to send: key and headers as received, without `rejection-*`, with `requeued-from`.

    A header name that isn't UTF-8 goes with its bytes escaped, as in the rejected topic.
    """
    kept = [
        (name, content)
        for name, content in record.headers
        if name != events.REQUEUED_FROM and not name.startswith(events.REJECTION_PREFIX)
    ]
    kept.append((events.REQUEUED_FROM, record.first_position.encode()))
    return Again(
        record.topic,
        record.partition,
        record.offset,
        record.timestamp,
        record.key,
        value,
        tuple((_sendable(name), content) for name, content in kept),
    )


def _sendable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def foreseen(sent: Again, limits: DecodeLimits) -> str | None:
    """The code with which it would be rejected again whatever the database holds; None where its form is right."""
    judged = decode(sent, sent.timestamp + 1, limits)
    return judged.code if isinstance(judged, Rejection) else None
