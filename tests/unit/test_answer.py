"""A rejected record goes back whole, or as much of it as its topic takes, and says what is missing; what is too large is
never taken for what surely fits."""

import hashlib

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_plan import LogRecord
from worker.answer import (
    AnswerForm,
    UpdatedAnswer,
    rejected_answer,
    stored_rejection,
    wire_size,
)
from worker.measurement import MOST_GROWTH, excess_in_database
from worker.record import Rejection

WHOLE = bytes(range(256)) * 400


def rejection(key: bytes | None, value: bytes | None, headers: int) -> Rejection:
    record = LogRecord("u", 0, 7, 1, 1, key, value, (("x", b"h" * headers),) if headers else ())
    return Rejection(record, 1, "invalid_json", "no")


@pytest.mark.parametrize("key", [0, 20_000, 65_537])
@pytest.mark.parametrize("headers", [0, 40_000, 65_537])
@pytest.mark.parametrize("value", [0, 50_000, len(WHOLE)])
@pytest.mark.parametrize("limit", [32 * 1024, 60_000, 150_000, 8 * 1024**2])
def test_whatever_was_rejected_fits_its_topic(key: int, headers: int, value: int, limit: int) -> None:
    form = AnswerForm("u", "a", "r", "s", max_rejected_bytes=limit)
    received = rejection(b"k" * key, WHOLE[:value], headers)
    stored = stored_rejection(received, form)
    answer = rejected_answer(stored, form, 0)
    assert wire_size(answer.key, answer.value, answer.headers) <= limit
    assert WHOLE[:value].startswith(answer.value or b"")
    whole = (answer.key, answer.value, stored.header_names) == (
        b"k" * key,
        WHOLE[:value],
        [b"x"] * (headers > 0),
    )
    if stored.truncated is None:
        assert whole
        return
    assert not whole
    said = orjson.loads(stored.truncated)
    assert said["length"] == value
    assert said["sha256"] == hashlib.sha256(WHOLE[:value]).hexdigest()
    missing = ["key"] * (stored.key is None) + ["headers"] * (headers > 0 and not stored.header_names)
    assert said.get("left_out", []) == missing
    # nothing is left out, and nothing cut, that had room
    if not said.get("left_out"):
        assert wire_size(answer.key, answer.value, answer.headers) == limit


def test_a_null_key_and_a_null_value_stay_null() -> None:
    answer = rejected_answer(
        stored_rejection(rejection(None, None, 0), AnswerForm("u", "a", "r", "s")),
        AnswerForm("u", "a", "r", "s"),
        0,
    )
    assert (answer.key, answer.value) == (None, None)


_TEXTS = st.text(st.characters(codec="utf-8"), max_size=300)


@given(
    topic=_TEXTS, source=_TEXTS, id=_TEXTS, traceparent=st.none() | _TEXTS, ours=_TEXTS, measurement=_TEXTS
)
def test_no_answer_is_larger_than_the_quick_count_says(
    topic: str, source: str, id: str, traceparent: str | None, ours: str, measurement: str
) -> None:
    latest = 2**63 - 1
    answer = UpdatedAnswer(
        offset=latest,
        topic="a",
        key=measurement.encode(),
        value=b"{}",
        arrival=latest,
        previous=None,
        updates_topic=topic,
        partition=latest,
        source=source,
        id=id,
        traceparent=traceparent,
        updated_at="9999-12-31T23:59:59.999999Z",
        revision=latest,
        changed="name,protocol,test_setup,notes,properties",
        answer_source=ours,
    )
    assert wire_size(answer.key, answer.value, answer.headers) <= answer.most_wire_size()


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1)
    | st.just([5e-324, 1e-7, 1e22, -1e308])
)
def test_no_text_grows_more_in_the_database_than_is_reckoned_with(numbers: list[float]) -> None:
    text = orjson.dumps(numbers)
    assert len(text) + excess_in_database(text) <= len(text) * MOST_GROWTH
