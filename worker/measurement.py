"""A row of `cell_measurements` while events are folded into it: its fields as JSON text, and the model as bytes. Pure.

Fields stay the text that Postgres gave or orjson made: what no event touches is passed on to the answer as it stands
(no number loses digits on the way), and nothing is parsed that isn't compared.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any

import orjson

from worker.record import Json, Position

PATCHABLE = ("name", "protocol", "test_setup", "notes", "properties")
JSON_FIELDS = ("protocol", "test_setup", "properties")
BIT = {name: 1 << index for index, name in enumerate(PATCHABLE)}
"""Sets of these fields are integers, a bit each, here and in SQL: nothing is built to hold them, several times an event."""
MEASUREMENT_TYPES = ("time_series", "file", "properties")

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECONDS_TO_2000 = 946_684_800_000_000
_FIRST, _LAST = -63_082_281_600_000_000, 252_455_615_999_999_999  # years 1 and 9999, as Postgres counts


def timestamp_of(arrival: int) -> int:
    """Milliseconds since 1970 → Postgres' microseconds since 2000."""
    return arrival * 1000 - _MICROSECONDS_TO_2000


@lru_cache(maxsize=16_384)  # a batch's events have few different arrivals
def iso8601(timestamp: int) -> str:
    """Postgres' microseconds since 2000 → `2026-01-31T12:00:00.123000Z`; always six digits, so that text sorts as time."""
    return (_EPOCH + timedelta(microseconds=timestamp)).isoformat(timespec="microseconds")[:-6] + "Z"


def json_equal(left: Json, right: Json) -> bool:
    """Equal as JSON values: Python's 3 == 3.0 is right, its True == 1 isn't."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict):
        return (
            isinstance(right, dict)
            and left.keys() == right.keys()
            and all(json_equal(value, right[key]) for key, value in left.items())
        )
    if isinstance(left, list):
        return isinstance(right, list) and len(left) == len(right) and all(map(json_equal, left, right))
    return bool(left == right)


def read_json(text: bytes) -> Json:
    """A field's JSON text → value. What REST wrote may hold numbers that orjson doesn't take (1e400)."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(
            text, parse_int=lambda digits: int(digits) if len(digits) < 4_000 else float(digits)
        )


def as_json(value: Json) -> bytes:
    """A field's JSON text, to be kept. What orjson gives holds 4 kB of memory, however short it is: a copy doesn't."""
    return b"%b" % orjson.dumps(value)


def same_json(text: bytes, value: Json) -> bool:
    """Is a field's JSON text this value of an event?"""
    try:
        stored = read_json(text)
        return bool(stored == value) and json_equal(stored, value)  # `==` is quick, but takes True for 1
    except RecursionError:  # nested deeper than any event
        return False


def excess_in_database(text: bytes) -> int:
    """So many bytes more than this JSON text has its value as jsonb prints it: all digits (1e308 has 309), and spaces."""
    digits = 0

    def real(literal: str) -> int:
        nonlocal digits
        digits += len(format(Decimal(literal) + 0, "f")) - 1  # + 0: numeric has no -0.0
        return 0

    value = json.loads(text, parse_float=real)
    return len(json.dumps(value, ensure_ascii=False).encode()) + digits - len(text)


MOST_GROWTH = 84
"""A text becomes at most so many times as long: four bytes of it, 1e-7 for example, may have 326 digits and a space."""


def _most_excess(text: bytes) -> int:
    """At most so many: orjson prints exponents as e-7 and e+22, and the smallest double, 5e-324, has 326 digits."""
    return text.count(b",") + text.count(b":") + 326 * (text.count(b"e-") + text.count(b"e+"))


@dataclass(slots=True)
class Measurement:
    """One locked row. `fields` and `positions` have the five patchable names as keys; a field is JSON text or None."""

    id: str
    measurement_type: str | None
    organization_id: str | None
    fields: dict[str, bytes | None]
    positions: dict[str, Position | None]
    revision: int
    updated_at: int | None
    """Microseconds since 2000."""
    last_answer: tuple[int, int] | None
    """(lane, offset) of the answer to its last applied event."""
    model_head: bytes
    """The model's fields that no event changes, as the beginning of a JSON object."""
    fault: str | None
    """Why the response model can't express those fields; None where it can."""
    written: int = 0
    """The fields whose value in the database has to be replaced."""
    stamped: int = 0
    """Those whose position has to be: also where an event says what stands there."""
    excess: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    """Field → a text, and what `excess_in_database` says of it."""

    def unreadable(self, fields: Mapping[str, bytes | None], updated_at: int | None) -> str | None:
        """Why the model with these fields can't be expressed, None where it can."""
        if self.fault:
            return self.fault
        called = fields["name"]
        # so few bytes, quotes included, are 1 to 255 characters
        if called is None or not (2 < len(called) <= 257 or 1 <= len(orjson.loads(called)) <= 255):
            return "name: expected 1 to 255 characters"
        for name in JSON_FIELDS:
            text = fields[name]
            if text is not None and not text.startswith(b"{"):
                return f"{name}: expected an object or null"
        if updated_at is None or not _FIRST <= updated_at <= _LAST:
            return "updated_at: expected a finite time in the years 1 to 9999"
        return None

    def model(self, fields: Mapping[str, bytes | None], updated_at: int) -> bytes:
        """The full response model as JSON."""
        return b'%b,"updated_at":"%b","name":%b,"protocol":%b,"test_setup":%b,"notes":%b,"properties":%b}' % (
            self.model_head,
            iso8601(updated_at).encode(),
            fields["name"] or b"null",
            fields["protocol"] or b"null",
            fields["test_setup"] or b"null",
            fields["notes"] or b"null",
            fields["properties"] or b"null",
        )

    def growth(self, fields: Mapping[str, bytes | None], changed: Collection[str], room: int) -> int:
        """How much larger the model will be once it comes from the database: a batch's end makes no difference to sizes.

        Counted only where it may be more than `room` (bytes).
        """
        texts = {
            name: text
            for name in JSON_FIELDS
            if (BIT[name] & self.written or name in changed) and (text := fields[name]) is not None
        }
        if sum(map(_most_excess, texts.values())) <= room:
            return 0
        for name, text in texts.items():
            if name not in self.excess or self.excess[name][0] is not text:
                self.excess[name] = text, excess_in_database(text)
        return sum(self.excess[name][1] for name in texts)


_UPDATED_AT = b',"updated_at":"'


def updated_at_of(model: bytes) -> str:
    """Of a model that `Measurement.model` made. Not parsed: jsonb holds what no parser here takes (1e400, 3,000 levels).

    In jsonb's text a space follows each colon, and in a string quotes are escaped: the mark stands there once.
    """
    begin = model.index(_UPDATED_AT) + len(_UPDATED_AT)
    return model[begin : model.index(b'"', begin)].decode()


def measurement_of(row: Mapping[str, Any]) -> Measurement:
    """A row as `lock_measurements` reads it: jsonb as text, times as microseconds since 2000."""
    (
        id_,
        cell_instance_id,
        name,
        protocol,
        start_time,
        test_setup,
        step_labels_validated,
        notes,
        measurement_type,
        properties,
        file_metadata,
        organization_id,
        created_by,
        created_by_email,
        created_at,
        updated_at,
        revision,
        name_position,
        protocol_position,
        test_setup_position,
        notes_position,
        properties_position,
        answer_lane,
        answer_offset,
        *_,  # what else a query reads with it
    ) = row.values()
    fault = None
    if measurement_type not in MEASUREMENT_TYPES:
        fault = (
            f"measurement_type: expected one of {', '.join(MEASUREMENT_TYPES)}, found {measurement_type!r}"
        )
    elif created_at is None or not _FIRST <= created_at <= _LAST:
        fault = "created_at: expected a finite time in the years 1 to 9999"
    elif start_time is not None and not _FIRST <= start_time <= _LAST:
        fault = "start_time: expected a finite time in the years 1 to 9999, or null"
    elif file_metadata is not None and file_metadata != "null" and not file_metadata.startswith("{"):
        fault = "file_metadata: expected an object or null"
    head = b""
    if fault is None:
        head = orjson.dumps(
            {
                "id": id_,
                "cell_instance_id": cell_instance_id,
                "start_time": start_time if start_time is None else iso8601(start_time),
                "step_labels_validated": bool(step_labels_validated),
                "measurement_type": measurement_type,
                "file_metadata": file_metadata if file_metadata is None else orjson.Fragment(file_metadata),
                "organization_id": organization_id,
                "created_by": created_by,
                "created_by_email": created_by_email,
                "created_at": iso8601(created_at),
            }
        )[:-1]
    fields = {
        "name": None if name is None else as_json(name),
        "protocol": _object_text(protocol),
        "test_setup": _object_text(test_setup),
        "notes": None if notes is None else as_json(notes),
        "properties": _object_text(properties),
    }
    return Measurement(  # in its fields' order: names cost half a microsecond
        id_,
        measurement_type,
        organization_id,
        fields,
        {
            "name": name_position,
            "protocol": protocol_position,
            "test_setup": test_setup_position,
            "notes": notes_position,
            "properties": properties_position,
        },
        revision,
        updated_at,
        None if answer_lane is None else (answer_lane, answer_offset),
        head,
        fault,
    )


class MeasurementRows:
    """The rows of a batch by id, in the order in which they are locked or read. A Measurement is made of one when it is
    first asked for: a duplicate needs none.
    """

    def __init__(self) -> None:
        self._rows: dict[str, Mapping[str, Any]] = {}
        self._made: dict[str, Measurement] = {}

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._rows.update((row["id"], row) for row in rows)

    def missing(self, ids: Iterable[str]) -> list[str]:
        return [id for id in ids if id not in self._rows]

    def get(self, id: str) -> Measurement | None:
        made = self._made.get(id)
        if made is None and (row := self._rows.get(id)) is not None:
            made = self._made[id] = measurement_of(row)
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def _object_text(text: str | None) -> bytes | None:
    """SQL NULL and the JSON value null are the same to the model."""
    return None if text is None or text == "null" else text.encode()
