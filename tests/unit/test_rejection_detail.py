"""rejection_detail: JSON that always fits, whatever it has to tell."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.events import MAX_DETAIL_BYTES, Violation, rejection_detail
from contracts.json_values import shortened

ONE = Violation("$.name", "a string of 1 to 255 characters, or null", 5)


def test_it_is_json_of_message_violations_and_total() -> None:
    assert json.loads(rejection_detail("The name is wrong.", [ONE], 7)) == {
        "message": "The name is wrong.",
        "violations": [
            {"path": "$.name", "expected": "a string of 1 to 255 characters, or null", "found": 5}
        ],
        "total": 7,
    }


def test_without_violations_it_has_an_empty_list() -> None:
    assert json.loads(rejection_detail("No such measurement.")) == {
        "message": "No such measurement.",
        "violations": [],
        "total": 0,
    }


def test_total_is_never_less_than_what_is_there() -> None:
    assert json.loads(rejection_detail("x", [ONE, ONE]))["total"] == 2


def test_as_many_violations_as_fit_are_told_in_order_and_the_total_of_all() -> None:
    many = [Violation(f"$.properties.p{n}", "a Quantity", n) for n in range(5000)]
    rendered = rejection_detail("x", many, 90_000)
    detail = json.loads(rendered)
    assert detail["total"] == 90_000
    assert [v["found"] for v in detail["violations"]] == list(range(len(detail["violations"])))
    one_more = len(json.dumps(detail["violations"][-1], separators=(",", ":"))) + 10
    assert MAX_DETAIL_BYTES - one_more < len(rendered) <= MAX_DETAIL_BYTES


@pytest.mark.parametrize("character", ["x", "µ", "🔋", "\x1f", '"', "\\", "\0", "\udcff"])
def test_one_giant_violation_and_message_still_fit(character: str) -> None:
    giant = character * 1_000_000
    rendered = rejection_detail(
        giant, [Violation(giant, giant, giant), Violation(giant, giant, {giant: [giant]})]
    )
    assert len(rendered) <= MAX_DETAIL_BYTES
    detail = json.loads(rendered)
    assert len(detail["violations"]) >= 1
    assert detail["total"] == 2
    assert "\0" not in json.dumps(detail, ensure_ascii=False)


@pytest.mark.parametrize(
    "found",
    [None, True, 5, 0.5, 2**70, 1e22, float("nan"), b"\xff\0", {"a": [1]}, {1: 2}, object(), {"a\0": "\0"}],
)
def test_any_found_value_can_be_shown(found: Any) -> None:
    rendered = rejection_detail("x", [Violation("key", "y", found)])
    (violation,) = json.loads(rendered)["violations"]
    assert len(json.dumps(violation["found"])) < 400
    assert b"u0000" not in rendered.replace(rb"\\u0000", b"")


def test_small_values_are_shown_as_they_are() -> None:
    for found in (None, True, 5, 0.5, "x", [1, 2], {"value": 1}):
        assert shortened(found) == found


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.text(max_size=300) | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_what_is_shortened_already_stays_as_it_is(value: Any) -> None:
    assert shortened(shortened(value)) == shortened(value)
