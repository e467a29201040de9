"""What is sent again: key, headers and value as they were, or with another body; never with what made it wrong."""

from typing import Any

import orjson
import pytest

from contracts.cloudevents import UpdateRejected
from worker.record import DecodeLimits
from worker.repair import CantRequeue, WrongBody, body_of, foreseen, to_send, with_body

LIMITS = DecodeLimits(max_event_bytes=1_000)
STRUCTURED = ("content-type", b"Application/CloudEvents+JSON; charset=utf-8")


def rejected(value: bytes | None, *headers: tuple[str, bytes | None]) -> UpdateRejected:
    return UpdateRejected(
        "invalid_patch", "m", (), 0, "updates", 3, 17, 1_000, None, b"m-1", value, tuple(headers)
    )  # fmt: skip


def test_headers_go_as_they_were_with_the_first_position() -> None:
    sent = to_send(rejected(b"{}", ("ce_id", b"1"), ("odd", None), ("\\xff", b"x"), ("ce_id", b"2")), b"{}")
    assert sent.headers == (
        ("ce_id", b"1"), ("odd", None), ("\\xff", b"x"), ("ce_id", b"2"),
        ("requeued-from", b"updates/3/17@1000"),
    )  # fmt: skip
    assert (sent.key, sent.value) == (b"m-1", b"{}")


@pytest.mark.parametrize(
    ("stated", "sent"),
    [
        (b"updates/0/2@5", b"updates/0/2@5"),
        (b"elsewhere/0/2@5", b"updates/3/17@1000"),
        (b"nonsense", b"updates/3/17@1000"),
        (None, b"updates/3/17@1000"),
    ],
)
def test_the_first_position_that_is_there_is_kept_unless_it_is_what_is_wrong(
    stated: bytes | None, sent: bytes
) -> None:
    headers = to_send(rejected(b"{}", ("requeued-from", stated)), b"{}").headers
    assert headers == (("requeued-from", sent),)


def test_a_body_replaces_the_value_or_the_data_of_an_envelope() -> None:
    assert with_body(rejected(b"nonsense"), b'{"notes": "x"}', LIMITS) == b'{"notes": "x"}'
    envelope = {"specversion": "1.0", "id": "1", "data": [1], "mine": {"kept": True}}
    value = with_body(rejected(orjson.dumps(envelope), STRUCTURED), b'{"notes": "x"}', LIMITS)
    assert orjson.loads(value) == {**envelope, "data": {"notes": "x"}}
    with pytest.raises(CantRequeue, match="isn't a CloudEvent"):
        with_body(rejected(b"[", STRUCTURED), b"{}", LIMITS)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b'{"nmae": "x"}', "$.nmae"),
        (b'{"notes": "\\u0000"}', "$.notes"),
        (b"[]", "$"),
        (b"{", "$"),
        (b'{"notes": "%b"}' % (b"x" * 1_000), "$"),
        (b'{"protocol":' + b'{"a":' * 100 + b"{}" + b"}" * 101, "$"),
    ],
)
def test_a_wrong_body_is_refused_with_the_places(body: bytes, path: str) -> None:
    with pytest.raises(WrongBody) as refused:
        with_body(rejected(b"{}"), body, LIMITS)
    assert [one.path for one in refused.value.violations] == [path]


@pytest.mark.parametrize(
    ("value", "headers", "text"),
    [
        (b'{"notes":1}', (), b'{\n  "notes": 1\n}'),
        (b'{"id":"1","data":{"notes":1}}', (STRUCTURED,), b'{\n  "notes": 1\n}'),
        (b"{nonsense", (), b"{nonsense"),
        (None, (), b""),
    ],
)
def test_the_body_to_repair_is_indented_where_it_can_be(
    value: bytes | None, headers: Any, text: bytes
) -> None:
    assert body_of(rejected(value, *headers)) == text


def test_what_would_be_rejected_again_for_its_form_is_foreseen() -> None:
    assert foreseen(to_send(rejected(b'{"notes": "x"}'), b'{"notes": "x"}'), LIMITS) is None
    assert foreseen(to_send(rejected(b'{"notes": 1}'), b'{"notes": 1}'), LIMITS) == "invalid_patch"
    assert foreseen(to_send(rejected(None), None), LIMITS) == "empty_event"
