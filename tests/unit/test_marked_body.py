"""A rejected body with its marks: each beside the place that is wrong, whatever the body is."""

from typing import Any

import orjson
import pytest
from hypothesis import given

from contracts.events import Violation
from contracts.json_values import read_json
from contracts.patch import violations_of
from tests.unit.test_decode_never_raises import bodies, json_values
from worker.case_list import common
from worker.cli.marked_body import Marked, mark, rendered


def marked_of(body: Any) -> Marked:
    value = orjson.dumps(body)
    violations, total = violations_of(read_json(value))
    return mark(value, structured=False, violations=violations, total=total)


def marks(marked: Marked) -> dict[str, list[str]]:
    """Line without indentation → what was expected there."""
    return {line.text.strip(" ,"): line.expected for line in marked.lines if line.expected}


def test_each_place_that_is_wrong_has_its_mark_on_the_line_where_it_begins() -> None:
    marked = marked_of(
        {
            "nmae": "x",
            "test_setup": {"cycler": "BCS-815", "channel_number": "25"},
            "properties": {"a b": 0.5, "mass": {"value": "1", "unit": "g"}, "ok": True},
            "protocol": [1],
        }
    )
    found = marks(marked)
    assert list(found) == [
        '"nmae": "x"',
        '"channel_number": "25"',
        '"a b": 0.5',
        '"value": "1"',
        '"protocol": [',
    ]
    assert found['"channel_number": "25"'] == ["an integer of at most 64 bits, or null"]
    assert marked.elsewhere == []
    assert (
        "\n".join(line.text for line in marked.lines)
        .replace("\n", "")
        .replace(" ", "")
        .startswith('{"nmae":')
    )


def test_a_body_that_is_no_object_has_its_mark_at_the_beginning() -> None:
    assert list(marks(marked_of([1, 2]))) == ["["]
    assert list(marks(marked_of("text"))) == ['"text"']


def test_of_an_envelope_attributes_and_body_are_marked() -> None:
    envelope = {"specversion": "1.0", "id": "", "expectedrevision": "6", "data": {"name": 5, "id": 1}}
    violations = [
        Violation("id", "a string that isn't empty", ""),
        Violation("$.name", "a string", 5),
        Violation("source", "a string", None),
        Violation("ce_expectedrevision", "7", 6),
        Violation("key", "an id", None),
    ]
    marked = mark(orjson.dumps(envelope), structured=True, violations=violations)
    assert marks(marked) == {
        '"id": ""': ["a string that isn't empty"],
        '"expectedrevision": "6"': ["7"],
        '"name": 5': ["a string"],
    }
    assert [one.path for one in marked.elsewhere] == ["source", "key"]


@pytest.mark.parametrize(
    ("value", "line", "column"),
    [
        (b'{"a": 1,\n "notes": NaN}', ' "notes": NaN}', 10),
        (b'{"a":"\xe4"}', r'{"a":"\xe4"}', 6),
        (b'{"a":1,\n\n "b":"\xc3\xa4\xff"}', r' "b":"ä\xff"}', 7),
    ],
)
def test_what_is_not_json_is_marked_where_reading_ended(value: bytes, line: str, column: int) -> None:
    marked = mark(value, structured=False, violations=[Violation("$", "JSON", None)])
    [wrong] = [line for line in marked.lines if line.expected]
    assert (wrong.text, wrong.column) == (line, column)
    assert marked.elsewhere == []


def test_a_long_body_is_shown_around_its_marks_only() -> None:
    marked = marked_of({"properties": {f"p{number}": 1.5 if number == 77 else "x" for number in range(300)}})
    shown = [str(getattr(line, "renderable", line)) for line in rendered(marked)]
    assert len(shown) < 20
    assert any('✗   "p77": 1.5' in line.replace("    ", "  ") for line in shown)
    assert sum("lines (--whole shows them)" in line for line in shown) == 2
    assert len(list(rendered(marked, whole=True))) == len(marked.lines) + 1


def test_all_violations_are_marked_where_the_detail_had_no_room_for_them() -> None:
    body = {"properties": {f"p{number}": number for number in range(50)}}
    violations, total = violations_of(body)
    assert (
        len(marks(mark(orjson.dumps(body), structured=False, violations=violations[:3], total=total))) == 50
    )


def test_what_would_move_the_cursor_is_escaped() -> None:
    for value in (b'{"notes": "\x9b2J\xe2\x80\xae"}', '{"notes": "\u009b2J\u202e"}'.encode(), b"\x1b[2J\x07"):
        marked = mark(value, structured=False, violations=[])
        assert all(line.text.isprintable() for line in marked.lines)


@given(json_values | bodies)
def test_every_violation_of_any_body_is_marked_or_named(body: Any) -> None:
    value = orjson.dumps(body)
    violations, total = violations_of(read_json(value))
    marked = mark(value, structured=False, violations=violations, total=total)
    assert sum(len(line.expected) for line in marked.lines) + len(marked.elsewhere) >= len(violations)
    assert all(line.text.isprintable() for line in marked.lines)


def test_messages_of_one_kind_are_the_same_without_what_is_the_events_own() -> None:
    assert common("There is no measurement 'm-17'.") == common("There is no measurement 'm-4711'.")
    assert common("The value isn't JSON: unexpected character: line 1 column 13 (char 12).") == (
        "The value isn't JSON: unexpected character: line … column … (char …)."
    )
    schema = "The body breaks the PATCH schema in {}: $.{}: expected an integer of at most 64 bits, or null, found {}."
    first = schema.format("in 3 places, the first", "test_setup.channel_number", '"25"')
    assert common(first) == common(
        schema.format("in 12 places, the first", "test_setup.channel_number", "[1, 'x']")
    )
    assert common(first) == common(schema.format("in one place", "test_setup.channel_number", "1.5"))
    assert "at most 64 bits" in common(first)
    assert common(first) != common(schema.format("in 3 places, the first", "test_setup.lab", '"25"'))
    assert "SQLSTATE 23514" in common("The database refuses this event's data: check (SQLSTATE 23514).")
