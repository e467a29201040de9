"""The wire: the three forms of an update, and what its answer says in headers, key and body."""

import re
from datetime import UTC, datetime
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.structs import RecordMetadata

from contracts.measurement import CellMeasurement
from tests.system import System

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
WITH_ZONE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)")


def arrival(record: RecordMetadata) -> datetime:
    return datetime.fromtimestamp(record.timestamp / 1000, UTC)


def answer_id(lab: System, record: RecordMetadata) -> str:
    return f"{lab.updates}/{record.partition}/{record.offset}@{record.timestamp}"


async def test_a_row_of_defaults_is_answered_with_all_sixteen_fields(lab: System) -> None:
    created = datetime(2026, 1, 31, 12, 30, 0, 123456, tzinfo=UTC)
    await lab.seed("m-1", created_at=created, updated_at=created)
    async with lab.worker():
        changed = await lab.update("m-1", {"notes": "vented"}, id="e-1")
        unchanged = await lab.update("m-1", {}, id="e-2")
        answers = await lab.answers_to(changed, unchanged)
    for answer in answers:
        updated_at = answer.model.pop("updated_at")
        assert datetime.fromisoformat(updated_at) == arrival(changed)
        assert answer.model == {
            "id": "m-1",
            "cell_instance_id": "cell-1",
            "name": "formation",
            "protocol": None,
            "start_time": None,
            "test_setup": None,
            "step_labels_validated": False,
            "notes": "vented",
            "measurement_type": "time_series",
            "properties": None,
            "file_metadata": None,
            "organization_id": None,
            "created_by": None,
            "created_by_email": None,
            "created_at": "2026-01-31T12:30:00.123456Z",
            "updated_at": updated_at,
        }
        CellMeasurement.model_validate_json(answer.value or b"", strict=True)


async def test_a_full_row_is_answered_with_every_value_as_it_stands(lab: System) -> None:
    columns: dict[str, Any] = {
        "cell_instance_id": "cell-7",
        "name": "Zyklus 25 °C, µ = 0.5 \U0001f50b",
        "protocol": {"name": "CC-CV", "ambient_temperature_degc": -20.5, "definition": "x\r\ny", "more": [1]},
        "start_time": datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC),
        "test_setup": {"cycler": "MACCOR", "channel_number": 12, "odd": None},
        "step_labels_validated": True,
        "notes": 'quotes " and \\ and \t',
        "measurement_type": "properties",
        "properties": {"thickness": {"value": 0.52, "unit": "mm"}, "passed": True, "by": "me", "none": None},
        "file_metadata": {"size": 2**53 + 1, "parts": [{"name": "a"}]},
        "organization_id": "org-1",
        "created_by": "u-1",
        "created_by_email": "u-1@lab.example",
        "created_at": datetime(2025, 1, 1, tzinfo=UTC),
        "updated_at": datetime(2025, 1, 2, 0, 0, 0, 1, tzinfo=UTC),
    }
    await lab.seed("m-1", **columns)
    async with lab.worker():
        [answer] = await lab.answers_to(await lab.update("m-1", {}, id="e-1"))
    for name in ("start_time", "created_at", "updated_at"):
        assert WITH_ZONE.fullmatch(answer.model[name])
        assert datetime.fromisoformat(answer.model[name]) == columns.pop(name)
    assert {name: answer.model[name] for name in columns} == columns
    assert len(answer.model) == 16


async def test_an_answer_has_exactly_the_attributes_of_a_measurement_updated_event(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker(worker_source="lab/worker"):
        changed = await lab.update("m-1", {"notes": "x", "name": "y"}, id="e µ", source="cycler°", more="x")
        unchanged = await lab.update("m-1", {"notes": "x"}, id="e-2", traceparent=TRACEPARENT)
        first, second = await lab.answers_to(changed, unchanged)
    assert len(first.raw_headers) == len(first.headers) == 11
    common = {
        "ce_specversion": "1.0",
        "ce_source": "lab/worker",
        "ce_type": "cell_measurement.updated.v1",
        "ce_subject": "m-1",
        "ce_time": first.model["updated_at"],
        "content-type": "application/json",
        "ce_revision": "1",
    }
    assert {name: first.text(name) for name in first.headers} == {
        **common,
        "ce_id": answer_id(lab, changed),
        "ce_changed": "name,notes",
        "ce_causationid": "e µ",
        "ce_causationsource": "cycler°",
    }
    # nothing changed: ce_changed is there and empty, and ce_time is still when it changed
    assert {name: second.text(name) for name in second.headers} == {
        **common,
        "ce_id": answer_id(lab, unchanged),
        "ce_changed": "",
        "ce_causationid": "e-2",
        "ce_causationsource": "cycler",
        "traceparent": TRACEPARENT,
    }
    assert second.headers["ce_changed"] == b""


async def test_the_three_forms_say_the_same(lab: System) -> None:
    patch = {"notes": "vented", "test_setup": {"channel_number": 3}}
    for number in range(4):
        await lab.seed(f"m-{number}")
    async with lab.worker():
        binary = await lab.update("m-0", patch, id="e-1")
        structured = await lab.structured("m-1", patch, id="e-1")
        bare = await lab.publish("m-2", patch)
        bare_as_text = await lab.publish("m-3", patch, [("content-type", b"text/plain"), ("note", b"\xff")])
        records = (binary, structured, bare, bare_as_text)
        answers = await lab.answers_to(*records)
        for number, answer in enumerate(answers):
            row = await lab.row(f"m-{number}")
            assert (row["notes"], row["test_setup"]) == ("vented", {"channel_number": 3})
            assert (answer.key, answer.model["id"]) == (f"m-{number}".encode(), f"m-{number}")
            assert (answer.model["notes"], answer.changed) == ("vented", ["test_setup", "notes"])
    causes = [(answer.text("ce_causationsource"), answer.text("ce_causationid")) for answer in answers]
    assert causes[:2] == [("cycler", "e-1")] * 2
    assert causes[2:] == [
        (f"kafka:{lab.updates}", f"{record.partition}/{record.offset}@{record.timestamp}")
        for record in (bare, bare_as_text)
    ]


async def test_traceparent_is_passed_on_in_every_form(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        records = [
            await lab.update("m-1", {}, id="e-1", traceparent=TRACEPARENT),
            await lab.update("m-1", {}, id="e-2", ce_traceparent=TRACEPARENT),
            await lab.structured("m-1", {}, id="e-3", traceparent=TRACEPARENT),
            await lab.publish("m-1", {}, [("traceparent", TRACEPARENT.encode())]),
        ]
        answers = await lab.answers_to(*records)
    assert [answer.text("traceparent") for answer in answers] == [TRACEPARENT] * 4


async def test_a_traceparent_that_is_no_text_is_left_out_and_no_fault(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        records = [
            await lab.publish("m-1", {}, [("traceparent", b"\xff")]),
            await lab.publish("m-1", {}, [("traceparent", None)]),
            await lab.publish("m-1", {}, [("traceparent", b"a\0b")]),
        ]
        for answer in await lab.answers_to(*records):
            assert "traceparent" not in answer.headers


async def test_an_event_without_key_is_answered_under_its_subject(lab: System) -> None:
    await lab.seed("m-1")
    attributes = {"ce_specversion": "1.0", "ce_id": "e-1", "ce_source": "cycler", "ce_subject": "m-1"}
    headers = [(name, text.encode()) for name, text in attributes.items()]
    headers.append(("ce_type", b"cell_measurement.update.v1"))
    async with lab.worker():
        records = [
            await lab.publish(None, {"notes": "a"}, headers, partition=0),
            await lab.publish(b"", {"notes": "b"}, [*headers, ("ce_id", b"e-2")], partition=0),
            await lab.structured(None, {"notes": "c"}, id="e-3", subject="m-1", partition=0),
            await lab.structured(None, {"notes": "d"}, id="e-4", subject="m-1", partition=1),
            await lab.update("m-1", {"notes": "e"}, id="e-5", ce_subject="m-1"),
        ]
        answers = await lab.answers_to(*records)
    assert {answer.key for answer in answers} == {b"m-1"}
    assert {answer.partition for answer in answers} == {answers[-1].partition}, "one key, one partition"


async def test_ids_are_opaque_and_case_sensitive(lab: System) -> None:
    ids = ["M-1", "m-1", " m-1", "m-1 ", "µ/°?&=%20", "\U0001f50b" * 50, "x" * 2_000, "0", "null"]
    for id in ids:
        await lab.seed(id)
    async with lab.worker():
        answers = await lab.answers_to(*[await lab.update(id, {"notes": id}, id="e-1") for id in ids])
    assert [answer.model["id"] for answer in answers] == ids
    assert [answer.model["notes"] for answer in answers] == ids
    assert [answer.revision for answer in answers] == [1] * len(ids)
    assert [answer.text("ce_subject") for answer in answers] == ids


async def test_producers_may_compress_with_any_codec(lab: System) -> None:
    await lab.seed("m-1")
    records = []
    for codec in ("gzip", "snappy", "lz4", "zstd"):
        async with AIOKafkaProducer(
            bootstrap_servers=lab.settings.bootstrap_servers, compression_type=codec
        ) as producer:
            value = b'{"notes": "%b"}' % (codec.encode() * 1_000)
            records.append(await producer.send_and_wait(lab.updates, value, key=b"m-1"))
    async with lab.worker():
        answers = await lab.answers_to(*records)
    assert [answer.model["notes"][:4] for answer in answers] == ["gzip", "snap", "lz4l", "zstd"]
