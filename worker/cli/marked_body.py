"""A rejected body as a person reads it: indented, with a mark and what was expected beside each place that is wrong."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import orjson
from rich.padding import Padding
from rich.text import Text

from contracts.events import Violation
from contracts.json_values import Json, NotJson, deeper_than, json_path, read_json
from contracts.json_values import text as shorter
from contracts.patch import violations_of
from worker.cli.watch import printable
from worker.record import DecodeLimits

_LONGEST = 160
"""Characters of a value on one line."""
_PATH_CHARACTERS = 300
"""So long are paths in `rejection-detail`."""
_AROUND = 3
"""Lines shown around a mark in a long body."""
_BEFORE, _WIDTH = 30, 66
"""Of a long line that isn't JSON: so much is shown before the place that is wrong, and in all."""
_SHORT = 60
"""Lines that are shown whatever is in them."""


@dataclass(slots=True)
class Line:
    """One line of the body; `expected` where the value that begins on it is wrong."""

    text: str
    expected: list[str] = field(default_factory=list)
    column: int = 0
    """Of text, the place that is wrong."""


@dataclass(slots=True)
class Marked:
    """`elsewhere`: what is wrong outside of these lines (key, headers), or in what isn't there."""

    lines: list[Line]
    elsewhere: list[Violation]


def mark(value: bytes, *, structured: bool, violations: Sequence[Violation], total: int = 0) -> Marked:
    """Of a structured event the whole envelope is shown. `total`: how many violations there are, if not all are given.

    Never raises: what isn't JSON is shown as text, with a mark where reading it ended.
    """
    if not value:
        return Marked([], list(violations))
    try:
        if deeper_than(DecodeLimits().max_depth, value):
            raise NotJson("nested too deep")
        parsed = read_json(value)
    except NotJson as error:
        return _as_text(value, str(error), violations)
    body = parsed.get("data") if structured and isinstance(parsed, dict) else parsed
    if total > len(violations) and any(one.path.startswith("$") for one in violations):
        violations = violations_of(body)[0] or violations
    expected: dict[str, list[str]] = {}
    for one in violations:
        expected.setdefault(one.path, []).append(one.expected)
    placed: set[str] = set()
    if structured and isinstance(parsed, dict):
        lines = list(_envelope(parsed, expected, placed))
    else:
        lines = list(_value(parsed, (), "", "", expected, placed))
    return Marked(lines, [one for one in violations if one.path not in placed])


def _envelope(
    envelope: dict[str, Json], expected: Mapping[str, list[str]], placed: set[str]
) -> Iterator[Line]:
    """Attributes have names for paths, what is in `data` has paths of the body."""
    yield Line("{")
    for number, (name, member) in enumerate(envelope.items(), 1):
        comma = "," * (number < len(envelope))
        if name == "data":
            yield from _value(member, (), f'  "{name}": ', comma, expected, placed, indent="  ")
        else:
            # where it is about the measurement, too, a path names the header of the binary form
            wrong = [path for path in (name, f"ce_{name}") if path in expected]
            placed.update(wrong)
            attribute = {"$": [one for path in wrong for one in expected[path]]}
            yield from _value(member, (), f"  {_text(name)}: ", comma, attribute, set(), indent="  ")
    yield Line("}")


def _value(
    value: Json,
    steps: tuple[str | int, ...],
    before: str,
    after: str,
    expected: Mapping[str, list[str]],
    placed: set[str],
    indent: str = "",
) -> Iterator[Line]:
    path = shorter(json_path(*steps), _PATH_CHARACTERS)
    wrong = expected.get(path, [])
    if wrong:
        placed.add(path)
    members: list[tuple[str | int, Json]]
    if isinstance(value, dict) and value:
        brackets, members = "{}", list(value.items())
    elif isinstance(value, list) and value:
        brackets, members = "[]", list(enumerate(value))
    else:
        yield Line(f"{before}{_text(value)}{after}", [*wrong])
        return
    yield Line(f"{before}{brackets[0]}", [*wrong])
    inner = indent + "  "
    for number, (step, member) in enumerate(members, 1):
        name = f"{_text(step)}: " if isinstance(step, str) else ""
        comma = "," * (number < len(members))
        yield from _value(member, (*steps, step), inner + name, comma, expected, placed, inner)
    yield Line(f"{indent}{brackets[1]}{after}")


def _text(value: Json) -> str:
    """JSON, on one line, not too long, and without what would move the cursor."""
    written = orjson.dumps(value).decode()
    if len(written) > _LONGEST:
        written = f"{written[: _LONGEST - 40]}… ({len(written):,} characters)"
    return printable(written)


_PLACE = re.compile(r"line (\d+) column (\d+)")


def _as_text(value: bytes, why: str, violations: Sequence[Violation]) -> Marked:
    """What isn't JSON, with a mark under the place where reading ended."""
    place = _PLACE.search(why)
    number, column = (0, -1) if place is None else (int(place[1]) - 1, int(place[2]) - 1)
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        why = f"byte {error.start:,} isn't UTF-8"
        before = value[: error.start].decode()
        number, column = before.count("\n"), len(before) - (before.rfind("\n") + 1)
        text = value.decode("utf-8", "backslashreplace")
    lines = [Line(line) for line in text.split("\n")]
    is_placed = column >= 0 and number < len(lines)
    if is_placed:
        lines[number] = _around(lines[number].text, column, why)
    for line in lines:
        line.text = printable(line.text if len(line.text) <= _LONGEST else line.text[:_LONGEST] + "…")
    return Marked(lines, [one for one in violations if not is_placed or one.path != "$"])


def _around(text: str, column: int, why: str) -> Line:
    """The part of a long line that the place is in."""
    begin = max(0, min(column - _BEFORE, len(text) - _WIDTH))
    shown = (
        ("…" if begin else "") + text[begin : begin + _WIDTH] + ("…" if begin + _WIDTH < len(text) else "")
    )
    before = printable(text[begin:column])
    return Line(shown, [f"JSON: {why}"], len(before) + (begin > 0))


def rendered(marked: Marked, *, whole: bool = False) -> Iterator[Text | Padding]:
    """For a console: `✗` before a line that is wrong, what was expected beneath it. A long body without its quiet parts,
    unless `whole`."""
    lines = marked.lines
    shown = _shown(lines, whole)
    left_out = 0
    for number, line in enumerate(lines):
        if number not in shown:
            left_out += 1
            continue
        if left_out:
            yield Text(f"    … {left_out:,} lines (--whole shows them)", style="dim")
            left_out = 0
        if not line.expected:
            yield Text(f"    {line.text}")
            continue
        yield Text.assemble(("  ✗ ", "bold red"), (line.text, "red"))
        depth = len(line.text) - len(line.text.lstrip())
        if line.column:
            yield Text(" " * (4 + line.column) + "↑", style="yellow")
            depth = 0
        for expected in line.expected:
            arrow = "" if line.column else "↑ "
            text = Text(f"{arrow}expected {printable(expected)}", style="yellow")
            yield Padding(text, (0, 0, 0, 4 + depth), expand=False)
    if left_out:
        yield Text(f"    … {left_out:,} lines (--whole shows them)", style="dim")


def _shown(lines: Sequence[Line], whole: bool) -> set[int]:
    if whole or len(lines) <= _SHORT:
        return set(range(len(lines)))
    shown = set(range(_AROUND)) | {len(lines) - 1}
    marks = [number for number, line in enumerate(lines) if line.expected]
    for number in marks or range(_SHORT):
        shown.update(range(number - _AROUND, number + _AROUND + 1))
    return shown
