"""The rows of a file of measurement updates, JSON Lines or CSV: one by one, in bounded memory."""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import IO, Literal

from contracts.events import Violation
from contracts.json_values import Json, NotJson, deeper_than, read_json, shortened
from contracts.patch import CellMeasurementPatch

Format = Literal["jsonl", "csv"]

ATTRIBUTES = ("id", "source", "expectedrevision", "organizationid", "traceparent")
"""What a row may say beside the measurement and the patch."""
MAX_DEPTH = 100
"""Of what the worker takes."""
_FIELDS = tuple(CellMeasurementPatch.model_fields)


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
        if deeper_than(MAX_DEPTH + 1, text):
            raise NotJson(f"nested deeper than {MAX_DEPTH}")
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
        return read_json(text.encode()) if not deeper_than(MAX_DEPTH, text.encode()) else text
    except NotJson:
        return text
