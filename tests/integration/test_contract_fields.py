"""What an update does to a measurement: absent and null, whole fields, what counts as a change, revision and updated_at."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.system import System

FULL: dict[str, Any] = {
    "name": "formation",
    "protocol": {"name": "CC", "ambient_temperature_degc": 25, "steps": [1, 2]},
    "test_setup": {"cycler": "MACCOR", "channel_number": 3, "rack": "A"},
    "notes": "before",
    "properties": {"thickness": {"value": 0.5, "unit": "mm"}},
}
OTHER: dict[str, Any] = {
    "name": "aging",
    "protocol": {"definition": "Charge at 1C"},
    "test_setup": {"lab": "Basel", "operator": None},
    "notes": "after",
    "properties": {"mass": {"value": 3, "unit": "g", "by": "scale"}, "ok": True, "text": "", "none": None},
}
FIELDS = list(FULL)


async def test_absent_leaves_null_clears_and_a_value_replaces_the_whole_field(lab: System) -> None:
    cases: dict[str, dict[str, Any]] = {f"{field}-null": {field: None} for field in FIELDS}
    cases |= {f"{field}-other": {field: OTHER[field]} for field in FIELDS}
    cases |= {"all-null": dict.fromkeys(FIELDS), "all-other": OTHER}
    for id in cases:
        await lab.seed(id, measurement_type="properties", **FULL)
    async with lab.worker():
        records = [await lab.update(id, patch, id="e-1") for id, patch in cases.items()]
        answers = await lab.answers_to(*records)
    for (id, patch), answer in zip(cases.items(), answers, strict=True):
        # a measurement always has a name: null leaves it
        written = {field: value for field, value in patch.items() if (field, value) != ("name", None)}
        expected = {**FULL, **written}
        assert {field: answer.model[field] for field in FIELDS} == expected, id
        row = await lab.row(id)
        assert {field: row[field] for field in FIELDS} == expected, id
        assert answer.changed == list(written), id
        assert answer.revision == row["revision"] == bool(written), id


async def test_an_empty_object_is_accepted_and_changes_nothing(lab: System) -> None:
    before = datetime(2025, 1, 1, tzinfo=UTC)
    for number in range(3):
        await lab.seed(f"m-{number}", updated_at=before, **FULL)
    async with lab.worker():
        records = [
            await lab.update("m-0", {}, id="e-1"),
            await lab.structured("m-1", {}, id="e-1"),
            await lab.publish("m-2", {}),
        ]
        answers = await lab.answers_to(*records)
    for answer in answers:
        assert (answer.changed, answer.revision) == ([], 0)
        assert datetime.fromisoformat(answer.model["updated_at"]) == before
        assert answer.text("ce_time") == answer.model["updated_at"]
        assert {field: answer.model[field] for field in FIELDS} == FULL
    for row in await lab.rows():
        assert (row["revision"], row["updated_at"]) == (0, before)


EQUAL: dict[str, tuple[dict[str, Any], bytes]] = {
    "the same text": ({"notes": "a"}, b'{"notes": "a"}'),
    "null where there is none": ({"notes": None}, b'{"notes": null}'),
    "the present name": ({"name": "n"}, b'{"name": "n"}'),
    "key order": ({"protocol": {"a": 1, "b": {"c": 1, "d": 2}}}, b'{"protocol":{"b":{"d":2,"c":1},"a":1}}'),
    "3 and 3.0": ({"protocol": {"n": 3}}, b'{"protocol":{"n":3.0}}'),
    "3.0 and 3": ({"protocol": {"n": 3.0}}, b'{"protocol":{"n":3}}'),
    "3e2 and 300": ({"protocol": {"n": 300}}, b'{"protocol":{"n":3e2}}'),
    "0 and -0.0": ({"protocol": {"n": 0}}, b'{"protocol":{"n":-0.0}}'),
    "1e22 as digits": ({"protocol": {"n": 1e22}}, b'{"protocol":{"n":1e22}}'),
    "a tiny double": ({"protocol": {"n": 5e-324}}, b'{"protocol":{"n":5e-324}}'),
    "a channel as a double": (
        {"test_setup": {"channel_number": 7}},
        b'{"test_setup":{"channel_number":7.0}}',
    ),
    "escapes": ({"notes": "\u00b5/"}, b'{"notes":"\\u00b5\\/"}'),
}
DIFFERENT: dict[str, tuple[dict[str, Any], bytes]] = {
    "true and 1": ({"protocol": {"n": 1}}, b'{"protocol":{"n":true}}'),
    "false and 0": ({"protocol": {"n": [0]}}, b'{"protocol":{"n":[false]}}'),
    "1 and true": ({"protocol": {"n": True}}, b'{"protocol":{"n":1}}'),
    "3 and the text 3": ({"protocol": {"n": 3}}, b'{"protocol":{"n":"3"}}'),
    "null and absent": ({"protocol": {"n": None}}, b'{"protocol":{}}'),
    "absent and null": ({"protocol": {}}, b'{"protocol":{"n":null}}'),
    "list order": ({"protocol": {"n": [1, 2]}}, b'{"protocol":{"n":[2,1]}}'),
    "neighbours beyond 2^53": ({"protocol": {"n": 2**53}}, b'{"protocol":{"n":9007199254740993}}'),
    "neighbouring doubles": ({"protocol": {"n": 0.1}}, b'{"protocol":{"n":0.10000000000000002}}'),
    "no object and an empty one": ({"protocol": None}, b'{"protocol":{}}'),
    "none and empty text": ({"notes": None}, b'{"notes":""}'),
    "unicode forms": ({"notes": "\u00e9"}, b'{"notes":"e\\u0301"}'),
}


async def test_writing_the_value_that_is_there_is_no_change_as_json_values_go(lab: System) -> None:
    for name, (columns, _) in (EQUAL | DIFFERENT).items():
        await lab.seed(name, **columns)
    async with lab.worker():
        equal = [await lab.update(name, patch, id="e-1") for name, (_, patch) in EQUAL.items()]
        different = [await lab.update(name, patch, id="e-1") for name, (_, patch) in DIFFERENT.items()]
        verdicts = dict(zip(EQUAL, await lab.verdicts(*equal), strict=True))
        assert verdicts == dict.fromkeys(EQUAL, "0")
        verdicts = dict(zip(DIFFERENT, await lab.verdicts(*different), strict=True))
    assert verdicts == {name: f"1 {next(iter(columns))}" for name, (columns, _) in DIFFERENT.items()}


async def test_numbers_come_back_as_the_values_that_were_sent(lab: System) -> None:
    literals = [
        "9223372036854775807", "-9223372036854775808", "18446744073709551615", "9007199254740993",
        "1e22", "1.7976931348623157e308", "5e-324", "1e-400", "-0.0", "0.1", "3.0", "1E2", "2.5e-7",
    ]  # fmt: skip
    await lab.seed("m-1")
    value = f'{{"protocol": {{"n": [{",".join(literals)}]}}}}'.encode()
    async with lab.worker():
        [first] = await lab.answers_to(await lab.update("m-1", value, id="e-1"))
        # now they have been through the database
        [second] = await lab.answers_to(await lab.update("m-1", {"notes": "x"}, id="e-2"))
    expected = [
        2**63 - 1, -(2**63), 2**64 - 1, 2**53 + 1,
        1e22, 1.7976931348623157e308, 5e-324, 0, 0, 0.1, 3, 100, 2.5e-7,
    ]  # fmt: skip
    assert first.model["protocol"]["n"] == second.model["protocol"]["n"] == expected
    kinds = [type(number) for number in first.model["protocol"]["n"]]
    assert kinds == [int, int, int, int, float, float, float, int, int, float, int, int, float]


async def test_updated_at_is_the_arrival_of_the_record_and_never_goes_back(lab: System) -> None:
    future = datetime.now(UTC).replace(microsecond=7) + timedelta(days=400)
    await lab.seed("m-1", updated_at=datetime(2020, 1, 1, tzinfo=UTC))
    await lab.seed("m-2", updated_at=future)
    async with lab.worker():
        records = []
        for number in range(3):
            records.append(await lab.update("m-1", {"notes": str(number)}, id=f"e-{number}"))
            records.append(await lab.update("m-2", {"notes": str(number)}, id=f"e-{number}"))
        answers = await lab.answers_to(*records)
    for record, answer in zip(records, answers, strict=True):
        updated_at = datetime.fromisoformat(answer.model["updated_at"])
        if answer.key == b"m-1":
            assert updated_at.timestamp() * 1000 == record.timestamp
        else:
            assert updated_at == future
    assert [answer.revision for answer in answers] == [1, 1, 2, 2, 3, 3]
    assert (await lab.row("m-2"))["updated_at"] == future


async def test_revision_rises_by_one_only_where_something_changed(lab: System) -> None:
    await lab.seed("m-1", revision=41)
    patches: list[dict[str, Any]] = [
        {"notes": "a", "name": "b"},
        {"notes": "a"},
        {"name": None},
        {"properties": None},
        {"notes": None, "protocol": {}},
        {"notes": None},
    ]
    async with lab.worker():
        records = [await lab.update("m-1", patch, id=f"e-{n}") for n, patch in enumerate(patches)]
        assert await lab.verdicts(*records) == ["42 name,notes", "42", "42", "42", "43 protocol,notes", "43"]
        assert (await lab.row("m-1"))["revision"] == 43


BOUNDS: dict[str, dict[str, Any]] = {
    "one character": {"name": "x"},
    "255 characters of four bytes": {"name": "\U0001f50b" * 255},
    "known keys may be null": {
        "protocol": {"name": None, "ambient_temperature_degc": None, "definition": None},
        "test_setup": {"cycler": None, "operator": None, "lab": None, "channel_number": None},
    },
    "a definition as an object": {"protocol": {"definition": {"steps": [{"c": [[]]}]}}},
    "a definition as text": {"protocol": {"definition": "line\r\nline"}},
    "the widest channels": {"test_setup": {"channel_number": -(2**63)}},
    "empty objects": {"protocol": {}, "test_setup": {}},
    "empty notes": {"notes": ""},
    "properties of every kind": {"properties": OTHER["properties"]},
    "no properties": {"properties": {}},
}


async def test_what_the_patch_schema_allows_is_applied(lab: System) -> None:
    for id in BOUNDS:
        await lab.seed(id, measurement_type="properties")
    async with lab.worker():
        records = [await lab.update(id, patch, id="e-1") for id, patch in BOUNDS.items()]
        verdicts = await lab.verdicts(*records)
    assert dict(zip(BOUNDS, verdicts, strict=True)) == {
        id: f"1 {','.join(patch)}" for id, patch in BOUNDS.items()
    }
    for id, patch in BOUNDS.items():
        row = await lab.row(id)
        assert {field: row[field] for field in patch} == patch


@pytest.mark.parametrize("measurement_type", ["time_series", "file"])
async def test_properties_are_for_measurements_of_their_type_only(lab: System, measurement_type: str) -> None:
    await lab.seed("m-1", measurement_type=measurement_type)
    await lab.seed("m-2", measurement_type=measurement_type, properties={"left": "by REST"})
    async with lab.worker():
        records = [
            await lab.update("m-1", {"properties": {}}, id="e-1"),
            await lab.update("m-1", {"properties": {"a": "b"}, "notes": "x"}, id="e-2"),
            await lab.update("m-1", {"properties": None}, id="e-3"),
            await lab.update("m-2", {"properties": None, "notes": "x"}, id="e-4"),
        ]
        assert await lab.verdicts(*records) == [
            "properties_not_allowed",
            "properties_not_allowed",
            "0",
            "1 notes,properties",
        ]
        detail = (await lab.answers_to(records[0]))[0].detail
    assert detail["violations"][0]["path"] == "$.properties"
    assert measurement_type in detail["message"]
    assert (await lab.row("m-1"))["notes"] is None
