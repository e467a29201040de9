"""A file of measurement updates, JSON Lines or CSV: its rows, one by one, each with what is wrong with it.

Bounded memory: a row at a time, and 16 bytes for each measurement.
"""

import csv
import re
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain
from typing import IO, Any, Literal

from contracts.cloudevents import Message, bare_update, binary_update, structured_update
from contracts.events import TRACEPARENT, Violation
from contracts.json_values import Json, NotJson, canonical, deeper_than, read_json, shortened
from contracts.patch import CellMeasurementPatch, violations_of

Format = Literal["jsonl", "csv"]
Form = Literal["binary", "structured", "bare"]

ATTRIBUTES = ("id", "source", "expectedrevision", "organizationid", "traceparent")
"""What a row may say beside the measurement and the patch."""
_FIELDS = tuple(CellMeasurementPatch.model_fields)
_NAMESPACE = uuid.UUID("5e7f3b1c-52b1-4bb0-8a3e-0d6f3d9f8c11")
_MAX_DEPTH = 100


@dataclass(slots=True)
class Row:
    """One update of the file. `attributes` as the file has them, None where there is none."""

    line: int
    """Where it begins; the first line is 1."""
    measurement_id: Json = None
    patch: Json = None
    attributes: dict[str, Json] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    """What is wrong with it already as a row: it can't be made an update at all."""
    readable: bool = True
    """False: there is nothing in it to look at further."""


def read_rows(file: IO[bytes], format: Format) -> Iterator[Row]:
    """The rows in the file's order. What isn't readable comes as a row with violations."""
    return _jsonl(file) if format == "jsonl" else _csv(file)


# JSON Lines -------------------------------------------------------------------------------------------------


def _jsonl(file: IO[bytes]) -> Iterator[Row]:
    for line, text in enumerate(file, 1):
        if line == 1:
            text = text.removeprefix(b"\xef\xbb\xbf")
        if text.strip():
            yield _jsonl_row(line, text)


def _jsonl_row(line: int, text: bytes) -> Row:
    row = Row(line, readable=False)
    try:
        if deeper_than(_MAX_DEPTH + 1, text):
            raise NotJson(f"nested deeper than {_MAX_DEPTH}")
        value = read_json(text)
    except NotJson as error:
        row.violations.append(Violation("$", f"one JSON object a line ({error})", shortened(text.strip())))
        return row
    if type(value) is not dict:
        row.violations.append(Violation("$", "a JSON object", shortened(value)))
        return row
    row.readable = True
    row.measurement_id = value.pop("measurement_id", None)
    row.attributes = {name: value.pop(name) for name in ATTRIBUTES if value.get(name) is not None}
    for name in ATTRIBUTES:
        value.pop(name, None)  # null: absent
    if "patch" not in value:
        row.patch = value  # the fields themselves
        return row
    row.patch = value.pop("patch")
    for name, found in value.items():
        expected = f"nothing beside measurement_id, patch, {', '.join(ATTRIBUTES)}"
        row.violations.append(Violation(f"$.{name}", expected, shortened(found)))
    return row


# CSV --------------------------------------------------------------------------------------------------------

_NULL = r"\N"
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_PARTS = {
    "protocol": ("name", "ambient_temperature_degc", "definition"),
    "test_setup": ("cycler", "operator", "lab", "channel_number"),
}
_NUMBERS = {("protocol", "ambient_temperature_degc"), ("test_setup", "channel_number")}


def _csv(file: IO[bytes]) -> Iterator[Row]:
    csv.field_size_limit(64 * 1024**2)
    header = file.readline().removeprefix(b"\xef\xbb\xbf")
    delimiter = max(",;\t", key=header.decode("utf-8", "replace").count)
    lines = (line.decode() for line in chain([header], file))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    paths: list[_Path] | None = None
    while True:
        begins = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield Row(begins, readable=False, violations=[Violation("$", "a row of CSV", str(error))])
            return
        except UnicodeDecodeError as error:
            found = f"byte 0x{error.object[error.start]:02x}"
            fault = Violation("$", "UTF-8 (save the file as UTF-8)", found)
            yield Row(begins, readable=False, violations=[fault])
            return
        if cells is None:
            return
        if paths is None:
            if faults := _header_faults([cell.strip() for cell in cells]):
                yield Row(begins, readable=False, violations=faults)
                return
            paths = [_path(cell.strip()) for cell in cells]
        elif len(cells) != len(paths) and any(cells):
            expected = f"{len(paths)} cells, as the header has"
            yield Row(begins, readable=False, violations=[Violation("$", expected, len(cells))])
        elif any(cells):
            yield _csv_row(begins, paths, cells)


_Path = tuple[str, ...]


def _path(column: str) -> _Path:
    """`properties.a.b.value` → properties, a.b, value: a property's name may have points in it."""
    head, _, rest = column.partition(".")
    if head == "properties" and rest:
        name, _, part = rest.rpartition(".")
        return (head, name, part) if name and part in ("value", "unit") else (head, rest)
    return (head, rest) if rest else (head,)


def _header_faults(names: list[str]) -> list[Violation]:
    faults = []
    if "measurement_id" not in names:
        faults.append(Violation("header", "a column measurement_id", shortened(", ".join(names))))
    for name in dict.fromkeys(names):
        head, *rest = path = _path(name)
        if names.count(name) > 1:
            faults.append(Violation("header", "each column once", f"{name} {names.count(name)} times"))
        elif name == "measurement_id" or name in ATTRIBUTES or (path[0] in _FIELDS and not rest):
            continue
        elif head not in ("protocol", "test_setup", "properties") or not all(rest):
            expected = (
                f"measurement_id, {', '.join(ATTRIBUTES)}, {', '.join(_FIELDS)},"
                " protocol.…, test_setup.… or properties.…"
            )
            faults.append(Violation("header", expected, shortened(name)))
        elif head in names:
            faults.append(Violation("header", f"either {head} or {head}.…, not both", name))
        elif len(path) == 3 and f"{head}.{path[1]}" in names:
            faults.append(Violation("header", "either a value or .value and .unit, not both", name))
    return faults


def _csv_row(line: int, paths: list[_Path], cells: list[str]) -> Row:
    row = Row(line, patch={})
    for path, cell in zip(paths, cells, strict=True):
        if cell == "":
            continue
        if path == ("measurement_id",):
            row.measurement_id = cell.strip()
        elif path[0] in ATTRIBUTES:
            row.attributes[path[0]] = cell.strip()
        else:
            place = row.patch
            for step in path[:-1]:
                place = place.setdefault(step, {})
            place[path[-1]] = _cell(path, cell)
    properties = row.patch.get("properties")
    if type(properties) is dict:
        for quantity in properties.values():
            if type(quantity) is dict and "value" in quantity:
                quantity.setdefault("unit", "")  # an empty cell: a number without unit
    return row


def _cell(path: _Path, cell: str) -> Json:
    """A cell by its field's type; what doesn't fit stays text, for validation to show."""
    if cell == _NULL:
        return None
    if path in _NUMBERS or (len(path) == 3 and path[2] == "value"):
        return _json_or_text(cell.strip()) if _NUMBER.fullmatch(cell.strip()) else cell
    if path in (("protocol",), ("test_setup",), ("properties",)) or path == ("protocol", "definition"):
        return _json_or_text(cell) if cell.lstrip().startswith("{") else cell
    if path[0] == "properties" and len(path) == 2 and cell in ("true", "false"):
        return cell == "true"
    return cell


def _json_or_text(text: str) -> Json:
    try:
        return read_json(text.encode()) if not deeper_than(_MAX_DEPTH, text.encode()) else text
    except NotJson:
        return text


# Rows → updates ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rules:
    """How rows become updates."""

    source: str
    batch: str
    form: Form
    max_event_bytes: int


class Updates:
    """Makes updates of rows, in the file's order. One for each pass over the file.

    An id that the row doesn't give is made of source, batch, measurement and *everything the file says about this
    measurement up to here*. So the same file again is all duplicates; rows added at its end are new; and after a row
    that was mended all later ones of its measurement are new, too: they must come after it again, or the mended one
    would be the last word.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._said: dict[str, bytes] = {}

    def message(self, row: Row) -> Message | None:
        """The record to send. None where the row can't be made one: `violations` says why."""
        if row.violations or envelope_faults(row, self._rules.form):
            return None
        attributes = dict(row.attributes)
        source = str(attributes.get("source", self._rules.source))
        id_ = str(attributes["id"]) if "id" in attributes else None
        revision = int(attributes["expectedrevision"]) if "expectedrevision" in attributes else None
        if self._rules.form == "bare":
            message = bare_update(row.measurement_id, row.patch)
            if TRACEPARENT in attributes:
                message.headers.append((TRACEPARENT, attributes[TRACEPARENT].encode()))
            return message
        build = structured_update if self._rules.form == "structured" else binary_update
        return build(
            row.measurement_id,
            row.patch,
            id=id_ or self._next_id(row, source, revision),
            source=source,
            expected_revision=revision,
            organization_id=attributes.get("organizationid"),
            traceparent=attributes.get(TRACEPARENT),
        )

    def _next_id(self, row: Row, source: str, revision: int | None) -> str:
        said = blake2b(self._said.get(row.measurement_id, b""), digest_size=16)
        said.update(canonical([row.patch, revision, row.attributes.get("organizationid")]))
        self._said[row.measurement_id] = said.digest()
        parts = [source, self._rules.batch, row.measurement_id, said.hexdigest()]
        return str(uuid.uuid5(_NAMESPACE, canonical(parts).decode()))


def violations(row: Row, message: Message | None, rules: Rules) -> list[Violation]:
    """Everything for which the worker would reject it whatever the database holds; none where it is right."""
    found = row.violations + envelope_faults(row, rules.form)
    if row.readable:
        found += violations_of(row.patch)[0]
    if message is not None and len(message.value) > rules.max_event_bytes:
        expected = f"at most {rules.max_event_bytes:,} bytes (WORKER_MAX_EVENT_BYTES)"
        found.append(Violation("$", expected, f"{len(message.value):,} bytes"))
    if message is not None and deeper_than(_MAX_DEPTH, message.value):
        found.append(Violation("$", f"objects and lists nested at most {_MAX_DEPTH} deep", "nested deeper"))
    return found


def envelope_faults(row: Row, form: Form) -> list[Violation]:
    """What is wrong beside the patch."""
    if not row.readable:
        return []
    faults = []
    if not _is_identifier(row.measurement_id):
        faults.append(
            Violation(
                "measurement_id", "a string that isn't empty, without U+0000", shortened(row.measurement_id)
            )
        )
    for name, value in row.attributes.items():
        if form == "bare" and name != TRACEPARENT:
            faults.append(Violation(name, "none: a bare event has no attributes", shortened(value)))
        elif name == "expectedrevision":
            digits = str(value) if type(value) in (int, str) else ""
            if not (digits.isascii() and digits.isdigit() and len(digits) <= 19 and int(digits) < 2**63):
                faults.append(Violation(name, "a revision: decimal digits, 0 to 2^63-1", shortened(value)))
        elif not _is_identifier(value):
            faults.append(Violation(name, "a string that isn't empty, without U+0000", shortened(value)))
    return faults


def _is_identifier(value: Any) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


def describe(line: int, faults: Iterable[Violation]) -> Iterator[str]:
    """`line 3: $.test_setup.channel_number: expected an integer …, found "25"`."""
    for fault in faults:
        yield f"line {line}: {fault.path}: expected {fault.expected}, found {canonical(fault.found).decode()}"
