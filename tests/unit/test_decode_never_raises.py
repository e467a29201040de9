"""decode is total: whatever record arrives, it gives an update or a rejection that can be rendered."""

import json
from collections import Counter
from random import Random
from typing import Any

import orjson
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from contracts.cloudevents import structured_update
from contracts.envelope import Form
from contracts.events import MAX_DETAIL_BYTES, rejection_detail
from contracts.json_values import NotJson, canonical, deeper_than, read_json
from contracts.patch import holds_nul, validate_patch, violations_of
from tests.unit.test_decode import ID, Received, record
from worker.decode import decode
from worker.record import DecodeLimits, Rejection, Update

LIMITS = DecodeLimits()
HEADERS = [
    *("content-type", "traceparent", "requeued-from", "reapply", "ce_", "other", "caf\udce9", ""),
    *("ce_specversion", "ce_type", "ce_id", "ce_source", "ce_subject", "ce_time", "ce_traceparent"),
    *("ce_expectedrevision", "ce_organizationid", "ce_revision"),
]
CONTENTS = [
    *(b"1.0", b"cell_measurement.update.v1", b"application/json", b"application/cloudevents+json"),
    *(b"application/cloudevents-batch+json", b"m-1", b"e-1", b"7", b"measurement-updates/1/9@5", b"x/1/9@5"),
    *(b"", b"\0", b"\xff", b"9" * 5000, None),
]
SNIPPETS = [
    *(
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b"\\u0000",
        b"\\ud800",
        b"NaN",
        b"1e400",
        b"3.0",
        b"-0.0",
    ),
    *(b"9" * 23, b"1e22", b"\xff", b"\xef\xbb\xbf", b"\0", b"null", b'"name":5,', b'"a":{},', b"[" * 120),
]
FORMS: list[Form] = ["binary", "structured", "bare"]
GOOD: list[dict[str, Any]] = [
    {},
    {"notes": 'cell\r\nvented \u00b5\u00b0\U0001f50b \\ "'},
    {
        "name": "LFP-0042",
        "test_setup": {"cycler": "BCS-815", "channel_number": 17, "rack": [1.5, {"row": None}]},
    },
    {"properties": {"thickness": {"value": 0.52, "unit": "mm"}, "vented": False, "batch": "B12", "x": None}},
    {
        "protocol": {
            "ambient_temperature_degc": 25.5,
            "definition": {"steps": [{"rate": 0.1, "until": 3.65}] * 3},
        }
    },
]
headers = st.lists(
    st.tuples(st.sampled_from(HEADERS), st.sampled_from(CONTENTS) | st.binary(max_size=8)), max_size=9
)
keys = st.sampled_from([b"m-1", b"", b"m-2", b"\xff", b"\0", None]) | st.binary(max_size=8)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | st.text(max_size=8) | st.sampled_from(["\0", "m-1", "mm"])
names = st.text(max_size=4) | st.sampled_from(
    ["name", "value", "unit", "channel_number", "definition", "lab", "x\0"]
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
fields = st.sampled_from(["name", "protocol", "test_setup", "notes", "properties", "nmae"])
quantities = st.fixed_dictionaries({"value": scalars, "unit": scalars})
bodies = st.dictionaries(
    fields, json_values | st.dictionaries(names, quantities | json_values, max_size=3), max_size=4
)


def check(received: Received) -> str:
    decoded = decode(received, received.timestamp, LIMITS)
    if isinstance(decoded, Rejection):
        assert decoded.violations
        detail = rejection_detail(decoded.message, decoded.violations, decoded.total)
        assert len(detail) <= MAX_DETAIL_BYTES
        assert json.loads(detail)["total"] == decoded.total
        return decoded.code
    assert isinstance(decoded, Update)
    assert decoded.measurement_id
    assert decoded.source
    assert decoded.id
    assert len(decoded.identity) == len(decoded.content) == 16
    # What is accepted reads back as it was: no parser downstream sees another value.
    assert read_json(canonical(decoded.patch)) == decoded.patch
    assert not holds_nul(decoded.patch)
    return "applicable"


def mutant(random: Random) -> Received:
    """A good event with bytes put in, cut out or doubled, and headers lost, doubled or replaced."""
    event = record(random.choice(FORMS), random.choice(GOOD))
    value, received = event.value or b"", list(event.headers)
    for _ in range(random.choice([0, 1, 1, 2, 4])):
        start, end = sorted((random.randrange(len(value) + 1), random.randrange(len(value) + 1)))
        piece = random.choice([*SNIPPETS, value[start:end], random.randbytes(3)])
        value = value[:start] + piece + value[random.choice([start, start, min(start + 1, end), end]) :]
    for _ in range(random.choice([0, 0, 1, 2, 3])):
        if received and random.random() < 0.3:
            received.pop(random.randrange(len(received)))
        else:
            received.append((random.choice(HEADERS), random.choice([*CONTENTS, random.randbytes(3)])))
    key = random.choice([event.key] * 8 + [None, b"", b"m-2", b"\xff", b"\0", b"k" * 70_000])
    kept = value if random.random() < 0.98 else random.choice([None, b""])
    return Received(
        kept, key, tuple(received), partition=random.choice([0, 2**31]), offset=random.randrange(2**63)
    )


def test_no_mutated_event_makes_it_raise() -> None:
    random = Random(20_260_101)
    seen = Counter[str]()
    for _ in range(20_000):
        received = mutant(random)
        try:
            seen[check(received)] += 1
        except Exception as error:
            raise AssertionError(f"{received!r} made it raise") from error
    for outcome in (
        "applicable",
        "empty_event",
        "too_large",
        "invalid_event",
        "invalid_json",
        "invalid_patch",
    ):
        assert seen[outcome] > 20, seen


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=40) | st.none(), keys, headers)
def test_no_random_record_makes_it_raise(value: bytes | None, key: bytes | None, received: list[Any]) -> None:
    check(Received(value, key, tuple(received)))


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(bodies | json_values)
@example({"properties": {"a": {"value": "x", "unit": "\0"}, "b\0": 1}})
def test_violations_are_there_exactly_where_the_schema_is_broken_and_one_a_place(body: Any) -> None:
    body = read_json(orjson.dumps(body))
    try:
        validate_patch(body)
        broken = holds_nul(body)
    except ValueError:
        broken = True
    violations, total = violations_of(body)
    assert bool(violations) == broken
    assert total == len(violations) == len({violation.path for violation in violations})


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(st.sampled_from(["protocol", "notes"]), st.dictionaries(names, json_values, max_size=4))
)
def test_content_is_that_of_the_value_however_it_is_written(body: Any) -> None:
    def digest(value: bytes) -> bytes | None:
        decoded = decode(Received(value, headers=record().headers), 0, LIMITS)
        return decoded.content if isinstance(decoded, Update) else None

    plain = digest(orjson.dumps(body))
    assert digest(json.dumps(body, indent=1).encode()) == plain
    assert digest(orjson.dumps(dict(reversed(body.items())), option=orjson.OPT_INDENT_2)) == plain
    structured = structured_update(ID, body, id="e-1", source="s")
    decoded = decode(Received(structured.value, headers=tuple(structured.headers)), 0, LIMITS)
    assert (decoded.content if isinstance(decoded, Update) else None) == plain


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.from_regex(r"-?(0|[1-9][0-9]{0,21})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?", fullmatch=True))
@example("9007199254740992.9")
@example("99999999999999.95")
@example("0.999999999999999")
def test_numbers_read_as_a_slow_and_plain_reading_has_them(literal: str) -> None:
    try:
        found = read_json(b'{"a":[%b]}' % literal.encode())["a"][0]
    except NotJson:
        found = None
    expected: float | None
    if set(literal) & set(".eE"):
        expected = float(literal)
        if expected in (float("inf"), float("-inf")):
            expected = None
        elif expected == int(expected) and -(2**63) <= int(expected) < 2**64:
            expected = int(expected)
    else:
        expected = int(literal) if -(2**63) <= int(literal) < 2**64 else None
    assert (found, type(found)) == (expected, type(expected))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(json_values, st.integers(0, 6))
def test_depth_is_that_of_the_value(value: Any, depth: int) -> None:
    def depth_of(value: Any) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
        return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)

    for written in (orjson.dumps(value), json.dumps(value, indent=2).encode()):
        assert deeper_than(depth, written) == (depth_of(value) > depth)
