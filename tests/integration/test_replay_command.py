"""`replay`: records of the input judged anew. Killed, resumed twice at once, cancelled: each record once."""

import asyncio
import random
import signal
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from tests.faults.checker import check
from tests.faults.load import Load, seed
from tests.faults.states import administering
from tests.replays import (
    WHY,
    begun,
    copied,
    copies,
    ended,
    log_of,
    replay,
    replayed,
    some_records,
    the_replay,
)
from tests.system import System
from worker.errors import Superseded
from worker.replay import dry_run, runs
from worker.replay.ground import look_around
from worker.replay.groups import group_offsets
from worker.replay.selection import Selection, time_text
from worker.verification import verify

# What becomes of the records --------------------------------------------------------------------------------


async def test_what_was_applied_is_a_duplicate_and_what_was_rejected_is_judged_anew(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        sent = [
            await lab.update("m-1", {"notes": "a"}, id="e-1"),
            await lab.publish("m-1", {"notes": "bare"}),
            await lab.structured(None, {"notes": "x"}, id="e-2", subject="m-2", partition=1),
            await lab.publish("m-1", b"{"),
            await lab.publish(None, None, [("x", None)], partition=1),
            *await lab.publish_raw(
                (b"m-1", b'{"notes": "odd"}', [(b"b\xff", b"\xfe"), (b"ok", b"1")]), partition=0
            ),
        ]
        await lab.answers()
        before = await lab.rows()
        await lab.seed("m-2")
        run = await replayed(lab, "--from", "earliest", *WHY)
        assert run["state"] == "done"
        assert (run["read"], run["selected"], run["published"]) == (6, 6, 6)
        assert run["outcome"] == {
            "applied": 1,
            "unchanged": 0,
            "duplicates": 3,
            "rejected": {"empty_event": 1, "invalid_json": 1},
            "pending": 0,
        }
        await lab.settled()
    again = copies(await log_of(lab))
    originals = {
        f"{lab.updates}/{record.partition}/{record.offset}@{record.timestamp}": record
        for record in await log_of(lab)
        if record not in again
    }
    assert len(again) == len(originals) == len(sent)
    for record in again:
        original = originals[(dict(record.headers)["requeued-from"] or b"").decode()]
        assert (record.key, record.value) == (original.key, original.value)
        assert list(record.headers[:-1]) == list(original.headers)
        if record.key is None:
            assert record.partition == original.partition
    rows = await lab.rows()
    assert [row for row in rows if row["id"] == "m-1"] == before
    assert (await lab.row("m-2"))["notes"] == "x"
    assert (await verify(lab.settings)).ok
    kept = await the_replay(lab)
    assert (kept["started_by"], kept["why"]) == (run["by"], "a test")
    assert not await lab.database.fetchval("SELECT count(*) FROM measurement_updates.replayed_records")
    group = f"{lab.settings.worker_group}.replay.{run['id']}"
    assert await group_offsets(lab.settings, group, lab.partitions()) == {}


async def test_a_late_event_leaves_alone_what_something_newer_has_written(lab: System) -> None:
    async with lab.worker():
        await lab.seed("m-1")
        await lab.update("m-2", {"notes": "old", "name": "old"}, id="e-1")
        await lab.settled()
        await lab.seed("m-2")
        await lab.update("m-2", {"notes": "new"}, id="e-2")
        await lab.settled()
        run = await replayed(lab, "--from", "1h", "--only", "rejected", *WHY)
    assert (run["read"], run["published"], run["outcome"]["applied"]) == (2, 1, 1)
    row = await lab.row("m-2")
    assert (row["name"], row["notes"], row["revision"]) == ("old", "new", 2)


async def test_only_what_is_asked_for_is_published(lab: System) -> None:
    await lab.seed("m-1", organization_id="org-1")
    async with lab.worker():
        await lab.update("m-1", {"notes": "1"}, id="e-1", source="a", ce_organizationid="org-1")
        await lab.update("m-1", {"notes": "2"}, id="e-2", source="b")
        third = await lab.publish("m-3", {"notes": "3"})
        await lab.publish("m-1", {"notes": 4}, partition=0)
        await lab.settled()
        await lab.database.execute(
            "UPDATE measurement_updates.rejected_updates SET state = 'discarded' WHERE code = 'invalid_patch'"
        )
        for options, wanted in (
            (("--source", "a"), 1),
            (("--organization", "org-1"), 1),
            (("--measurement", "m-1", "--only", "all"), 3),
            (("--only", "rejected"), 1),
            (("--source", f"kafka:{lab.updates}"), 2),
            (("--source", "nobody"), 0),
        ):
            log = await log_of(lab)
            until = max(record.timestamp for record in log if "requeued-from" not in dict(record.headers)) + 1
            run = await replayed(lab, "--from", "earliest", "--until", time_text(until), *options, *WHY)
            assert run["published"] == wanted, options
        partition, end = third.partition, third.offset + 1
        run = await replayed(
            lab, "--from", str(end - 1), "--until", str(end), "--partition", str(partition), *WHY
        )
        assert (run["read"], run["published"]) == (1, 1)
    assert (await verify(lab.settings)).ok


async def test_after_a_defect_events_are_applied_again_and_answered_where_that_changes_something(
    lab: System,
) -> None:
    for number in range(3):
        await lab.seed(f"m-{number}")
    async with lab.worker():
        for number in range(3):
            await lab.update(f"m-{number}", {"notes": "1", "name": "n"}, id="e-1")
            await lab.update(f"m-{number}", {"notes": "2"}, id="e-2")
        answers = await lab.answers()
        await lab.database.execute("SET measurement_updates.applying = on")  # as a worker with a defect would
        await lab.database.execute("UPDATE cell_measurements SET notes = 'lost' WHERE id = 'm-1'")
        await lab.database.execute("SET measurement_updates.applying = off")
        await lab.database.execute("UPDATE cell_measurements SET notes = 'by hand' WHERE id = 'm-2'")
        options = ("--from", "earliest", "--reapply", *WHY)
        forecast = await foreseen(lab, *options)
        assert [(change["id"], change["fields"]) for change in forecast["changes"]] == [
            ("m-1", {"notes": ["lost", "2"]})
        ]
        run = await replayed(lab, *options)
        assert run["outcome"] == {"applied": 1, "unchanged": 0, "duplicates": 5, "rejected": {}, "pending": 0}
        assert len(await lab.answers()) == len(answers) + 1
        assert [(await lab.row(f"m-{number}"))["notes"] for number in range(3)] == ["2", "2", "by hand"]
        run = await replayed(lab, *options)  # of everything that is there by now
        assert run["outcome"] == {
            "applied": 0,
            "unchanged": 0,
            "duplicates": 12,
            "rejected": {},
            "pending": 0,
        }
        assert (await verify(lab.settings)).findings["unanswered"].count == 0


# What would become of them ----------------------------------------------------------------------------------


async def foreseen(lab: System, *arguments: str) -> dict[str, Any]:
    code, out, errors = await replay(lab, *arguments, "--dry-run", "--json", "--examples", "1000")
    assert code == 0, errors
    return dict(orjson.loads(out))


@pytest.mark.parametrize("reapply", [(), ("--reapply",)])
async def test_a_dry_run_changes_nothing_and_foretells_what_happens(
    lab: System, reapply: Sequence[str]
) -> None:
    measurements = await seed(lab)
    load = Load(lab, measurements, f"dry-run {reapply}")
    async with lab.worker():
        await load.publish(600)
        await lab.settled()
        await lab.database.execute(  # half of what was unknown is there now
            """INSERT INTO cell_measurements (id, cell_instance_id, name)
               SELECT convert_from(key, 'UTF8'), 'cell', 'n' FROM measurement_updates.rejected_updates
               WHERE code = 'measurement_not_found' AND log_offset % 2 = 0 ON CONFLICT DO NOTHING"""
        )
        await lab.database.execute("SET measurement_updates.applying = on")
        await lab.database.execute("UPDATE cell_measurements SET name = 'lost' WHERE id < 'm-2'")
        await lab.database.execute("SET measurement_updates.applying = off")
        rows, log = await lab.rows(), await log_of(lab)
        options = ("--from", "earliest", *reapply, *WHY)
        forecast = await foreseen(lab, *options)
        assert (await lab.rows(), await log_of(lab)) == (rows, log)
        assert await lab.database.fetchval("SELECT count(*) FROM measurement_updates.replays") == 0
        run = await replayed(lab, *options)
        happened = run["outcome"]
        assert {name: forecast[name] for name in ("applied", "unchanged", "duplicates", "rejected")} == {
            name: happened[name] for name in ("applied", "unchanged", "duplicates", "rejected")
        }
        assert happened["applied"] > 5
        assert happened["duplicates"] > 100
        assert not reapply or forecast["late"] + forecast["rows"] > 5
        after = {row["id"]: row for row in await lab.rows()}
        before = {row["id"]: row for row in rows}
        fields = ("name", "protocol", "test_setup", "notes", "properties")
        changed = {
            id: {
                name: [parsed(name, before[id][name]), parsed(name, row[name])]
                for name in fields
                if parsed(name, before[id][name]) != parsed(name, row[name])
            }
            for id, row in after.items()
        }
        assert {change["id"]: change["fields"] for change in forecast["changes"]} == {
            id: fields for id, fields in changed.items() if fields
        }
        assert forecast["rows"] == len(forecast["changes"])
    assert (await verify(lab.settings)).findings["unanswered"].count == 0


def parsed(name: str, value: Any) -> Any:
    return (
        orjson.loads(value)
        if name in ("protocol", "test_setup", "properties") and value is not None
        else value
    )


async def test_a_dry_run_is_readable(lab: System) -> None:
    async with lab.worker():
        await lab.seed("m-1")
        await lab.update("m-2", {"notes": "x" * 100}, id="e-\x1b[2J")
        await lab.publish("m-1", b"{")
        await lab.settled()
    await lab.seed("m-2", notes="before")
    code, out, errors = await replay(lab, "--from", "1h", "--dry-run")
    assert code == 0, errors
    for words in (
        "nothing was published",
        " m-2 r1 notes",
        '- notes: "before"',
        '+ notes: "xxx',
        "invalid_json",
    ):
        assert words in out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 100


# Exactly once -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["replay_in_transaction", "replay_after_commit"])
async def test_killed_anywhere_and_gone_on_with_each_record_is_published_once(
    lab: System, point: str, pytestconfig: pytest.Config
) -> None:
    await some_records(lab, 300)
    chance = random.Random(f"{point} {pytestconfig.getoption('--fault-seed')}")
    options = ("--from", "earliest", "--no-wait", *WHY)
    few = {"WORKER_BATCH_RECORDS": "20"}
    code, _, _ = await replay(lab, *options, **few, WORKER_CRASH_AT=f"{point}:{chance.randint(1, 6)}")
    assert code == -signal.SIGKILL
    id = (await the_replay(lab))["id"]
    # begun once more by mistake
    code, _, errors = await replay(lab, *options, **few)
    assert code == 1
    assert f"measurement-updates replay resume {id}" in errors
    for _ in range(2):
        crash = f"{point}:{chance.randint(1, 3)}"
        code, _, _ = await replay(lab, "resume", id, "--no-wait", **few, WORKER_CRASH_AT=crash)
        assert code == -signal.SIGKILL
    async with lab.worker():
        run = await replayed(lab, "resume", id, **few)
        again = await replayed(lab, "resume", id)
    assert run == again
    assert (run["read"], run["selected"], run["published"]) == (300, 300, 300)
    assert run["outcome"] == {"applied": 0, "unchanged": 0, "duplicates": 300, "rejected": {}, "pending": 0}
    counted = copied(await log_of(lab))
    assert len(counted) == 300
    assert set(counted.values()) == {1}
    await check(lab)


async def test_who_is_resumed_elsewhere_is_fenced_and_says_so(lab: System) -> None:
    await some_records(lab, 2_000)
    async with begun(lab) as (process, id):
        process.send_signal(signal.SIGSTOP)
        async with lab.worker():
            run = await replayed(lab, "resume", id)
        process.send_signal(signal.SIGCONT)
        code, _, errors = await ended(process)
    assert code == 1
    assert "another one goes on with this replay" in errors or "another process has gone on" in errors, errors
    assert f"measurement-updates replay status {id}" in errors
    assert run["published"] == 2_000
    counted = copied(await log_of(lab))
    assert (len(counted), set(counted.values())) == (2_000, {1})


async def test_who_finds_it_finished_by_another_is_not_told_that_it_was_cancelled(lab: System) -> None:
    """It was stopped just before it noted how far it is."""
    await some_records(lab, 10)
    async with lab.worker():
        run = await replayed(lab, "--from", "earliest", *WHY)
    found = await runs.find(lab.database, run["id"])
    for step in (runs.note, runs.all_published):
        with pytest.raises(Superseded, match="another process has gone on with this replay: it is done"):
            await step(lab.database, found)


async def test_two_resumes_at_once_publish_each_record_once(lab: System) -> None:
    await some_records(lab, 1_000)
    async with begun(lab) as (process, id):
        process.kill()
        await process.wait()
    ends = await asyncio.gather(
        *(replay(lab, "resume", id, "--no-wait", WORKER_BATCH_RECORDS="20") for _ in range(2))
    )
    codes = sorted(code for code, _, _ in ends)
    assert codes in ([0, 0], [0, 1]), ends
    counted = copied(await log_of(lab))
    assert (len(counted), set(counted.values())) == (1_000, {1})
    kept = await the_replay(lab)
    assert (kept["state"], kept["published"]) == ("published", 1_000)


async def test_once_it_is_cancelled_nothing_more_is_published(lab: System) -> None:
    await some_records(lab, 2_000)
    async with begun(lab) as (process, id):
        code, out, errors = await replay(lab, "cancel", id, "--by", "anna", "--json")
        assert code == 0, errors
        published = len(copies(await log_of(lab)))
        code, _, errors = await ended(process)
        assert code == 1
        assert "cancelled" in errors
    assert orjson.loads(out)["published"] == published == len(copies(await log_of(lab))) < 2_000
    kept = await the_replay(lab)
    assert (kept["state"], kept["ended_by"], kept["published"]) == ("cancelled", "anna", published)
    for command in ("resume", "cancel"):
        code, _, errors = await replay(lab, command, id)
        assert code == 1
        assert "cancelled" in errors
    async with lab.worker():
        await check(lab)
    code, out, _ = await replay(lab, "status", id, "--json")
    assert orjson.loads(out)["outcome"]["duplicates"] == published


async def test_an_interrupt_says_how_to_go_on(lab: System) -> None:
    await some_records(lab, 2_000)
    async with begun(lab) as (process, id):
        process.send_signal(signal.SIGINT)
        code, out, errors = await ended(process)
    assert (code, out) == (130, "")
    assert f"go on with it: measurement-updates replay resume {id}\n" in errors
    assert "Traceback" not in errors
    code, out, _ = await replay(lab, "status")
    assert code == 0
    assert out.startswith(f"{id}  running, ")
    code, out, _ = await replay(lab, "status", id)
    assert (code, "workers have yet to decide them" in out) == (0, True)
    async with lab.worker():  # at once: an interrupted replay leaves no transaction open
        await lab.settled(10)
        run = await replayed(lab, "resume", id)
    assert run["published"] == 2_000
    counted = copied(await log_of(lab))
    assert (len(counted), set(counted.values())) == (2_000, {1})


# What is refused --------------------------------------------------------------------------------------------


async def test_a_range_that_retention_has_taken_is_refused_with_what_is_left(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        sent = [await lab.publish("m-1", {"notes": f"{number}"}, partition=0) for number in range(5)]
        await lab.settled()
        async with administering(lab) as admin:
            await admin.delete_records({TopicPartition(lab.updates, 0): RecordsToDelete(3)})
        left = time_text(sent[3].timestamp)
        gone: list[tuple[str, ...]] = [("--from", "1h"), ("--from", "2", "--partition", "0")]
        there: list[tuple[str, ...]] = [
            ("--from", "earliest"),
            ("--from", "3", "--until", "5", "--partition", "0"),
        ]
        for options in gone:
            code, _, errors = await replay(lab, *options, *WHY)
            assert code == 1
            assert f"{lab.updates}/0 begins at 3, {left}" in errors
            assert f"--from {left}" in errors
        assert await lab.database.fetchval("SELECT count(*) FROM measurement_updates.replays") == 0
        for options in there:
            run = await replayed(lab, *options, *WHY)
            assert run["published"] == 2


async def test_what_retention_takes_meanwhile_is_said_and_counted_and_is_a_failure(lab: System) -> None:
    await some_records(lab, 2_000)
    async with begun(lab) as (process, id):
        process.kill()
        await process.wait()
    ranges = orjson.loads((await the_replay(lab))["ranges"])
    gone = {
        TopicPartition(lab.updates, int(partition)): RecordsToDelete(end - 5)
        for partition, (_, end) in ranges.items()
    }
    async with administering(lab) as admin:
        await admin.delete_records(gone)
    async with lab.worker():
        code, out, errors = await replay(lab, "resume", id, "--json")
    run = orjson.loads(out)
    assert code == 1
    for tp in gone:
        assert f"{lab.updates}/{tp.partition}: retention has taken the records" in errors
    assert run["missed"] > 0
    assert run["read"] + run["missed"] == 2_000
    assert run["published"] == run["read"] >= 10
    assert (await the_replay(lab))["state"] == "done"


@pytest.mark.parametrize(
    ("limit", "most", "said"),
    [
        ("MAX_EVENTS", 50, "it looks at 50 records at most"),
        ("MAX_ROW_BYTES", 10_000, "take more than 0 MiB of memory"),
    ],
)
async def test_a_dry_run_stops_where_it_would_take_too_much_and_says_so(
    lab: System, monkeypatch: pytest.MonkeyPatch, limit: str, most: int, said: str
) -> None:
    await some_records(lab, 200)
    monkeypatch.setattr(dry_run, "_AT_ONCE", 20)
    monkeypatch.setattr(dry_run, limit, most)
    ground = await look_around(lab.settings, lab.database)
    forecast = await dry_run.dry_run(ground, Selection("earliest"), False, lambda *_: None, pytest.fail)
    assert forecast.stopped is not None
    assert said in forecast.stopped
    assert 20 <= forecast.selected < 200


async def test_what_can_not_be_published_again_is_said_and_is_a_failure(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        bomb = b'{"notes": "' + b"x" * 3 * 1024**2 + b'"}'
        [sent] = await lab.publish_raw((b"m-1", bomb, []), partition=0, compression=1)
        await lab.publish("m-1", {"notes": "x"}, partition=0)
        await lab.settled()
        code, out, errors = await replay(lab, "--from", "earliest", *WHY, "--json")
    assert code == 1
    assert f"{lab.updates}/0/{sent.offset} can't be published again" in errors
    run = orjson.loads(out)
    assert (run["selected"], run["published"], run["unpublishable"]) == (2, 1, 1)


async def test_wrong_usage_says_what_was_expected(lab: System) -> None:
    for arguments, code, words in (
        ((), 2, "--from: expected a time or an offset"),
        (("--from", "1h"), 2, "--why: expected the reason"),
        (("--from", "yesterday", *WHY), 2, "--from: expected an offset"),
        (("--from", "2026-01-31T12:00", *WHY), 2, "expected a time with its zone"),
        (("--from", "0", *WHY), 2, "expected --partition"),
        (("--from", "0", "--partition", "7", *WHY), 2, "--partition: expected one of"),
        (("--from", "5", "--partition", "0", *WHY), 2, "--from: expected an offset up to 0"),
        (("--from", "1h", "--until", "2h", *WHY), 2, "--until: expected an end"),
        (("status", "nothing"), 1, "there is no replay nothing"),
        (("resume", "nothing"), 1, "there is no replay nothing"),
    ):
        found, out, errors = await replay(lab, *arguments)
        assert (found, out) == (code, ""), errors
        assert words in errors
        assert "Traceback" not in errors
    for name, away, words in (
        ("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1", "Kafka can't be reached at 127.0.0.1:1"),
        ("DATABASE_URL", "postgresql://a@127.0.0.1:1/b", "Postgres can't be reached"),
    ):
        found, _, errors = await replay(lab, "--from", "1h", *WHY, **{name: away})
        assert (found, errors.startswith("error: ")) == (1, True)
        assert words in errors
