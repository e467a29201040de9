"""Kafka record ⇄ event (CloudEvents 1.0, Kafka protocol binding): building updates, reading the answers.
Pure.

Headers are (name, value) pairs as Kafka has them: a name that isn't UTF-8 with its odd bytes as surrogate
escapes (PEP 383), a value as bytes or None. Of a header given twice the last counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import orjson
from pydantic import ValidationError

from contracts import events
from contracts.envelope import read_position
from contracts.events import RejectionCode, Violation
from contracts.json_values import Json, NotJson, read_json
from contracts.measurement import CellMeasurement

Headers = Sequence[tuple[str, bytes | None]]


class Message(NamedTuple):
    """What a Kafka producer sends."""

    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


def binary_update(
    measurement_id: str,
    patch: Mapping[str, Any],
    *,
    id: str,
    source: str,
    expected_revision: int | None = None,
    organization_id: str | None = None,
    traceparent: str | None = None,
    time: datetime | None = None,
) -> Message:
    """A binary CloudEvent: attributes in headers, the PATCH body as value. `patch` isn't validated here."""
    headers = [
        (events.CONTENT_TYPE, events.JSON_MEDIA_TYPE.encode()),
        (events.CE_SPECVERSION, events.SPECVERSION.encode()),
        (events.CE_TYPE, events.UPDATE_TYPE.encode()),
        (events.CE_ID, id.encode()),
        (events.CE_SOURCE, source.encode()),
        (events.CE_SUBJECT, measurement_id.encode()),
    ]
    if time is not None:
        headers.append((events.CE_TIME, time.isoformat().encode()))
    if expected_revision is not None:
        headers.append((events.CE_EXPECTEDREVISION, str(expected_revision).encode()))
    if organization_id is not None:
        headers.append((events.CE_ORGANIZATIONID, organization_id.encode()))
    if traceparent is not None:
        headers.append((events.TRACEPARENT, traceparent.encode()))
    return Message(measurement_id.encode(), orjson.dumps(patch), headers)


def structured_update(
    measurement_id: str,
    patch: Mapping[str, Any],
    *,
    id: str,
    source: str,
    expected_revision: int | None = None,
    organization_id: str | None = None,
    traceparent: str | None = None,
    time: datetime | None = None,
) -> Message:
    """A structured CloudEvent: everything in the value. `patch` isn't validated here."""
    envelope: dict[str, Any] = {
        "specversion": events.SPECVERSION,
        "type": events.UPDATE_TYPE,
        "id": id,
        "source": source,
        "subject": measurement_id,
        "datacontenttype": events.JSON_MEDIA_TYPE,
    }
    if time is not None:
        envelope["time"] = time.isoformat()
    if expected_revision is not None:
        # A string: CloudEvents integers have 32 bits.
        envelope["expectedrevision"] = str(expected_revision)
    if organization_id is not None:
        envelope["organizationid"] = organization_id
    if traceparent is not None:
        envelope["traceparent"] = traceparent
    envelope["data"] = patch
    headers = [(events.CONTENT_TYPE, events.STRUCTURED_MEDIA_TYPE.encode())]
    return Message(measurement_id.encode(), orjson.dumps(envelope), headers)


def bare_update(measurement_id: str, patch: Mapping[str, Any]) -> Message:
    """No CloudEvent at all: its identity is its position in the log, so a retry of the producer is another
    event."""
    return Message(measurement_id.encode(), orjson.dumps(patch), [])


# Reading the answers ----------------------------------------------------------------------------------------


class UnreadableEvent(ValueError):
    """A record that isn't what its topic is for; the message says what was expected and found."""


@dataclass(frozen=True, slots=True)
class MeasurementUpdated:
    """A measurement updated event: the state of a measurement after an event was applied."""

    id: str
    """The same for the same causing record, whenever it is sent."""
    source: str
    time: datetime
    """When the measurement last changed: `updated_at`."""
    measurement_id: str
    revision: int
    changed: tuple[str, ...]
    """Names of the fields whose value is another than before; may be empty."""
    causation_id: str
    causation_source: str
    traceparent: str | None
    measurement: CellMeasurement


def read_updated(key: bytes | None, value: bytes | None, headers: Headers) -> MeasurementUpdated:
    """Reads a record of the topic `measurement-updated`. Raises `UnreadableEvent`."""
    texts = _texts(headers)
    if texts.get(events.CE_TYPE) != events.UPDATED_TYPE:
        raise UnreadableEvent(
            f"expected {events.CE_TYPE} {events.UPDATED_TYPE}, found {texts.get(events.CE_TYPE)}"
        )
    try:
        changed = texts[events.CE_CHANGED]
        return MeasurementUpdated(
            id=texts[events.CE_ID],
            source=texts[events.CE_SOURCE],
            time=datetime.fromisoformat(texts[events.CE_TIME]),
            measurement_id=texts[events.CE_SUBJECT],
            revision=int(texts[events.CE_REVISION]),
            changed=tuple(changed.split(",")) if changed else (),
            causation_id=texts[events.CE_CAUSATIONID],
            causation_source=texts[events.CE_CAUSATIONSOURCE],
            traceparent=texts.get(events.TRACEPARENT),
            measurement=CellMeasurement.model_validate_json(value or b""),
        )
    except KeyError as missing:
        raise UnreadableEvent(f"the header {missing} is missing") from None
    except ValidationError as error:
        raise UnreadableEvent(f"the value isn't a cell measurement: {error}") from error
    except ValueError as error:
        raise UnreadableEvent(str(error)) from error


@dataclass(frozen=True, slots=True)
class UpdateRejected:
    """A rejected record: the update as it was received, and why it was rejected."""

    code: RejectionCode
    message: str
    violations: tuple[Violation, ...]
    total: int
    """How many violations there are; `violations` may be the first of them only."""
    topic: str
    """With partition, offset and timestamp: where the record stood in the input."""
    partition: int
    offset: int
    timestamp: int
    """Its arrival, in ms since 1970."""
    truncated: dict[str, Json] | None
    """`length` and `sha256` of the whole value where it was cut, `left_out` where key or headers are
    missing."""
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    """Without `rejection-*`."""

    @property
    def first_position(self) -> str:
        """For `requeued-from` when it is sent again: the one that is there, else made of where it was rejected.

        One that made the worker reject it (malformed, of another topic) isn't kept.
        """
        stated = dict(self.headers).get(events.REQUEUED_FROM)
        if stated is not None and read_position(stated, self.topic) is not None:
            return stated.decode()
        return f"{self.topic}/{self.partition}/{self.offset}@{self.timestamp}"


def read_rejected(key: bytes | None, value: bytes | None, headers: Headers) -> UpdateRejected:
    """Reads a record of the topic `measurement-updates-rejected`. Raises `UnreadableEvent`."""
    texts = _texts(headers)
    try:
        code = texts[events.REJECTION_CODE]
        if code not in events.REJECTION_CODES:
            raise UnreadableEvent(f"unknown {events.REJECTION_CODE}: {code}")
        detail = read_json(texts[events.REJECTION_DETAIL].encode())
        truncated = texts.get(events.REJECTION_TRUNCATED)
        return UpdateRejected(
            code=code,
            message=str(detail["message"]),
            violations=tuple(Violation(v["path"], v["expected"], v["found"]) for v in detail["violations"]),
            total=int(detail["total"]),
            topic=texts[events.REJECTION_TOPIC],
            partition=int(texts[events.REJECTION_PARTITION]),
            offset=int(texts[events.REJECTION_OFFSET]),
            timestamp=int(texts[events.REJECTION_TIMESTAMP]),
            truncated=read_json(truncated.encode()) if truncated is not None else None,
            key=key,
            value=value,
            headers=tuple(pair for pair in headers if not pair[0].startswith(events.REJECTION_PREFIX)),
        )
    except KeyError as missing:
        raise UnreadableEvent(f"{missing} is missing") from None
    except (NotJson, TypeError, ValueError) as error:
        raise UnreadableEvent(str(error)) from error


def _texts(headers: Headers) -> dict[str, str]:
    """Headers whose value is text; a rejected record carries whatever its producer sent beside ours."""
    texts = {}
    for name, raw in headers:
        try:
            texts[name] = (raw or b"").decode()
        except UnicodeDecodeError:
            texts.pop(name, None)
    return texts
