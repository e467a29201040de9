"""Reading the envelope of a measurement update, in whichever of its three forms it comes. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from contracts import events
from contracts.events import Violation
from contracts.json_values import Json, read_json, shortened

Form = Literal["binary", "structured", "bare"]
_MAX_INTEGER = 2**63 - 1
_CLOUDEVENTS = "application/cloudevents"


class InvalidEnvelope(ValueError):
    """The envelope of a measurement update is wrong; `violations` says in which places."""

    def __init__(self, violations: list[Violation]) -> None:
        super().__init__("; ".join(f"{v.path}: expected {v.expected}" for v in violations))
        self.violations = violations


@dataclass(slots=True)
class UpdateEnvelope:
    """What a measurement update says beside its body."""

    form: Form
    measurement_id: str
    id: str
    """CloudEvents id; empty for a bare event, whose identity is its position."""
    source: str
    """CloudEvents source; empty for a bare event."""
    expected_revision: int | None
    organization_id: str | None
    traceparent: str | None
    data: Json
    """The PATCH body of a structured event. None in the other forms: their body is the record's value, not
    yet read."""


def read_update(key: bytes | None, headers: Mapping[str, bytes | None], value: bytes) -> UpdateEnvelope:
    """Reads the envelope of a measurement update, in whichever form it is.

    Raises `InvalidEnvelope`, or `NotJson` where the value of a structured event isn't JSON.
    """
    faults: list[Violation] = []
    form = _form(headers, faults)
    record_key = _text("key", key, faults) if key else None
    if form == "structured":
        if faults:
            raise InvalidEnvelope(faults)
        return _read_structured(record_key, headers, read_json(value))
    if form == "bare":
        if not key:
            faults.append(_no_measurement_id("key"))
        if faults:
            raise InvalidEnvelope(faults)
        traceparent = _traceparent(headers) if events.TRACEPARENT in headers else None
        return UpdateEnvelope("bare", record_key or "", "", "", None, None, traceparent, None)

    if headers.get(events.CE_SPECVERSION) != b"1.0":
        faults.append(_attribute(events.CE_SPECVERSION, f'"{events.SPECVERSION}"', headers))
    if headers.get(events.CE_TYPE) != _UPDATE_TYPE:
        faults.append(_attribute(events.CE_TYPE, f'"{events.UPDATE_TYPE}"', headers))
    id_ = _text(events.CE_ID, headers.get(events.CE_ID), faults)
    source = _text(events.CE_SOURCE, headers.get(events.CE_SOURCE), faults)
    subject = None
    if events.CE_SUBJECT in headers:
        raw = headers[events.CE_SUBJECT]
        subject = record_key if record_key and raw == key else _text(events.CE_SUBJECT, raw, faults)
    organization_id = (
        _text(events.CE_ORGANIZATIONID, headers.get(events.CE_ORGANIZATIONID), faults)
        if events.CE_ORGANIZATIONID in headers
        else None
    )
    expected_revision = None
    if events.CE_EXPECTEDREVISION in headers:
        raw = headers[events.CE_EXPECTEDREVISION]
        expected_revision = _revision(raw.decode("latin-1") if raw is not None else None)
        if expected_revision is None:
            faults.append(_attribute(events.CE_EXPECTEDREVISION, _REVISION, headers))
    if record_key is None:
        if not key and events.CE_SUBJECT not in headers:
            faults.append(_no_measurement_id(events.CE_SUBJECT))
    elif subject is not None and subject != record_key:
        faults.append(_disagree(events.CE_SUBJECT, record_key, subject))
    if faults:
        raise InvalidEnvelope(faults)
    return UpdateEnvelope(
        "binary", record_key or subject or "", id_ or "", source or "", expected_revision, organization_id,
        _traceparent(headers), None,
    )  # fmt: skip


_UPDATE_TYPE = events.UPDATE_TYPE.encode()
_REVISION = "a revision: decimal digits, 0 to 2^63-1"


def _read_structured(
    record_key: str | None, headers: Mapping[str, bytes | None], envelope: Json
) -> UpdateEnvelope:
    if type(envelope) is not dict:
        raise InvalidEnvelope([Violation("value", "a CloudEvent: a JSON object", shortened(envelope))])
    faults: list[Violation] = []
    if envelope.get("specversion") != events.SPECVERSION:
        faults.append(
            Violation("specversion", f'"{events.SPECVERSION}"', shortened(envelope.get("specversion")))
        )
    if envelope.get("type") != events.UPDATE_TYPE:
        faults.append(Violation("type", f'"{events.UPDATE_TYPE}"', shortened(envelope.get("type"))))
    id_ = _member("id", envelope, faults)
    source = _member("source", envelope, faults)
    subject = _member("subject", envelope, faults) if envelope.get("subject") is not None else None
    organization_id = None
    if envelope.get("organizationid") is not None:
        organization_id = _member("organizationid", envelope, faults)
    expected_revision = None
    if (stated := envelope.get("expectedrevision")) is not None:
        expected_revision = _revision(stated)
        if expected_revision is None:
            faults.append(Violation("expectedrevision", _REVISION, shortened(stated)))
    if (media_type := envelope.get("datacontenttype")) is not None and not (
        isinstance(media_type, str) and _media_type(media_type) == events.JSON_MEDIA_TYPE
    ):
        faults.append(Violation("datacontenttype", f'"{events.JSON_MEDIA_TYPE}"', shortened(media_type)))
    if envelope.get("data_base64") is not None:
        faults.append(
            Violation(
                "data_base64", "none: the PATCH body as JSON in data", shortened(envelope["data_base64"])
            )
        )
    elif "data" not in envelope:
        faults.append(Violation("data", "the PATCH body: a JSON object", None))
    if record_key is None:
        if envelope.get("subject") is None:
            faults.append(_no_measurement_id("subject"))
    elif subject is not None and subject != record_key:
        faults.append(_disagree("subject", record_key, subject))
    if faults:
        raise InvalidEnvelope(faults)
    return UpdateEnvelope(
        "structured", record_key or subject or "", id_ or "", source or "", expected_revision,
        organization_id, _traceparent(headers, envelope.get("traceparent")), envelope["data"],
    )  # fmt: skip


def _form(headers: Mapping[str, bytes | None], faults: list[Violation]) -> Form:
    """`content-type` first; then any header whose name begins with `ce_`; else bare."""
    cloud_event = events.CE_ID in headers or any(name.startswith(events.CE_PREFIX) for name in headers)
    form: Form = "binary" if cloud_event else "bare"
    raw = headers.get(events.CONTENT_TYPE, _JSON_MEDIA_TYPE)
    if raw == _JSON_MEDIA_TYPE:
        return form
    # It is read, to tell the form: so null and text that isn't UTF-8 are faults, on a bare event too.
    content_type = _text(events.CONTENT_TYPE, raw, faults, may_be_empty=True)
    if content_type is None:
        return form
    media_type = _media_type(content_type)
    if media_type == events.STRUCTURED_MEDIA_TYPE:
        return "structured"
    if media_type.startswith(_CLOUDEVENTS):
        expected = f'"{events.STRUCTURED_MEDIA_TYPE}" or "{events.JSON_MEDIA_TYPE}"'
        faults.append(Violation(events.CONTENT_TYPE, expected, shortened(content_type)))
    elif form == "binary" and media_type != events.JSON_MEDIA_TYPE:
        faults.append(Violation(events.CONTENT_TYPE, f'"{events.JSON_MEDIA_TYPE}"', shortened(content_type)))
    return form


_JSON_MEDIA_TYPE = events.JSON_MEDIA_TYPE.encode()


def _media_type(content_type: str) -> str:
    """Lower case, without parameters (RFC 9110, 8.3.1)."""
    return content_type.partition(";")[0].strip(" \t").lower()


_IDENTIFIER = "a string that isn't empty, in UTF-8, without U+0000"


def _text(path: str, raw: bytes | None, faults: list[Violation], *, may_be_empty: bool = False) -> str | None:
    """The text of a key or header; None where it is a fault, which is noted."""
    if raw is None:
        faults.append(Violation(path, _IDENTIFIER, None))
        return None
    try:
        decoded = raw.decode()
    except UnicodeDecodeError:
        faults.append(Violation(path, _IDENTIFIER, shortened(raw)))
        return None
    if may_be_empty or (decoded and "\0" not in decoded):
        return decoded
    faults.append(Violation(path, _IDENTIFIER, shortened(decoded)))
    return None


def _member(name: str, envelope: dict[str, Json], faults: list[Violation]) -> str | None:
    found = envelope.get(name)
    if isinstance(found, str) and found and "\0" not in found:
        return found
    faults.append(Violation(name, "a string that isn't empty, without U+0000", shortened(found)))
    return None


def _revision(stated: Json) -> int | None:
    """None where it isn't one. `3.0` has become an integer in `read_json`; `true` is none."""
    if type(stated) is str and stated.isascii() and stated.isdigit():
        stated = stated.lstrip("0") or "0"
        stated = int(stated) if len(stated) <= 19 else None
    return stated if type(stated) is int and 0 <= stated <= _MAX_INTEGER else None


def _traceparent(headers: Mapping[str, bytes | None], of_envelope: Json = None) -> str | None:
    """The header's, else `ce_traceparent`, else the envelope's: the first that is text. Never a fault.

    Text with U+0000 isn't passed on either: what stores it may be unable to.
    """
    for name in (events.TRACEPARENT, events.CE_TRACEPARENT):
        if raw := headers.get(name):
            try:
                if "\0" not in (decoded := raw.decode()):
                    return decoded
            except UnicodeDecodeError:
                pass
    return of_envelope if of_envelope and isinstance(of_envelope, str) and "\0" not in of_envelope else None


def _attribute(name: str, expected: str, headers: Mapping[str, bytes | None]) -> Violation:
    return Violation(name, expected, shortened(headers.get(name)))


def _no_measurement_id(path: str) -> Violation:
    place = "the record's key" if path == "key" else f"the record's key, or in {path}"
    return Violation("key", f"the measurement id in {place}", None)


def _disagree(path: str, key: str, subject: str) -> Violation:
    return Violation(
        path, f"the measurement id that is the record's key: {shortened(key)}", shortened(subject)
    )


class FirstPosition(NamedTuple):
    """Where a record that was sent again stood first; all three are 0 to 2^63-1."""

    partition: int
    offset: int
    arrival: int
    """In ms since 1970."""


_POSITION = re.compile(r"([^/]+)/0*([0-9]{1,19})/0*([0-9]{1,19})@0*([0-9]{1,19})")


def read_position(requeued_from: bytes, topic: str) -> FirstPosition | None:
    """`topic/partition/offset@arrival`; None where it is malformed, beyond 64 bits or of another topic."""
    found = _POSITION.fullmatch(requeued_from.decode("utf-8", "replace"))
    if found is None or found[1] != topic:
        return None
    first = FirstPosition(int(found[2]), int(found[3]), int(found[4]))
    return first if max(first) <= _MAX_INTEGER else None
