"""`verify`: a run that is right is found right, whatever was in it; and each thing that can be wrong is seen, by number."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from typing import Any

import orjson
import pytest
import pytest_asyncio
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.structs import RecordMetadata

from tests.conftest import fresh_database
from tests.faults.load import Load, seed
from tests.faults.states import administering, applied_up_to
from tests.system import COMMAND, Answer, Header, System, until
from worker.emit import Emitter
from worker.stack import Stack
from worker.topics import create_topics
from worker.verification import Report
from worker.verification import verify as verify_settings


async def verify(lab: System, **options: Any) -> Report:
    return await verify_settings(lab.settings, **options)


def found(report: Report) -> dict[str, int]:
    """How often each thing was found, without what wasn't."""
    return {name: finding.count for name, finding in report.findings.items() if finding.count}


def counts(report: Report) -> dict[str, int]:
    return {
        name: count for name, count in report.as_json().items() if count and name not in ("ok", "findings")
    }


async def event(
    lab: System, id: str, measurement_id: str, patch: Mapping[str, Any], partition: int = 0, *headers: Header
) -> RecordMetadata:
    """A binary CloudEvent, to this partition."""
    attributes = {"specversion": "1.0", "id": id, "source": "cycler", "type": "cell_measurement.update.v1"}
    binary: list[Header] = [(f"ce_{name}", text.encode()) for name, text in attributes.items()]
    return await lab.publish(measurement_id, patch, [*binary, *headers], partition)


def requeued(sent: RecordMetadata) -> Header:
    return "requeued-from", f"{sent.topic}/{sent.partition}/{sent.offset}@{sent.timestamp}".encode()


async def command(lab: System, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        COMMAND, "verify", *arguments, env={**lab.environment, **environment},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), errors.decode()


@asynccontextmanager
async def mute_worker(lab: System, monkeypatch: pytest.MonkeyPatch, decided: int) -> AsyncIterator[None]:
    """Decides that many records in all, but its answers don't come out."""
    with monkeypatch.context() as patched:

        async def never(*_: object) -> None:
            await asyncio.Event().wait()

        async def are_decided() -> bool:
            return await applied_up_to(lab) == decided

        patched.setattr(Emitter, "emit", never)
        async with lab.worker(worker_drain_timeout=timedelta(seconds=1)):
            await until(are_decided, f"{decided} records are decided")
            yield


async def send_answer(lab: System, answer: Answer, **changes: Any) -> None:
    """By hand, as it was but for these: `value`, or headers by name, `_` for `-`."""
    value = changes.pop("value", answer.value)
    texts = {
        name if name.startswith("ce_") else name.replace("_", "-"): text for name, text in changes.items()
    }
    assert texts.keys() <= answer.headers.keys()
    headers = [
        (name, texts[name].encode() if name in texts else content) for name, content in answer.raw_headers
    ]
    sent = await lab.producer.send(
        answer.topic, key=answer.key, value=value, headers=headers, partition=answer.partition
    )
    await asyncio.wait_for(sent, 30)


async def answer_by_hand(lab: System, sent: RecordMetadata, like: Answer, **changes: Any) -> None:
    """The stored answer to a record that is decided, but for these changes; and the group is moved past it."""
    row = await lab.database.fetchrow(
        """SELECT a.* FROM measurement_updates.applied_updates AS a JOIN measurement_updates.lanes USING (lane)
           WHERE partition = $1 AND log_offset = $2""",
        sent.partition,
        sent.offset,
    )
    stored = {
        "value": row["answer"].encode(),
        "ce_id": f"{sent.topic}/{sent.partition}/{sent.offset}@{row['arrival']}",
        "ce_time": orjson.loads(row["answer"])["updated_at"],
        "ce_revision": str(row["revision"]),
        "ce_changed": row["changed"],
        "ce_causationid": row["event_id"],
        "ce_causationsource": row["event_source"],
    }
    await send_answer(lab, like, **{**stored, **changes})
    await lab.commit({TopicPartition(sent.topic, sent.partition): sent.offset + 1})


async def trim(lab: System, topic: str, partition: int, before: int) -> None:
    async with administering(lab) as admin:
        await admin.delete_records({TopicPartition(topic, partition): RecordsToDelete(before)})


@pytest_asyncio.fixture
async def answered(lab: System) -> Sequence[Answer]:
    """m-1 three times and m-2 once in partition 0, a rejection in partition 1: everything is right so far."""
    await lab.seed("m-1")
    await lab.seed("m-2")
    async with lab.worker():
        for number in range(3):
            await event(lab, f"e-{number}", "m-1", {"notes": f"{number}"})
        await event(lab, "e-3", "m-2", {"notes": "3"})
        await lab.publish("m-1", b"{", partition=1)
        answers = await lab.answers()
    return sorted(answers, key=lambda answer: answer.place)


# What is right ----------------------------------------------------------------------------------------------


async def test_a_run_with_everything_in_it_is_found_right(lab: System) -> None:
    await lab.seed("m-1", protocol={"name": "CC", "large": 1e22, "small": -0.0})
    await lab.seed("m-2", measurement_type="properties")
    await lab.seed("m-3")
    async with lab.worker():
        patch = {"notes": "1", "protocol": {"name": "CC", "large": 1e23}}
        await event(lab, "e-1", "m-1", patch)
        await event(lab, "e-1", "m-1", patch)
        await lab.settled()
        await lab.structured(
            "m-1", {"protocol": {"large": 1e23, "name": "CC"}, "notes": "1"}, id="e-1", partition=1
        )
        await event(lab, "e-1", "m-1", {"notes": "other"})
        await lab.structured(
            "m-2", {"properties": {"d": {"value": 2.0, "unit": "mm"}}}, id="e-2", partition=1
        )
        bare = await lab.publish("m-3", {"notes": "bare"}, partition=1)
        await lab.publish("m-3", b"{", partition=1)
        await lab.publish("m-9", {"notes": "nobody"}, partition=0)
        await lab.publish("m-1", None, partition=0)
        await lab.publish(b"\xff", b"\xfe", [("ce_id", None), ("rejection-code", b"x")], partition=0)
        await lab.publish_raw(
            (b"m-3", b'{"notes":"raw"}', [(b"\xff\xfe", b"\x00"), (b"\xff", None)]), partition=1
        )
        await lab.publish_raw(
            (b"m-3", b"[1]", [(b"\xff", b"v"), (b"rejection-truncated", b"{}")]), partition=1
        )
        await lab.publish("m-1", {}, partition=0)
        await event(lab, "e-3", "m-1", {"name": None, "notes": "1"})
        await lab.settled()
        await lab.database.execute("UPDATE cell_measurements SET notes = 'rest', name = 'n' WHERE id = 'm-3'")
        await lab.database.execute(
            "UPDATE cell_measurements SET file_metadata = '{\"a\": 1e400}' WHERE id = 'm-1'"
        )
        late = requeued(bare)
        await event(lab, "e-4", "m-3", {"notes": "late", "test_setup": {"lab": "1"}}, 0, late)
        await lab.publish("m-3", {"notes": "bare"}, [late], partition=0)
        for number in range(20):
            await event(lab, f"n-{number}", "m-1", {"notes": f"{number}"}, number % 2)
        await event(lab, "e-5", "m-2", {"notes": "x"}, 1, ("traceparent", b"00-1-2-03"))
        await lab.settled()
    await lab.database.execute(
        "UPDATE cell_measurements SET test_setup = '{\"lab\": \"2\"}' WHERE id = 'm-2'"
    )
    report = await verify(lab)
    assert found(report) == {}
    assert report.ok
    assert counts(report) == {
        "records": 37,
        "applied": 28,
        "rejected": 6,
        "duplicates": 3,
        "not_comparable": 2,
        "edited_elsewhere": 1,
    }


async def test_nothing_there_is_nothing_wrong(lab: System) -> None:
    report = await verify(lab)
    assert (report.ok, counts(report)) == (True, {})
    await lab.seed("m-1")
    await event(lab, "e-1", "m-1", {"notes": "x"})
    report = await verify(lab)
    assert (report.ok, counts(report)) == (True, {"records": 1, "pending": 1})


async def test_it_may_be_used_while_workers_run(lab: System) -> None:
    load = Load(lab, await seed(lab), seed="verify")
    async with lab.worker():
        async with load.running(400):
            for _ in range(3):
                report = await verify(lab, wait=timedelta(seconds=30))
                assert found(report) == {}
                assert report.ok
        await lab.settled()
        report = await verify(lab)
    assert found(report) == {}
    assert report.records == load.count
    assert min(report.applied, report.rejected, report.duplicates, report.not_comparable + 1) > 0
    assert report.applied + report.rejected + report.duplicates == load.count
    assert (report.pending, report.not_checked) == (0, 0)


async def test_a_measurement_deleted_and_made_anew_begins_again(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        for number in range(3):
            await event(lab, f"e-{number}", "m-1", {"notes": f"{number}"})
        await lab.settled()
        await lab.database.execute("DELETE FROM cell_measurements")
        await lab.seed("m-1", notes="anew")
        await event(lab, "e-4", "m-1", {"name": "anew"})
        await lab.settled()
    assert found(await verify(lab)) == {}


async def test_what_is_trimmed_is_not_checked_and_not_found_wrong(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        for number in range(10):
            sent = await event(lab, f"e-{number}", "m-1", {"notes": f"{number}"})
            await event(lab, f"e-{number}", "m-1", {"notes": f"{number}"})
            await lab.publish("m-1", b"{", partition=1)
        answers = await lab.answers()
    updated = [answer for answer in answers if not answer.rejected]
    rejected = [answer for answer in answers if answer.rejected]
    assert sent.offset == 18

    await trim(lab, lab.updates, 0, 11)
    report = await verify(lab)
    assert found(report) == {}
    # the duplicate at 11 is known by its original's answer; six answers are to records that are gone
    assert counts(report) == {"records": 19, "applied": 4, "rejected": 10, "duplicates": 5, "not_checked": 6}

    for answer in (updated[7], rejected[5]):
        await trim(lab, answer.topic, answer.partition, answer.offset + 1)
    report = await verify(lab)
    assert found(report) == {}
    # of the records left, 12 and 14 and five of partition 1 have lost their answers; nothing else is left of 0 to 10
    assert counts(report) == {"records": 19, "applied": 2, "rejected": 4, "duplicates": 5, "not_checked": 8}


async def test_another_log_of_the_same_name_is_not_checked(lab: System, answered: Sequence[Answer]) -> None:
    async with administering(lab) as admin:
        await admin.delete_topics([lab.updates])

        async def gone() -> bool:
            return lab.updates not in await admin.list_topics()

        await until(gone, "the topic is gone")
    await create_topics(lab.settings)
    for number in range(6):
        await event(lab, f"anew-{number}", "m-1", {"notes": f"anew {number}"})
    report = await verify(lab)
    assert found(report) == {}
    assert counts(report) == {"records": 6, "not_checked": 6 + len(answered)}


async def test_what_a_restarted_lane_answers_meanwhile_is_compared_later(
    lab: System, answered: Sequence[Answer]
) -> None:
    """Decided after the snapshot that everything is compared with: only a later `verify` can say whether it's right."""
    rejection = answered[4]
    restart = ("lanes", "restart", f"{lab.updates}/1", "--why", "a test")
    restarted = await asyncio.create_subprocess_exec(COMMAND, *restart, env=lab.environment)
    assert await asyncio.wait_for(restarted.wait(), 60) == 0
    detail = orjson.dumps({"message": "as a later version would say it", "violations": [], "total": 0})
    await send_answer(lab, rejection, rejection_detail=detail.decode())
    report = await verify(lab)
    assert (found(report), report.repeated, report.applied) == ({}, 1, 4)

    async with lab.worker():  # it decides the record as before, and that is what is stored
        await lab.answers(len(answered) + 2)
    report = await verify(lab)
    assert found(report) == {"answered_twice": 1}


async def test_repeats_are_found_unless_they_are_allowed(lab: System, answered: Sequence[Answer]) -> None:
    await lab.rewind()
    async with lab.worker():
        await lab.answers(2 * len(answered))
    report = await verify(lab)
    assert found(report) == {"answered_twice": len(answered)}
    report = await verify(lab, allow_repeats=True)
    assert (report.ok, report.repeated, report.applied, report.rejected) == (True, len(answered), 4, 1)


async def test_pending_records_are_waited_for_where_that_is_wanted(
    lab: System, answered: Sequence[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        await event(lab, f"later-{number}", "m-1", {"notes": f"later {number}"})
    report = await verify(lab)
    assert (report.ok, report.pending) == (True, 4)
    code, out, _ = await command(lab, "--wait", "0.1s", "--json")
    assert (code, orjson.loads(out)["ok"], orjson.loads(out)["pending"]) == (1, False, 4)
    async with mute_worker(lab, monkeypatch, decided=len(answered) + 4):
        report = await verify(lab)
        assert (report.ok, report.pending) == (True, 4)
    async with lab.worker():
        report = await verify(lab, wait=timedelta(seconds=30))
    assert (report.ok, report.pending, report.applied) == (True, 0, 8)


# What is wrong ----------------------------------------------------------------------------------------------


async def test_a_group_moved_past_what_is_not_answered_is_found(
    lab: System, answered: Sequence[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = await event(lab, "lost-1", "m-1", {"notes": "lost"})
    await lab.publish("m-1", b"[", partition=0)
    async with mute_worker(lab, monkeypatch, decided=len(answered) + 2):
        pass
    await lab.commit({TopicPartition(lab.updates, 0): sent.offset + 2})
    code, out, _ = await command(lab, "--json")
    assert code == 1
    unanswered = orjson.loads(out)["findings"]["unanswered"]
    assert unanswered == {
        "count": 2,
        "examples": [
            f"{lab.updates}/0/{sent.offset}: applied, but no answer",
            f"{lab.updates}/0/{sent.offset + 1}: rejected, but no answer",
        ],
    }
    assert found(await verify(lab)) == {"unanswered": 2}


async def test_a_record_that_was_passed_over_is_found(lab: System, answered: Sequence[Answer]) -> None:
    """Neither decided nor answered: another content than the event's, an event of its own, and no event at all."""
    await event(lab, "e-1", "m-1", {"notes": "another"})
    await event(lab, "e-9", "m-1", {"notes": "another"})
    await lab.publish("m-1", {"notes": "bare"}, partition=0)
    last = await lab.publish("m-1", b"{", partition=0)
    await event(lab, "e-1", "m-1", {"notes": "1"})
    await lab.database.execute(
        """UPDATE measurement_updates.lanes SET next_to_apply = $1, next_to_answer = $1, last_offset = NULL
           WHERE partition = 0""",
        last.offset + 2,
    )
    report = await verify(lab)
    assert found(report) == {"unanswered": 4}
    assert report.findings["unanswered"].examples == [
        f"{lab.updates}/0/{last.offset - 3}: no answer, and not the content of the event with its identity",
        f"{lab.updates}/0/{last.offset - 2}: no answer",
        f"{lab.updates}/0/{last.offset - 1}: no answer",
        f"{lab.updates}/0/{last.offset}: no answer",
    ]
    assert report.duplicates == 1


async def test_an_answer_that_compaction_may_have_taken_is_not_checked(
    lab: System, answered: Sequence[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = await event(lab, "e-9", "m-1", {"notes": "lost"})
    async with mute_worker(lab, monkeypatch, decided=len(answered) + 1):
        pass
    await lab.commit({TopicPartition(lab.updates, 0): sent.offset + 1})
    assert found(await verify(lab)) == {"unanswered": 1}
    async with administering(lab) as admin:
        topic = lab.settings.worker_updated_topic
        compacted = {"cleanup.policy": "compact"}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=compacted)])
    report = await verify(lab)
    assert (found(report), report.not_checked) == ({}, 1)


async def test_a_second_answer_is_found(lab: System, answered: Sequence[Answer]) -> None:
    await send_answer(lab, answered[0])
    await send_answer(lab, answered[1], ce_revision="1")
    await send_answer(lab, answered[1], value=answered[2].value)
    await send_answer(lab, answered[4])
    report = await verify(lab)
    # the last answer to a record is the one that is stored, where it may be sent again
    assert found(report) == {"answered_twice": 4, "unequal_stored": 1}
    report = await verify(lab, allow_repeats=True)
    assert (found(report), report.repeated) == ({"answered_twice": 1, "unequal_stored": 1}, 3)


async def test_an_answer_to_nothing_is_found(lab: System, answered: Sequence[Answer]) -> None:
    first, rejected = answered[0], answered[4]
    place, arrival = first.text("ce_id").split("@")
    await send_answer(lab, first, ce_id=f"{place.removesuffix('/0')}/999@{arrival}")
    await send_answer(lab, first, ce_id=f"{place}@{int(arrival) + 1}")
    await send_answer(lab, first, ce_id=f"{lab.updates}/7/0@{arrival}")
    await send_answer(lab, first, ce_id="nothing that names a place")
    await send_answer(lab, rejected, rejection_offset="999")
    await send_answer(lab, rejected, rejection_partition="no number")
    for topic in (lab.settings.worker_updated_topic, lab.settings.worker_rejected_topic):
        settings = lab.settings.model_copy(update={"worker_updates_topic": topic})
        await replace(lab, settings=settings).publish_raw(
            (None, None, []), (b"k", b"v", [(b"\xff", b"\xff")])
        )
    # an older log of this name, and another input that answers into the same topic
    await send_answer(lab, first, ce_id=f"{place.removesuffix('/0')}/999@1000")
    await send_answer(lab, first, ce_id=f"another-{place}@{arrival}")
    report = await verify(lab)
    assert found(report) == {"stray": 10}
    assert report.not_checked == 1


async def test_an_event_applied_twice_is_found(lab: System, answered: Sequence[Answer]) -> None:
    await lab.database.execute("DELETE FROM measurement_updates.applied_updates WHERE log_offset = 1")
    async with lab.worker():
        sent = await event(lab, "e-1", "m-1", {"notes": "1"})
        await lab.settled()
        await event(lab, "e-1", "m-1", {"notes": "1"}, 1)
        await event(lab, "e-1", "m-1", {"notes": "1"}, 0, ("reapply", b"run-1"))
        await lab.settled()
    report = await verify(lab)
    assert found(report) == {"applied_twice": 1, "unequal_stored": 1}
    assert report.findings["applied_twice"].examples == [
        f"{lab.updates}/0/{sent.offset}: applied, the same event as {lab.updates}/0/1"
    ]
    assert report.findings["unequal_stored"].examples == [
        f"{lab.updates}/0/1: answered, but nothing is stored"
    ]
    settings = lab.settings.model_copy(update={"worker_identity_retention": timedelta(milliseconds=1)})
    assert "applied_twice" not in found(await verify_settings(settings))


_FORGED: list[tuple[dict[str, Any], str]] = [
    ({"ce_revision": "1"}, "is at revision 1 after 2"),
    ({"ce_revision": "2"}, "notes changed, but the revision stays at 2"),
    ({"model": {"protocol": {"a": 1}}}, "protocol isn't what it was, but isn't said to have changed"),
    ({"model": {"notes": "other"}}, "notes changed, to another value than the patch's"),
    (
        {"model": {"notes": "1"}, "ce_changed": "", "ce_revision": "2"},
        "notes isn't the patch's, though nothing newer",
    ),
    ({"ce_changed": "notes,name"}, "in this order, found notes,name"),
    ({"ce_changed": "name,notes"}, "name changed, to another value than the patch's"),
    ({"model": {"updated_at": "2020-01-01T00:00:00.000000Z"}}, "is before the record's arrival"),
    ({"model": {"unknown": 1}}, "isn't the response model: unknown missing or unknown"),
    ({"model": {"id": "m-2"}}, "ce_subject: expected m-2"),
    ({"ce_time": "2020-01-01T00:00:00.000000Z"}, "ce_time: expected 2"),
    ({"ce_causationid": "another"}, "its measurement or its cause"),
    ({"value": b"{"}, "the body isn't JSON"),
    ({"value": b"[]"}, "the body isn't an object"),
]


async def test_an_answer_that_is_not_the_one_before_with_its_patch_is_found(
    lab: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    measurements = [await lab.seed(f"m-{number}") for number in range(len(_FORGED) + 1)]
    async with lab.worker():
        for name in measurements:
            await event(lab, "e-0", name, {"notes": "0"})
            await event(lab, "e-1", name, {"notes": "1"})
        before = {answer.text("ce_subject"): answer for answer in await lab.answers()}
    sent = [await event(lab, "forged", name, {"notes": "forged"}) for name in measurements]
    async with mute_worker(lab, monkeypatch, decided=3 * len(measurements)):
        pass
    for place, name, (changes, _) in zip(sent, measurements, [*_FORGED, ({}, "")], strict=True):
        forged = dict(changes)
        if fields := forged.pop("model", None):
            model = orjson.loads(await stored_answer(lab, place)) | fields
            forged |= {"value": orjson.dumps(model), "ce_time": model["updated_at"]}
        await answer_by_hand(lab, place, before[name], **forged)

    report = await verify(lab, examples=100)
    wrong = len(_FORGED)
    # what is stored has no time of its own
    assert found(report) == {"out_of_order": 1, "unequal_answers": wrong - 1, "unequal_stored": wrong - 1}
    examples = report.findings["out_of_order"].examples + report.findings["unequal_answers"].examples
    said = dict(example.split(": ", 1) for example in examples)
    for place, (_, words) in zip(sent, _FORGED, strict=False):
        assert words in said[f"{place.topic}/{place.partition}/{place.offset}"]


async def stored_answer(lab: System, sent: RecordMetadata) -> bytes:
    answer = await lab.database.fetchval(
        """SELECT answer FROM measurement_updates.applied_updates JOIN measurement_updates.lanes USING (lane)
           WHERE partition = $1 AND log_offset = $2""",
        sent.partition,
        sent.offset,
    )
    return str(answer).encode()


async def test_a_late_event_that_overwrote_a_newer_field_is_found(
    lab: System, answered: Sequence[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offset 1 has written the notes before offset 2; sent again, it has to leave them alone."""
    first = answered[1].text("ce_id")
    late = ("requeued-from", first.encode())
    sent = await event(lab, "late", "m-1", {"notes": "late"}, 0, late)
    async with mute_worker(lab, monkeypatch, decided=len(answered) + 1):
        pass
    model = {**answered[2].model, "notes": "late", "updated_at": "2999-01-01T00:00:00.000000Z"}
    await answer_by_hand(
        lab, sent, answered[2], value=orjson.dumps(model), ce_time=model["updated_at"], ce_changed="notes",
        ce_revision="4",
    )  # fmt: skip
    report = await verify(lab)
    assert found(report) == {"unequal_answers": 1, "unequal_stored": 1}
    assert "the event is late" in report.findings["unequal_answers"].examples[0]


_REJECTED: list[tuple[bytes, str, bytes, list[Header], tuple[int, bytes] | None, str]] = [
    # received (with a header h: v), code, rejected value and headers, length and content of rejection-truncated
    (b'{"notes":1}', "invalid_patch", b'{"notes":1}', [("h", b"v")], None, ""),
    (b'{"notes":"x"}', "invalid_json", b'{"notes":"x"}', [("h", b"v")], None, "though it is JSON"),
    (
        b'{"notes":"x"}',
        "measurement_not_found",
        b'{"notes":"y"}',
        [("h", b"v")],
        None,
        "not as it was received",
    ),
    (b'{"notes":"x"}', "measurement_not_found", b'{"notes":"x"}', [], None, "not as it was received"),
    (b"[1]", "invalid_patch", b"[", [("h", b"v")], (3, b"[1]"), ""),
    (b"[1]", "invalid_patch", b"[", [("h", b"v")], (4, b"[1]"), "rejection-truncated isn't true"),
    (b"[1]", "invalid_patch", b"[", [("h", b"v")], (3, b"[2]"), "rejection-truncated isn't true"),
    (b"[1]", "invalid_patch", b"[", [("h", b"w")], (3, b"[1]"), "its key or headers aren't"),
]


async def test_a_rejection_that_is_not_as_received_is_found(lab: System, answered: Sequence[Answer]) -> None:
    for received, code, value, headers, truncated, _ in _REJECTED:
        sent = await lab.publish("m-1", received, [("h", b"v")], partition=1)
        ours = {
            **answered[4].headers,
            "rejection-code": code.encode(),
            "rejection-offset": b"%d" % sent.offset,
            "rejection-timestamp": b"%d" % sent.timestamp,
        }
        if truncated is not None:
            stated = {"length": truncated[0], "sha256": sha256(truncated[1]).hexdigest()}
            ours["rejection-truncated"] = orjson.dumps(stated)
        await lab.producer.send_and_wait(
            lab.settings.worker_rejected_topic, key=b"m-1", value=value, headers=[*headers, *ours.items()]
        )
    await pass_over(lab, sent)
    report = await verify(lab, examples=100)
    wrong = [words for *_, words in _REJECTED if words]
    assert found(report) == {"unequal_answers": len(wrong), "unequal_stored": len(_REJECTED)}
    for words, example in zip(wrong, report.findings["unequal_answers"].examples, strict=True):
        assert words in example


async def test_what_is_no_update_and_applied_all_the_same_is_found(
    lab: System, answered: Sequence[Answer]
) -> None:
    sent = await lab.publish("m-1", b"{", partition=1)
    await pass_over(lab, sent)
    await send_answer(lab, answered[0], ce_id=f"{lab.updates}/1/{sent.offset}@{sent.timestamp}")
    report = await verify(lab)
    assert found(report) == {"unequal_answers": 1, "unequal_stored": 1}
    assert "though it isn't an update" in report.findings["unequal_answers"].examples[0]


async def pass_over(lab: System, sent: RecordMetadata) -> None:
    """As if it were decided and answered."""
    await lab.database.execute(
        """UPDATE measurement_updates.lanes SET next_to_apply = $2, next_to_answer = $2, last_offset = NULL
           WHERE partition = $1""",
        sent.partition,
        sent.offset + 1,
    )


async def test_what_is_stored_otherwise_than_it_was_sent_is_found(
    lab: System, answered: Sequence[Answer]
) -> None:
    for damage in (
        "DELETE FROM applied_updates WHERE log_offset = 2",
        "UPDATE applied_updates SET answer = answer || ' ' WHERE log_offset = 2",
        "UPDATE applied_updates SET revision = 9 WHERE log_offset = 1",
        "UPDATE applied_updates SET changed = '' WHERE log_offset = 1",
        "UPDATE applied_updates SET traceparent = 'x' WHERE log_offset = 1",
        "UPDATE applied_updates SET event_id = 'x' WHERE log_offset = 1",
        "UPDATE applied_updates SET answer_source = 'x' WHERE log_offset = 1",
        "UPDATE applied_updates SET measurement_id = 'x' WHERE log_offset = 1",
        "UPDATE applied_updates SET arrival = arrival + 1 WHERE log_offset = 1",
        "DELETE FROM rejected_updates",
        "UPDATE rejected_updates SET value = NULL",
        "UPDATE rejected_updates SET key = ''",
        "UPDATE rejected_updates SET code = 'invalid_patch'",
        "UPDATE rejected_updates SET detail = '{}'",
        "UPDATE rejected_updates SET truncated = '{}'",
        "UPDATE rejected_updates SET header_names = '{h}', header_values = '{v}'",
        """INSERT INTO rejected_updates (lane, log_offset, arrival, header_names, header_values, code, detail)
               SELECT lane, log_offset, 0, '{}', '{}', 'invalid_json', '{}' FROM applied_updates WHERE log_offset = 1""",
    ):
        async with damaged(lab, damage):
            assert found(await verify(lab)) == {"unequal_stored": 1}, damage
    assert found(await verify(lab)) == {}


@asynccontextmanager
async def damaged(lab: System, statement: str) -> AsyncIterator[None]:
    """Unseen by the trigger, as the worker writes; put right at the end."""
    tables = ("applied_updates", "rejected_updates", "cell_measurements")
    await lab.database.execute("SET search_path = measurement_updates, public")
    await lab.database.execute("SET measurement_updates.applying = on")
    for table in tables:
        await lab.database.execute(f"CREATE TEMPORARY TABLE kept_{table} AS TABLE {table}")
    await lab.database.execute(statement)
    yield
    for table in tables:
        await lab.database.execute(
            f"TRUNCATE {table} CASCADE; INSERT INTO {table} TABLE kept_{table}; DROP TABLE kept_{table}"
        )
    await lab.database.execute("RESET measurement_updates.applying")


async def test_a_row_that_is_not_what_its_last_answer_says_is_found(
    lab: System, answered: Sequence[Answer]
) -> None:
    for damage, words in (
        ("notes = 'x'", "notes isn't what its last answer says"),
        ("notes = NULL, protocol = '1'", "protocol, notes isn't what its last answer says"),
        ("revision = 2", "it is at revision 2, its last answer at 3"),
        ("answer_offset = 3", "its last answer is one of measurement m-2"),
        ("answer_offset = 1, revision = 2, notes = '1'", "a later answer is stored"),
    ):
        async with damaged(lab, f"UPDATE cell_measurements SET {damage} WHERE id = 'm-1'"):
            report = await verify(lab)
            assert found(report) == {"unequal_rows": 1}, damage
            assert words in report.findings["unequal_rows"].examples[0]
    assert found(await verify(lab)) == {}


async def test_a_row_that_was_written_elsewhere_is_no_finding(
    lab: System, answered: Sequence[Answer]
) -> None:
    await lab.database.execute("UPDATE cell_measurements SET notes = 'x' WHERE id = 'm-1'")
    await lab.database.execute(
        "UPDATE cell_measurements SET created_by = 'x', updated_at = 'infinity' WHERE id = 'm-2'"
    )
    report = await verify(lab)
    assert (found(report), report.edited_elsewhere) == ({}, 2)


# As a command -----------------------------------------------------------------------------------------------


async def test_the_table_says_what_was_found_and_what_to_do(lab: System, answered: Sequence[Answer]) -> None:
    code, out, errors = await command(lab)
    assert (code, errors) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0][:3] == ["5", "records", "of"]
    assert ["applied", "4"] in [line[:2] for line in lines]
    assert out.endswith("ok: nothing found\n")
    for number in range(7):
        await send_answer(lab, answered[0], ce_id=f"{lab.updates}/0/{900 + number}@{2**60}")
    code, out, errors = await command(lab, "--examples", "2")
    assert (code, errors) == (1, "")
    assert f"answers {lab.updates}/0/901@{2**60}, which isn't in the log" in out.replace("\n", " ").replace(
        "  ", ""
    )
    assert "902" not in out
    assert "… and 5 more" in out
    assert "see who may" in out
    assert out.endswith("7 found\n")
    assert "\x1b" not in out


async def test_settings_and_servers_that_are_wrong_are_one_message(lab: System, stack: Stack) -> None:
    async with fresh_database(stack, "template0") as empty:
        for name, value, code, words in (
            ("DATABASE_URL", "", 2, "DATABASE_URL: expected postgresql://"),
            ("KAFKA_BOOTSTRAP_SERVERS", "nonsense", 2, "KAFKA_BOOTSTRAP_SERVERS: expected brokers"),
            ("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1", 1, "Kafka can't be reached at 127.0.0.1:1"),
            ("DATABASE_URL", "postgresql://a@127.0.0.1:1/b", 1, "Postgres can't be reached"),
            ("DATABASE_URL", empty, 1, "run `measurement-updates migrate`"),
            ("WORKER_UPDATED_TOPIC", "nowhere", 1, "topic nowhere doesn't exist"),
        ):
            found_code, out, errors = await command(lab, **{name: value})
            assert (found_code, out) == (code, ""), errors
            assert errors.startswith("error: ")
            assert words in errors
            assert "Traceback" not in errors
    code, _, errors = await command(lab, "--wait", "soon")
    assert (code, "--wait: expected seconds" in errors) == (2, True)


async def test_another_group_than_the_one_that_applies_the_log_is_refused(
    lab: System, answered: Sequence[Answer]
) -> None:
    code, out, errors = await command(lab, WORKER_GROUP="another")
    assert (code, out) == (1, "")
    assert f"in group {lab.settings.worker_group}; expected" in errors
