"""decode: JSON as the contract reads it, the PATCH body, and the content digest."""

import json
from typing import Any

import pytest

from contracts.cloudevents import binary_update, structured_update
from contracts.events import MAX_DETAIL_BYTES, rejection_detail
from contracts.json_values import read_json
from contracts.patch import CellMeasurementPatch
from tests.unit.test_decode import ID, Received, accepted, received, record, rejected
from worker.decode import decode
from worker.record import DecodeLimits, Rejection


def of(value: str | bytes) -> Received:
    """A binary event with this very value."""
    return Received(value.encode() if isinstance(value, str) else value, headers=record().headers)


def in_definition(literal: str) -> Received:
    """A JSON value in a place where every JSON value may stand."""
    return of(f'{{"protocol":{{"definition":{{"x":{literal}}}}}}}')


def read(literal: str) -> Any:
    return accepted(in_definition(literal)).patch["protocol"]["definition"]["x"]


def places(body: Any) -> dict[str, Any]:
    """Path → what was found there."""
    rejection = rejected(of(json.dumps(body)))
    assert rejection.code == "invalid_patch"
    found = {violation.path: violation.found for violation in rejection.violations}
    assert len(found) == rejection.total, "one violation a place"
    return found


# JSON


@pytest.mark.parametrize(
    "value",
    [
        b"\xef\xbb\xbf{}",
        b'{"notes":"\xff"}',
        '{"notes":"\ud800"}'.encode("utf-8", "surrogatepass"),
        rb'{"notes":"\ud800"}',
        rb'{"notes":"\udc00"}',
        rb'{"\ud800x":1}',
        "{}".encode("utf-16"),
        b"{",
        b"",
        b" ",
        b"{}{}",
        b"{} x",
        b"{'notes':1}",
        b'{"notes":"a\nb"}',
        b'{"notes":"\0"}',
        b"{}\0",
        b'{"notes":1,}',
        b"\x0b{}",
        b"// c\n{}",
        b"<html>",
        b"\x00\x00\x00\x00\x05magic",
    ],
)
def test_what_is_no_json_in_utf8_is_invalid_json(value: bytes) -> None:
    assert rejected(of(value)).code == ("invalid_json" if value else "empty_event")


@pytest.mark.parametrize(
    "literal",
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "1e400",
        "-1e400",
        "1" * 400,
        "9" * 23,
        "18446744073709551616",
        "-9223372036854775809",
        "-" + "1" * 40,
        "1" * 100_000,
        "01",
        "+1",
        ".5",
        "1.",
        "0x1",
        "1_000",
        "nan",
        "True",
    ],
)
def test_what_is_no_number_of_64_bits_or_double_is_invalid_json(literal: str) -> None:
    assert rejected(in_definition(literal)).code == "invalid_json"
    assert rejected(in_definition("[" + literal + "]")).code == "invalid_json"
    message = structured_update(ID, {"notes": "@"}, id="e", source="s")
    value = message.value.replace(b'"@"', literal.encode())
    assert rejected(received(message._replace(value=value))).code == "invalid_json"


def test_a_number_out_of_range_counts_also_where_a_duplicate_key_hides_it() -> None:
    assert rejected(of('{"notes":%s,"notes":"x"}' % ("9" * 23))).code == "invalid_json"


def test_many_digits_in_a_string_are_no_number() -> None:
    assert accepted(of('{"notes":"%s 1e400 NaN 3.0"}' % ("9" * 400))).patch["notes"].startswith("999")


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
        ("18446744073709551615", 2**64 - 1),
        ("9007199254740993", 2**53 + 1),
        ("-0", 0),
        ("3.0", 3),
        ("-3.000", -3),
        ("-0.0", 0),
        ("0.0e5", 0),
        ("1e2", 100),
        ("1E+2", 100),
        ("1.5e1", 15),
        ("100e-2", 1),
        ("1e-400", 0),
        ("-1e-400", 0),
        ("1e18", 10**18),
        ("9007199254740992.5", 2**53),
        ("0.99999999999999999999", 1),
        ("18446744073709551615.0", 1.8446744073709552e19),
        ("18446744073709549568.0", 18446744073709549568),
        ("-9223372036854775808.0", -(2**63)),
        ("1e19", 10**19),
        ("1e22", 1e22),
        ("-1e19", -1e19),
        ("0.5", 0.5),
        ("3.05", 3.05),
        ("1e-5", 1e-5),
        ("123456789.000001", 123456789.000001),
        ("1.7976931348623157e308", 1.7976931348623157e308),
        ("5e-324", 5e-324),
    ],
)
def test_numbers_without_a_fraction_that_fit_64_bits_are_integers_and_exact(
    literal: str, value: float
) -> None:
    for text, found in [(literal, read(literal)), (f"[{literal}]", read(f"[[{literal}]]")[0][0])]:
        assert (found, type(found)) == (value, type(value)), text
    assert read(f'{{"a":[{{"b":{literal}}}]}}')["a"][0]["b"] == value
    assert read_json(literal.encode()) == value


@pytest.mark.parametrize("gap", ["", " ", "\n", " \t\r\n", " " * 50])
@pytest.mark.parametrize("before", ["", '"at 25.0 °C",', '"25.0",', '"1.0 2.0",' * 10])
def test_a_whole_number_is_one_wherever_it_stands(gap: str, before: str) -> None:
    found = read(f"[{before}{gap}-3.0{gap},{gap}4.00]")
    assert [(value, type(value)) for value in found[-2:]] == [(-3, int), (4, int)]
    assert read(f'{{"a":{gap}3.0}}') == {"a": 3}
    assert type(read(f'{{"a":{gap}3.0}}')["a"]) is int
    assert type(read_json(f"{gap}3.0".encode())) is int


def test_of_duplicate_keys_the_last_one_counts() -> None:
    assert accepted(of('{"notes":5,"notes":"x"}')).patch == {"notes": "x"}
    assert rejected(of('{"notes":"x","notes":5}')).code == "invalid_patch"
    assert rejected(of('{"notes":"x","notes":5}')).violations[0].found == 5


# U+0000


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (r'{"name":"a\u0000"}', "$.name"),
        (r'{"notes":"\u0000"}', "$.notes"),
        (r'{"protocol":{"definition":"\u0000"}}', "$.protocol.definition"),
        (
            r'{"protocol":{"definition":{"steps":[{"a":1},{"b":["x","\u0000"]}]}}}',
            "$.protocol.definition.steps[1].b[1]",
        ),
        (r'{"protocol":{"a\u0000b":1}}', r"$.protocol['a\u0000b']"),
        (r'{"properties":{"\u0000":{"value":1,"unit":"mm"}}}', r"$.properties['\u0000']"),
        (r'{"properties":{"a":{"value":1,"unit":"\u0000"}}}', "$.properties.a.unit"),
        (r'{"test_setup":{"x":{"y\u0000":null}}}', r"$.test_setup.x['y\u0000']"),
    ],
)
def test_nul_anywhere_is_an_invalid_patch_with_its_place(value: str, path: str) -> None:
    rejection = rejected(of(value))
    assert rejection.code == "invalid_patch"
    assert [violation.path for violation in rejection.violations] == [path]
    assert "U+0000" in rejection.message


def test_nul_is_told_beside_other_violations_and_once_a_place() -> None:
    found = [v.path for v in rejected(of(r'{"notes":"\u0000","x\u0000":"\u0000","name":""}')).violations]
    assert found == ["$.notes", r"$['x\u0000']", "$.name"]


def test_an_escaped_backslash_before_u0000_is_no_nul() -> None:
    assert accepted(of(r'{"notes":"\\u0000"}')).patch == {"notes": r"\u0000"}


def test_nul_in_an_unknown_extension_is_ignored_with_it() -> None:
    message = structured_update(ID, {}, id="e", source="s")
    value = message.value.replace(b'"id"', rb'"comment":"\u0000","id"')
    assert accepted(received(message._replace(value=value))).patch == {}


# The PATCH body

QUANTITY = {"value": 0.52, "unit": "mm"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": None, "protocol": None, "test_setup": None, "notes": None, "properties": None},
        {"name": "x"},
        {"name": "µ" * 255},
        {"notes": ""},
        {"notes": "line\r\nline \u00b0 \U0001f50b"},
        {"protocol": {}},
        {"protocol": {"name": None, "ambient_temperature_degc": None, "definition": None}},
        {
            "protocol": {
                "name": "",
                "ambient_temperature_degc": -20,
                "definition": {},
                "further": [1, {"a": None}],
            }
        },
        {"protocol": {"ambient_temperature_degc": 25.5, "definition": "text"}},
        {"protocol": {"ambient_temperature_degc": 1e22}},
        {"test_setup": {}},
        {"test_setup": {"cycler": None, "operator": None, "lab": None, "channel_number": None}},
        {
            "test_setup": {
                "cycler": "a",
                "operator": "b",
                "lab": "c",
                "channel_number": 3.0,
                "rack": {"row": 2},
            }
        },
        {"test_setup": {"channel_number": 2**64 - 1}},
        {"test_setup": {"channel_number": -(2**63)}},
        {"properties": {}},
        {"properties": {"a": "x", "b": True, "c": False, "d": None, "e": QUANTITY, "": ""}},
        {"properties": {"e": {"value": 1, "unit": "", "further": {"deep": [1]}}}},
    ],
)
def test_accepted_bodies_come_through_as_they_are(body: dict[str, Any]) -> None:
    assert accepted(of(json.dumps(body))).patch == body
    assert CellMeasurementPatch.model_validate_json(json.dumps(body)).model_fields_set == body.keys()


def test_absent_is_not_null() -> None:
    assert accepted(of('{"notes":null}')).patch == {"notes": None}
    assert accepted(of("{}")).patch == {}
    assert CellMeasurementPatch.model_validate({"notes": None}).model_dump(exclude_unset=True) == {
        "notes": None
    }


@pytest.mark.parametrize(
    ("body", "path", "expected"),
    [
        ([], "$", "an object"),
        ("x", "$", "an object"),
        (None, "$", "an object"),
        (5, "$", "an object"),
        ({"name": ""}, "$.name", "a string of 1 to 255 characters, or null"),
        ({"name": "x" * 256}, "$.name", "a string of 1 to 255 characters, or null"),
        ({"name": 5}, "$.name", "a string of 1 to 255 characters, or null"),
        ({"notes": True}, "$.notes", "a string or null"),
        ({"notes": ["x"]}, "$.notes", "a string or null"),
        ({"protocol": "x"}, "$.protocol", "an object or null"),
        ({"protocol": []}, "$.protocol", "an object or null"),
        ({"protocol": {"name": 1}}, "$.protocol.name", "a string or null"),
        ({"protocol": {"ambient_temperature_degc": "25"}}, "$.protocol.ambient_temperature_degc", "a number"),
        ({"protocol": {"ambient_temperature_degc": True}}, "$.protocol.ambient_temperature_degc", "a number"),
        ({"protocol": {"definition": 5}}, "$.protocol.definition", "an object, a string or null"),
        ({"protocol": {"definition": [{"a": 1}]}}, "$.protocol.definition", "an object, a string or null"),
        ({"test_setup": True}, "$.test_setup", "an object or null"),
        ({"test_setup": {"cycler": 1}}, "$.test_setup.cycler", "a string or null"),
        ({"test_setup": {"operator": {}}}, "$.test_setup.operator", "a string or null"),
        ({"test_setup": {"lab": 1.5}}, "$.test_setup.lab", "a string or null"),
        ({"test_setup": {"channel_number": "7"}}, "$.test_setup.channel_number", "an integer"),
        ({"test_setup": {"channel_number": 7.5}}, "$.test_setup.channel_number", "an integer"),
        ({"test_setup": {"channel_number": 1e22}}, "$.test_setup.channel_number", "an integer"),
        ({"test_setup": {"channel_number": True}}, "$.test_setup.channel_number", "an integer"),
        ({"properties": "x"}, "$.properties", "an object or null"),
        ({"properties": []}, "$.properties", "an object or null"),
        ({"properties": {"a": 0.52}}, "$.properties.a", "a Quantity"),
        ({"properties": {"a": 3}}, "$.properties.a", "a Quantity"),
        ({"properties": {"a": [1]}}, "$.properties.a", "a Quantity"),
        ({"properties": {"a": {}}}, "$.properties.a", "a Quantity"),
        ({"properties": {"a": {"value": 1}}}, "$.properties.a", "a Quantity"),
        ({"properties": {"a": {"unit": "mm"}}}, "$.properties.a", "a Quantity"),
        ({"properties": {"a": {"value": "0.52", "unit": "mm"}}}, "$.properties.a.value", "a number"),
        ({"properties": {"a": {"value": None, "unit": "mm"}}}, "$.properties.a.value", "a number"),
        ({"properties": {"a": {"value": True, "unit": "mm"}}}, "$.properties.a.value", "a number"),
        ({"properties": {"a": {"value": 1, "unit": None}}}, "$.properties.a.unit", "a string"),
        ({"properties": {"a": {"value": 1, "unit": 2}}}, "$.properties.a.unit", "a string"),
        (
            {"nmae": "x"},
            "$.nmae",
            "no such field; the fields are name, protocol, test_setup, notes, properties",
        ),
        ({"id": "m-1"}, "$.id", "no such field"),
        ({"": 1}, "$['']", "no such field"),
    ],
)
def test_each_rule_of_the_body_is_told_with_its_place(body: Any, path: str, expected: str) -> None:
    rejection = rejected(of(json.dumps(body)))
    assert rejection.code == "invalid_patch"
    (violation,) = rejection.violations
    assert violation.path == path
    assert expected in violation.expected
    assert path in rejection.message
    assert "in one place" in rejection.message


def test_all_violations_are_told_one_a_place() -> None:
    body = {
        "nmae": "x",
        "name": 5,
        "protocol": {"name": 1, "definition": 2},
        "properties": {
            "ok": QUANTITY,
            "batch": "B12",
            "vented": True,
            "supplier": None,
            "length": 1,
            "width": {"value": "1", "unit": 2},
            "list": [],
        },
    }
    assert "in 8 places" in rejected(of(json.dumps(body))).message
    assert places(body) == {
        "$.nmae": "x",
        "$.name": 5,
        "$.protocol.name": 1,
        "$.protocol.definition": 2,
        "$.properties.length": 1,
        "$.properties.width.value": "1",
        "$.properties.width.unit": 2,
        "$.properties.list": [],
    }


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("thickness", "$.properties.thickness"),
        ("größe_2", "$.properties.größe_2"),
        ("a b", "$.properties['a b']"),
        ("it's", r"$.properties['it\'s']"),
        ("back\\slash", r"$.properties['back\\slash']"),
        ("tab\t\x1f", r"$.properties['tab\t\u001f']"),
        ("2x", "$.properties['2x']"),
        ("", "$.properties['']"),
        ("a.b", "$.properties['a.b']"),
        ("Quantity", "$.properties.Quantity"),
    ],
)
def test_keys_that_are_no_identifiers_are_quoted_in_a_path(key: str, path: str) -> None:
    assert list(places({"properties": {key: 1}})) == [path]


def test_what_is_found_is_shown_in_short() -> None:
    (found,) = places({"name": "x" * 5000}).values()
    assert found.startswith("xxx")
    assert found.endswith("… (5,000 characters)")
    (found,) = places({"notes": {"a": "y" * 5000}}).values()
    assert found.startswith('{"a":"yyy')
    assert len(found) < 200
    (path,) = places({"k" * 5000: 1})
    assert len(path) < 100


@pytest.mark.parametrize(
    "value",
    [
        b"{" + b",".join(b'"a%d":1' % n for n in range(50_000)) + b"}",
        b'{"properties":{' + b",".join(b'"a%d":1' % n for n in range(50_000)) + b"}}",
        b'{"properties":{' + b",".join(b'"a%d":{}' % n for n in range(50_000)) + b"}}",
        rb'{"notes":"\u0000","protocol":{"x":[' + b",".join([rb'"\u0000"'] * 49_999) + b"]}}",
    ],
)
def test_violations_by_the_ten_thousand_are_counted_and_the_first_told(value: bytes) -> None:
    rejection = decode(of(value), 0, DecodeLimits())
    assert isinstance(rejection, Rejection)
    assert rejection.total == 50_000
    assert len(rejection.violations) <= 400
    detail = rejection_detail(rejection.message, rejection.violations, rejection.total)
    assert len(detail) <= MAX_DETAIL_BYTES
    assert json.loads(detail)["total"] == 50_000
    assert len(json.loads(detail)["violations"]) > 50


def test_a_megabyte_of_notes_is_accepted() -> None:
    notes = "x" * (1024**2 - len('{"notes":""}'))
    assert accepted(of(f'{{"notes":"{notes}"}}')).patch["notes"] == notes


# The content digest


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"name":"a","notes":"b"}', '{ "notes" : "b",\r\n\t"name" : "a" }'),
        ('{"test_setup":{"channel_number":3}}', '{"test_setup":{"channel_number":3.0}}'),
        ('{"protocol":{"x":[100,0,1]}}', '{"protocol":{"x":[1e2,-0.0,1.0E0]}}'),
        ('{"protocol":{"x":0.1}}', '{"protocol":{"x":0.1000000000000000055}}'),
        ('{"notes":"µ/\\""}', '{"notes":"\\u00b5\\/\\u0022"}'),
        ('{"notes":"a"}', '{"notes":1,"notes":"a"}'),
        ('{"protocol":{"x":0}}', '{"protocol":{"x":1e-400}}'),
        ('{"protocol":{"b":{"d":1,"c":2},"a":1}}', '{"protocol":{"a":1,"b":{"c":2,"d":1}}}'),
    ],
)
def test_content_is_equal_for_equal_json_values(one: str, other: str) -> None:
    assert accepted(of(one)).content == accepted(of(other)).content


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"notes":"a"}', '{"notes":"b"}'),
        ('{"notes":"a"}', '{"name":"a"}'),
        ('{"notes":null}', "{}"),
        ('{"protocol":{"x":true}}', '{"protocol":{"x":1}}'),
        ('{"protocol":{"x":false}}', '{"protocol":{"x":0}}'),
        ('{"protocol":{"x":null}}', '{"protocol":{}}'),
        ('{"protocol":{"x":"1"}}', '{"protocol":{"x":1}}'),
        ('{"protocol":{"x":[1,2]}}', '{"protocol":{"x":[2,1]}}'),
        ('{"protocol":{"x":9007199254740993}}', '{"protocol":{"x":9007199254740992}}'),
        ('{"protocol":{"x":{}}}', '{"protocol":{"x":[]}}'),
        ('{"notes":"é"}', '{"notes":"e\u0301"}'),
    ],
)
def test_content_differs_for_different_json_values(one: str, other: str) -> None:
    assert accepted(of(one)).content != accepted(of(other)).content


def test_content_is_the_same_in_every_form_and_for_every_identity() -> None:
    body = {"notes": "x", "test_setup": {"channel_number": 3.0}}
    contents = {accepted(record(form, body)).content for form in ("binary", "structured", "bare")}
    contents.add(accepted(received(binary_update("m-2", body, id="e-9", source="t"))).content)
    assert len(contents) == 1


def test_content_includes_the_expected_revision() -> None:
    plain, at_0, at_7 = (accepted(record(expected_revision=revision)).content for revision in (None, 0, 7))
    assert len({plain, at_0, at_7}) == 3
    assert accepted(record("structured", expected_revision=7)).content == at_7
    assert accepted(record().having("ce_expectedrevision", b"007")).content == at_7


def test_content_digests_are_those_that_databases_hold() -> None:
    # They are stored for months: if a new orjson writes doubles in another way, it must not come in unnoticed.
    body = '{"notes":"µ \\u007f\\n","protocol":{"x":[0.1,1e22,1.5e-7,1e-5,123456789.125,5e-324,-2.5,18446744073709551615]}}'
    assert accepted(of(body)).content.hex() == "13cf2f338df30621d2b99cfd861bceef"
    assert accepted(record(expected_revision=7)).content.hex() == "80c66235824d6bf2a79ec16f6d035779"
    assert accepted(record()).identity.hex() == "e2ac8a7dc59f712f7256aae20df5f22a"
