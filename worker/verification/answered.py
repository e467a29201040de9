"""A record of an answer topic: which record it answers, and what it says. Pure."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from contracts import events
from contracts.measurement import CellMeasurement
from worker.verification.digests import digest, json_digest, position, read_value
from worker.verification.received import PATCHABLE, Headers, event_digest, kept_digest

Kind = Literal["applied", "rejected"]

_ID = re.compile(r"(.+)/([0-9]{1,9})/([0-9]{1,19})@([0-9]{1,19})", re.DOTALL)
_OURS = (
    events.REJECTION_CODE,
    events.REJECTION_DETAIL,
    events.REJECTION_TOPIC,
    events.REJECTION_PARTITION,
    events.REJECTION_OFFSET,
    events.REJECTION_TIMESTAMP,
    events.REJECTION_TRUNCATED,
)
_MODEL = frozenset(CellMeasurement.model_fields)
_OTHERS = sorted(_MODEL - {*PATCHABLE, "updated_at"})


class NotAnAnswer(ValueError):
    """It doesn't say which record it answers; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Place:
    """The record that is answered."""

    topic: str
    partition: int
    offset: int
    arrival: int
    """In ms since 1970."""

    @property
    def id(self) -> bytes:
        return digest(self.topic) + position(self.arrival, self.partition, self.offset)

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass(frozen=True, slots=True)
class UpdatedAnswer:
    """A measurement updated event."""

    place: Place
    sent: bytes
    """Digest of all that is stored to send it again."""
    body: bytes
    """Digest of the body as a JSON value."""
    measurement: str
    event: bytes
    """Digest of measurement, causationsource and causationid."""
    revision: int
    changed: tuple[str, ...]
    updated_at: str
    fields: tuple[bytes, ...] | None
    """Digests of the patchable fields' values; None where they are nested too deep to be read here."""
    others: bytes
    """Digest of the fields that only others write, `updated_at` aside."""
    traceparent: str | None
    fault: str | None
    """Where it says one thing in its headers and another in its body, or isn't the response model."""


@dataclass(frozen=True, slots=True)
class RejectedAnswer:
    """A rejected record."""

    place: Place
    sent: bytes
    body: bytes
    """Digest of code and value."""
    code: str
    value: bytes
    """SHA-256."""
    length: int
    """-1 for null."""
    rest: bytes
    """Digest of key and headers as received."""
    truncated: Mapping[str, Any] | None


Answer = UpdatedAnswer | RejectedAnswer


def sent_update(
    place: tuple[int, int, int],
    measurement: str,
    revision: int,
    changed: str,
    event_source: str,
    event_id: str,
    traceparent: str | None,
    answer_source: str,
    value: bytes,
) -> bytes:
    """`place`: partition, offset, arrival. `value`: SHA-256 of the body."""
    return digest(
        "applied", _at(place), measurement, str(revision), changed, event_source, event_id, traceparent,
        answer_source, value,
    )  # fmt: skip


def sent_rejection(
    place: tuple[int, int, int],
    rest: bytes,
    code: str,
    detail: str | bytes,
    truncated: str | bytes | None,
    value: bytes,
    length: int,
) -> bytes:
    """`value`: SHA-256; `length`: -1 for null."""
    return digest("rejected", _at(place), rest, code, detail, truncated, value, str(length))


def _at(place: tuple[int, int, int]) -> str:
    partition, offset, arrival = place
    return f"{partition}/{offset}@{arrival}"


def updated_answer(key: bytes | None, value: bytes | None, headers: Headers) -> UpdatedAnswer:
    """Raises NotAnAnswer."""
    texts = _texts(headers)
    try:
        found = _ID.fullmatch(texts[events.CE_ID])
        if found is None or key is None or texts[events.CE_TYPE] != events.UPDATED_TYPE:
            raise NotAnAnswer(f"{events.CE_ID} or {events.CE_TYPE} isn't that of an answer")
        place = Place(found[1], *_numbers(found[2], found[3], found[4]))
        measurement, revision, changed = (
            key.decode(),
            int(texts[events.CE_REVISION]),
            texts[events.CE_CHANGED],
        )
        source, id_ = texts[events.CE_CAUSATIONSOURCE], texts[events.CE_CAUSATIONID]
        answer_source, time = texts[events.CE_SOURCE], texts[events.CE_TIME]
    except KeyError as missing:
        raise NotAnAnswer(f"{missing} is missing") from None
    except ValueError as error:
        raise NotAnAnswer(str(error)) from None
    whole = hashlib.sha256(value or b"").digest()
    traceparent = texts.get(events.TRACEPARENT)
    model, fault = _model(value)
    fields, others = None, b""
    if model is not None:
        fault = fault or _disagreement(texts, measurement, model)
        fields = tuple(json_digest(model.get(name)) for name in PATCHABLE)
        others = json_digest([model.get(name) for name in _OTHERS])
    return UpdatedAnswer(
        place,
        sent_update(
            (place.partition, place.offset, place.arrival),
            measurement, revision, changed, source, id_, traceparent, answer_source, whole,
        ),
        whole if model is None else json_digest(model),
        measurement,
        event_digest(measurement, source, id_),
        revision,
        tuple(name for name in changed.split(",") if name),
        time,
        fields,
        others,
        traceparent,
        fault,
    )  # fmt: skip


def _model(value: bytes | None) -> tuple[dict[str, Any] | None, str | None]:
    """The body, or why it isn't one; neither where it can't be read here."""
    try:
        model = read_value(value or b"")
        json_digest(model)
    except RecursionError:
        return None, None
    except ValueError as error:
        return None, f"the body isn't JSON: {error}"
    if type(model) is not dict:
        return None, "the body isn't an object"
    if model.keys() != _MODEL:
        names = ", ".join(sorted(model.keys() ^ _MODEL)[:5])
        return model, f"the body isn't the response model: {names} missing or unknown"
    return model, None


def _disagreement(texts: Mapping[str, str], measurement: str, model: Mapping[str, Any]) -> str | None:
    for name, expected in (
        (events.CE_SPECVERSION, events.SPECVERSION),
        (events.CONTENT_TYPE, events.JSON_MEDIA_TYPE),
        (events.CE_SUBJECT, measurement),
        (events.CE_SUBJECT, model["id"]),
        (events.CE_TIME, model["updated_at"]),
    ):
        if texts.get(name) != expected:
            return f"{name}: expected {expected}, found {texts.get(name)}"
    return None


def rejected_answer(key: bytes | None, value: bytes | None, headers: Headers) -> RejectedAnswer:
    """Raises NotAnAnswer."""
    ours = 7 if headers and headers[-1][0] == events.REJECTION_TRUNCATED else 6
    as_received, said = headers[:-ours], headers[-ours:]
    if tuple(name for name, _ in said) != _OURS[:ours]:
        raise NotAnAnswer(f"expected {', '.join(_OURS[:6])} at the end of its headers")
    try:
        code, detail, topic, *numbers = [(content or b"").decode() for _, content in said]
        place = Place(topic, *_numbers(*numbers[:3]))
        truncated = orjson.loads(numbers[3]) if ours == 7 else None
    except ValueError as error:
        raise NotAnAnswer(str(error)) from None
    whole, length = hashlib.sha256(value or b"").digest(), -1 if value is None else len(value)
    rest = kept_digest(key, as_received)
    return RejectedAnswer(
        place,
        sent_rejection(
            (place.partition, place.offset, place.arrival),
            rest, code, detail, numbers[3] if ours == 7 else None, whole, length,
        ),
        digest(code, whole),
        code,
        whole,
        length,
        rest,
        truncated if isinstance(truncated, dict) else None,
    )  # fmt: skip


def _numbers(*texts: str) -> Sequence[int]:
    """Raises ValueError where they aren't places in a log."""
    numbers = [int(text) for text in texts]
    if any(not 0 <= number < 2**63 for number in numbers):
        raise ValueError(f"not a place in a log: {'/'.join(texts)}")
    return numbers


def _texts(headers: Headers) -> dict[str, str]:
    """Of a header given twice the last counts. Raises NotAnAnswer."""
    try:
        return {name: (content or b"").decode() for name, content in headers}
    except UnicodeDecodeError as error:
        raise NotAnAnswer(str(error)) from None
