"""What publishers build, the worker reads; what the worker sends, subscribers read."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from contracts import cloudevents, events
from contracts.cloudevents import (
    Message,
    UnreadableEvent,
    bare_update,
    binary_update,
    read_rejected,
    read_updated,
    structured_update,
)
from contracts.envelope import read_update
from contracts.events import Violation, rejection_detail

MODEL: dict[str, Any] = {
    "id": "m-1",
    "cell_instance_id": "c-1",
    "name": "LFP-0042",
    "protocol": None,
    "start_time": None,
    "test_setup": {"cycler": "BCS-815"},
    "step_labels_validated": False,
    "notes": "µ",
    "measurement_type": "time_series",
    "properties": None,
    "file_metadata": None,
    "organization_id": None,
    "created_by": None,
    "created_by_email": None,
    "created_at": "2026-01-01T00:00:00+00:00",
    "updated_at": "2026-01-02T03:04:05.678000+00:00",
}
UPDATED: dict[str, bytes | None] = {
    "ce_specversion": b"1.0",
    "ce_type": b"cell_measurement.updated.v1",
    "ce_id": b"measurement-updates/3/42@1760000000000",
    "ce_source": b"measurement-update-worker",
    "ce_subject": b"m-1",
    "ce_time": b"2026-01-02T03:04:05.678Z",
    "content-type": b"application/json",
    "ce_revision": b"7",
    "ce_changed": b"notes,test_setup",
    "ce_causationid": b"e-1",
    "ce_causationsource": b"/cycler/7",
}
REJECTED: dict[str, bytes | None] = {
    "rejection-code": b"invalid_patch",
    "rejection-detail": rejection_detail("The name is wrong.", [Violation("$.name", "a string", 5)], 3),
    "rejection-topic": b"measurement-updates",
    "rejection-partition": b"3",
    "rejection-offset": b"42",
    "rejection-timestamp": b"1760000000000",
}


def headers(of: Mapping[str, bytes | None]) -> list[tuple[str, bytes | None]]:
    return list(of.items())


@pytest.mark.parametrize("build", [binary_update, structured_update])
def test_what_a_publisher_builds_is_what_the_worker_reads(build: Any) -> None:
    message: Message = build(
        "m-µ",
        {"notes": None},
        id="e-1",
        source="/cycler/7",
        expected_revision=7,
        organization_id="lab-1",
        traceparent="00-ab-cd-01",
        time=datetime(2026, 1, 1, tzinfo=UTC),
    )
    envelope = read_update(message.key, dict(message.headers), message.value)
    assert (envelope.measurement_id, envelope.id, envelope.source) == ("m-µ", "e-1", "/cycler/7")
    assert (envelope.expected_revision, envelope.organization_id) == (7, "lab-1")
    assert envelope.traceparent == "00-ab-cd-01"
    body = envelope.data if envelope.form == "structured" else json.loads(message.value)
    assert body == {"notes": None}


def test_a_built_event_names_its_time() -> None:
    time = datetime(2026, 1, 1, tzinfo=UTC)
    binary = binary_update("m-1", {}, id="e", source="s", time=time)
    structured = structured_update("m-1", {}, id="e", source="s", time=time)
    assert dict(binary.headers)["ce_time"] == b"2026-01-01T00:00:00+00:00"
    assert json.loads(structured.value)["time"] == "2026-01-01T00:00:00+00:00"


def test_attributes_that_are_not_given_are_not_there() -> None:
    names = {name for name, _ in binary_update("m-1", {}, id="e", source="s").headers}
    assert names == {"content-type", "ce_specversion", "ce_type", "ce_id", "ce_source", "ce_subject"}
    members = json.loads(structured_update("m-1", {}, id="e", source="s").value).keys()
    assert members == {"specversion", "type", "id", "source", "subject", "datacontenttype", "data"}


def test_a_bare_update_is_key_and_body_alone() -> None:
    assert bare_update("m-1", {"notes": "x"}) == (b"m-1", b'{"notes":"x"}', [])


def test_an_updated_event_is_read_whole() -> None:
    event = read_updated(b"m-1", json.dumps(MODEL).encode(), [*headers(UPDATED), ("traceparent", b"t")])
    assert (event.id, event.source) == ("measurement-updates/3/42@1760000000000", "measurement-update-worker")
    assert event.time == event.measurement.updated_at
    assert (event.measurement_id, event.revision) == ("m-1", 7)
    assert event.changed == ("notes", "test_setup")
    assert (event.causation_id, event.causation_source, event.traceparent) == ("e-1", "/cycler/7", "t")
    assert event.measurement.test_setup == {"cycler": "BCS-815"}


def test_an_updated_event_that_changed_nothing_names_no_field() -> None:
    event = read_updated(b"m-1", json.dumps(MODEL).encode(), headers({**UPDATED, "ce_changed": b""}))
    assert event.changed == ()
    assert event.traceparent is None


@pytest.mark.parametrize("name", [name for name in UPDATED if name not in ("ce_specversion", "content-type")])
def test_an_updated_event_without_an_attribute_is_unreadable(name: str) -> None:
    lacking = {key: value for key, value in UPDATED.items() if key != name}
    with pytest.raises(UnreadableEvent, match=name):
        read_updated(b"m-1", json.dumps(MODEL).encode(), headers(lacking))


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b"{}"])
def test_an_updated_event_without_a_measurement_is_unreadable(value: bytes | None) -> None:
    with pytest.raises(UnreadableEvent, match="cell measurement"):
        read_updated(b"m-1", value, headers(UPDATED))


@pytest.mark.parametrize(
    ("name", "value"), [("ce_revision", b"x"), ("ce_time", b"yesterday"), ("ce_id", b"\xff")]
)
def test_an_updated_event_with_a_broken_attribute_is_unreadable(name: str, value: bytes) -> None:
    with pytest.raises(UnreadableEvent):
        read_updated(b"m-1", json.dumps(MODEL).encode(), headers({**UPDATED, name: value}))


def test_a_rejected_record_is_what_was_received_and_why() -> None:
    received: list[tuple[str, bytes | None]] = [("ce_id", b"e-1"), ("odd", b"\xff"), ("null", None)]
    rejected = read_rejected(b"m-1", b"{", [*received, *headers(REJECTED)])
    assert (rejected.code, rejected.message, rejected.total) == ("invalid_patch", "The name is wrong.", 3)
    assert rejected.violations == (Violation("$.name", "a string", 5),)
    assert (rejected.topic, rejected.partition, rejected.offset) == ("measurement-updates", 3, 42)
    assert rejected.timestamp == 1_760_000_000_000
    assert (rejected.key, rejected.value, rejected.headers) == (b"m-1", b"{", tuple(received))
    assert rejected.truncated is None
    assert rejected.first_position == "measurement-updates/3/42@1760000000000"


def test_a_record_rejected_twice_keeps_its_first_position() -> None:
    rejected = read_rejected(
        b"m-1", b"{", [("requeued-from", b"measurement-updates/1/9@5"), *headers(REJECTED)]
    )
    assert rejected.first_position == "measurement-updates/1/9@5"


def test_a_position_that_cannot_be_read_is_not_kept() -> None:
    for broken in (None, b"x", b"measurement-updates/1/9@5\xff", b"another/1/9@5"):
        rejected = read_rejected(b"m-1", b"{", [("requeued-from", broken), *headers(REJECTED)])
        assert rejected.first_position == "measurement-updates/3/42@1760000000000"


def test_a_truncated_value_says_so() -> None:
    truncated = b'{"length":9,"sha256":"ab","left_out":["key"]}'
    rejected = read_rejected(None, b"{", headers({**REJECTED, "rejection-truncated": truncated}))
    assert rejected.truncated == {"length": 9, "sha256": "ab", "left_out": ["key"]}


@pytest.mark.parametrize("name", list(REJECTED))
def test_a_rejected_record_without_its_reason_is_unreadable(name: str) -> None:
    lacking = {key: value for key, value in REJECTED.items() if key != name}
    with pytest.raises(UnreadableEvent, match=name):
        read_rejected(b"m-1", b"{", headers(lacking))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rejection-code", b"unheard_of"),
        ("rejection-detail", b"{"),
        ("rejection-detail", b"[]"),
        ("rejection-detail", b'{"message":"x","violations":[5],"total":1}'),
        ("rejection-offset", b"x"),
    ],
)
def test_a_rejected_record_with_a_broken_reason_is_unreadable(name: str, value: bytes) -> None:
    with pytest.raises(UnreadableEvent):
        read_rejected(b"m-1", b"{", headers({**REJECTED, name: value}))


def test_codes_are_those_of_the_contract_in_their_order() -> None:
    assert events.REJECTION_CODES == (
        "empty_event",
        "too_large",
        "invalid_event",
        "invalid_json",
        "invalid_patch",
        "event_id_reused",
        "measurement_not_found",
        "properties_not_allowed",
        "revision_conflict",
        "measurement_unreadable",
        "answer_too_large",
        "storage_refused",
    )


def test_the_module_is_pure_of_io() -> None:
    assert not {"aiokafka", "faststream", "asyncpg"} & set(vars(cloudevents))
