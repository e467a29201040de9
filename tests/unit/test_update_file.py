"""Rows of a file → updates: what each notation means, what is wrong where, and which ids they get."""

import io
from collections.abc import Mapping

import orjson
import pytest

from contracts.cloudevents import Message
from worker.cli.update_file import Rules, Updates, describe, violations
from worker.cli.update_rows import Format, Row, read_rows

RULES = Rules(source="tests", batch="file", form="binary", max_event_bytes=1024**2)


def rows(text: str | bytes, format: Format = "csv") -> list[Row]:
    return list(read_rows(io.BytesIO(text.encode() if isinstance(text, str) else text), format))


def patches(text: str) -> list[object]:
    return [row.patch for row in rows(text)]


def faults(text: str | bytes, format: Format = "csv", rules: Rules = RULES) -> list[str]:
    updates = Updates(rules)
    return [
        line
        for row in rows(text, format)
        for line in describe(row.line, violations(row, updates.message(row), rules))
    ]


def ids(*bodies: Mapping[str, object], rules: Rules = RULES) -> list[str]:
    text = b"\n".join(orjson.dumps(body) for body in bodies)
    updates = Updates(rules)
    return [_id(updates.message(row)) for row in rows(text, "jsonl")]


def _id(message: Message | None) -> str:
    assert message is not None
    return dict(message.headers)["ce_id"].decode()


def test_an_empty_cell_is_absent_and_backslash_n_is_null() -> None:
    text = "measurement_id,name,notes,test_setup.cycler\nm-1,,\\N,\nm-2,n,,\\N\n"
    assert patches(text) == [{"notes": None}, {"name": "n", "test_setup": {"cycler": None}}]


def test_cells_take_their_fields_types() -> None:
    header = (
        "measurement_id,test_setup.channel_number,protocol.ambient_temperature_degc,notes,properties.vented"
    )
    assert patches(f"{header}\nm-1,25,-20.5,25,true\n") == [
        {
            "test_setup": {"channel_number": 25},
            "protocol": {"ambient_temperature_degc": -20.5},
            "notes": "25",
            "properties": {"vented": True},
        }
    ]


def test_a_quantity_has_two_columns_and_may_have_no_unit() -> None:
    header = "measurement_id,properties.a.b.value,properties.a.b.unit,properties.ratio.value,properties.label"
    assert patches(f"{header}\nm-1,0.52,µm,3,x.y\n") == [
        {
            "properties": {
                "a.b": {"value": 0.52, "unit": "µm"},
                "ratio": {"value": 3, "unit": ""},
                "label": "x.y",
            }
        }
    ]


def test_a_whole_field_may_be_json() -> None:
    text = 'measurement_id;test_setup;protocol.definition\nm-1;"{""lab"": ""B2""}";"{""steps"": [1]}"\nm-2;\\N;Rest\n'
    assert patches(text) == [
        {"test_setup": {"lab": "B2"}, "protocol": {"definition": {"steps": [1]}}},
        {"test_setup": None, "protocol": {"definition": "Rest"}},
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_spreadsheets_delimiters_byte_order_marks_and_line_ends(delimiter: str) -> None:
    text = f"\ufeffmeasurement_id{delimiter}notes\r\nm-1{delimiter}ok\r\n"
    assert [(row.measurement_id, row.patch) for row in rows(text)] == [("m-1", {"notes": "ok"})]


def test_a_row_is_named_by_the_line_on_which_it_begins() -> None:
    text = 'measurement_id,notes,colour.x\nm-1,"a\nb",\n'
    assert faults(text)[0].startswith("line 1: header: expected measurement_id, id, source")
    text = 'measurement_id,notes,test_setup.channel_number\nm-1,"a\nb",\n\nm-2,,abc\nm-3,x\n'
    assert faults(text) == [
        'line 5: $.test_setup.channel_number: expected an integer of at most 64 bits, or null, found "abc"',
        "line 6: $: expected 3 cells, as the header has, found 2",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("notes\nx\n", "a column measurement_id"),
        ("measurement_id,notes,notes\nm,a,b\n", "each column once"),
        ("measurement_id,protocol,protocol.name\nm,,a\n", "either protocol or protocol.…, not both"),
        ("measurement_id,properties.a,properties.a.value\nm,x,1\n", "either a value or .value and .unit"),
        ("measurement_id,properties.a.value,properties.a\nm,1,x\n", "either a value or .value and .unit"),
        (b"measurement_id,notes\nm-1,\xb5\n", "UTF-8"),
        (b"measurement_id,\xb5\nm-1,x\n", "UTF-8"),
        ('measurement_id,notes\nm-1,"open\n', "a row of CSV"),
    ],
)
def test_what_is_wrong_with_a_csv_is_said(text: str | bytes, said: str) -> None:
    [line] = faults(text)
    assert said in line


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"measurement_id": "m", "patch": {}, "notes": "x"}', "nothing beside measurement_id, patch"),
        ('{"measurement_id": "m", "colour": 1}', "no such field"),
        ('{"measurement_id": 5, "notes": "x"}', "measurement_id: expected a string"),
        ('{"measurement_id": "m", "expectedrevision": -1}', "a revision"),
        ('{"measurement_id": "m", "expectedrevision": true}', "a revision"),
        ('{"measurement_id": "m", "notes": NaN}', "one JSON object a line"),
        ('{"measurement_id": "m", "notes": "\\u0000"}', "without the character U+0000"),
        ('{"measurement_id": "m", "organizationid": ""}', "organizationid: expected a string"),
        ('{"measurement_id": "m", "patch": ' + "[" * 200 + "]" * 200 + "}", "nested deeper"),
        ('{"measurement_id": "m", "patch": null}', "an object"),
        ("[]", "a JSON object"),
    ],
)
def test_what_is_wrong_with_a_line_of_json_is_said(line: str, said: str) -> None:
    [found] = faults(line, "jsonl")
    assert found.startswith("line 1: ")
    assert said in found


def test_all_that_is_wrong_with_a_row_is_said() -> None:
    line = '{"measurement_id": "", "patch": {"name": "", "notes": 1}, "expectedrevision": "x", "colour": 1}'
    assert len(faults(line, "jsonl")) == 5


def test_what_is_too_large_for_the_worker_is_said_before_it_is_sent() -> None:
    line = orjson.dumps({"measurement_id": "m", "notes": "x" * 1024**2})
    [found] = faults(line, "jsonl")
    assert "at most 1,048,576 bytes (WORKER_MAX_EVENT_BYTES)" in found


def test_a_bare_event_has_no_attributes() -> None:
    rules = Rules("tests", "file", "bare", 1024**2)
    line = '{"measurement_id": "m", "id": "e-1", "traceparent": "00-1-2-01", "notes": "x"}'
    assert ["id: expected none" in found for found in faults(line, "jsonl", rules)] == [True]


def test_ids_are_the_same_each_time_and_others_in_another_batch() -> None:
    body: dict[str, object] = {"measurement_id": "m-1", "notes": "x"}
    assert ids(body) == ids(body)
    assert ids(body) != ids(body, rules=Rules("tests", "another", "binary", 1024**2))
    assert ids(body) != ids(body, rules=Rules("others", "file", "binary", 1024**2))


def test_the_same_words_twice_are_two_events() -> None:
    on, off = ({"measurement_id": "m-1", "notes": notes} for notes in ("on", "off"))
    assert len(set(ids(on, off, on))) == 3


def test_ids_follow_from_what_the_file_says_about_the_measurement_up_to_there() -> None:
    first, second, other = (
        {"measurement_id": "m-1", "notes": "1"},
        {"measurement_id": "m-1", "notes": "2"},
        {"measurement_id": "m-2", "notes": "1"},
    )
    before = ids(first, second)
    assert ids(first, other, second) == [before[0], ids(other)[0], before[1]]  # others don't count
    mended = ids({"measurement_id": "m-1", "notes": "mended"}, second)
    assert not set(mended) & set(before)  # what comes later must come again, after the mended one


def test_an_id_that_is_given_is_kept() -> None:
    assert ids({"measurement_id": "m-1", "id": "e-1", "notes": "x"}) == ["e-1"]
