"""`history`: every revision of a measurement, what changed, and what it was."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest_asyncio
from aiokafka.structs import RecordMetadata

from tests.commands import Ran, begun, run
from tests.system import System
from worker.sql import queries

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def history(lab: System, *arguments: str) -> Ran:
    return await run(lab, "history", *arguments)


def told(entries: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What is in each line, without what differs from run to run."""
    return [
        (entry["entry"], entry["why"])
        if entry["entry"] == "begins"
        else (
            entry["entry"],
            entry.get("revision", (entry.get("first_revision"), entry.get("last_revision"))),
            [(one["path"], one.get("before", "-"), one.get("after", "-")) for one in entry["differences"]],
        )
        for entry in entries
    ]


@pytest_asyncio.fixture
async def story(lab: System) -> Sequence[RecordMetadata]:
    """m-1: an event to each of both partitions, REST in between, an event that changes nothing, a last one, REST."""
    await lab.seed("m-1", test_setup={"lab": "1", "channel_number": 3}, notes=None)
    async with lab.worker():
        first = {"notes": "vented"}
        sent = [await lab.structured("m-1", first, id="e-1", partition=0, traceparent=TRACE)]
        await lab.settled()
        setup = {"lab": "1", "channel_number": 7}
        sent.append(
            await lab.structured("m-1", {"test_setup": setup, "notes": "vented"}, id="e-2", partition=1)
        )
        await lab.settled()
        await lab.database.execute("UPDATE cell_measurements SET name = 'rest' WHERE id = 'm-1'")
        await lab.database.execute("UPDATE cell_measurements SET notes = 'also' WHERE id = 'm-1'")
        sent.append(await lab.update("m-1", {}, id="e-3"))
        sent.append(await lab.update("m-1", {"notes": None}, id="e-4"))
        await lab.settled()
    await lab.database.execute("UPDATE cell_measurements SET created_by = 'rest' WHERE id = 'm-1'")
    return sent


async def test_each_revision_is_told_with_what_changed_and_by_what(
    lab: System, story: Sequence[RecordMetadata]
) -> None:
    ran = await history(lab, "m-1", "--json")
    assert (ran.code, ran.errors) == (0, "")
    assert told(ran.lines) == [
        ("begins", "first_event"),
        ("applied", 1, [("$.notes", "-", "vented")]),
        ("applied", 2, [("$.test_setup.channel_number", 3, 7)]),
        ("changed_elsewhere", (3, 4), [("$.name", "formation", "rest")]),
        ("applied", 5, [("$.notes", "vented", None)]),
        ("changed_elsewhere", (6, 5), [("$.created_by", None, "rest")]),
    ]
    _, first, second, elsewhere, *_ = ran.lines
    assert (first["source"], first["id"], first["traceparent"]) == ("cycler", "e-1", TRACE)
    assert (first["topic"], first["partition"], first["offset"]) == (
        lab.updates,
        story[0].partition,
        story[0].offset,
    )
    assert first["arrival"] == story[0].timestamp
    assert (first["compared"], second["compared"], second["partition"]) == (False, True, 1)
    assert elsewhere["after"] == story[1].timestamp
    assert elsewhere["before"] == story[3].timestamp


async def test_events_that_changed_nothing_are_told_where_they_are_asked_for(
    lab: System, story: Sequence[RecordMetadata]
) -> None:
    ran = await history(lab, "m-1", "--all", "--json")
    assert told(ran.lines)[3:6] == [
        ("changed_elsewhere", (3, 4), [("$.name", "formation", "rest"), ("$.notes", "vented", "also")]),
        ("applied", 4, []),
        ("applied", 5, [("$.notes", "also", None)]),
    ]
    assert ran.lines[4]["id"] == "e-3"


async def test_people_read_when_who_what_and_where(lab: System, story: Sequence[RecordMetadata]) -> None:
    ran = await history(lab, "m-1")
    assert ran.code == 0
    for words in (
        "m-1, at revision 5",
        "(its first event)",
        f"cycler e-1 {lab.updates}/{story[0].partition}/{story[0].offset}",
        f"traceparent {TRACE}",
        '$.notes: (not known) → "vented"',
        "$.test_setup.channel_number: 3 → 7",
        "r3 to r4 changed elsewhere between",
        '$.name: "formation" → "rest"',
        '$.created_by: null → "rest"',
    ):
        assert words in ran.words
    assert max(len(line) for line in ran.out.splitlines()) <= 80
    assert "\x1b" not in ran.out


async def test_only_the_newest_are_told_and_compared_with_what_was_before(
    lab: System, story: Sequence[RecordMetadata]
) -> None:
    ran = await history(lab, "m-1", "--limit", "1", "--json")
    assert told(ran.lines) == [
        ("begins", "limit"),
        ("changed_elsewhere", (3, 4), [("$.name", "formation", "rest")]),
        ("applied", 5, [("$.notes", "vented", None)]),
        ("changed_elsewhere", (6, 5), [("$.created_by", None, "rest")]),
    ]


async def test_it_says_where_retention_has_ended_it(lab: System, story: Sequence[RecordMetadata]) -> None:
    await lab.database.execute("DELETE FROM measurement_updates.applied_updates WHERE event_id = 'e-1'")
    ran = await history(lab, "m-1", "--json")
    assert told(ran.lines)[:2] == [
        ("begins", "retention"),
        ("applied", 2, [("$.test_setup", "-", {"lab": "1", "channel_number": 7})]),
    ]
    assert "no longer kept" in (await history(lab, "m-1")).out
    await lab.database.execute("DELETE FROM measurement_updates.applied_updates")
    assert told((await history(lab, "m-1", "--json")).lines) == [("begins", "retention")]


async def test_the_model_as_it_was_at_a_revision(lab: System, story: Sequence[RecordMetadata]) -> None:
    first = await history(lab, "m-1", "--at", "1", "--json")
    assert (first.code, first.json["revision"], first.json["event"]["id"]) == (0, 1, "e-1")
    assert first.json["measurement"]["notes"] == "vented"
    assert first.json["measurement"]["test_setup"]["channel_number"] == 3
    shown = await history(lab, "m-1", "--at", "2")
    assert shown.json["test_setup"]["channel_number"] == 7
    assert "as event cycler e-2 left it" in " ".join(shown.errors.split())
    # made elsewhere, but an event that changed nothing has seen it
    assert (await history(lab, "m-1", "--at", "4")).json["name"] == "rest"
    now = await history(lab, "m-1", "--at", "5", "--json")
    assert (now.json["event"], now.json["measurement"]["created_by"]) == (None, "rest")
    assert len(now.json["measurement"]) == 16


async def test_a_revision_that_is_not_kept_is_one_message(
    lab: System, story: Sequence[RecordMetadata]
) -> None:
    for revision, words in (
        ("3", "revision 3 of measurement m-1 was made elsewhere"),
        ("9", "is at revision 5: expected 0 to 5, found 9"),
        ("0", "isn't kept: its history begins with its first event, at revision 1"),
    ):
        ran = await history(lab, "m-1", "--at", revision)
        assert (ran.code, ran.out) == (1, "")
        assert words in " ".join(ran.errors.split())


async def test_the_model_as_it_was_at_a_time(lab: System, story: Sequence[RecordMetadata]) -> None:
    def at(milliseconds: int) -> str:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")

    first = await history(lab, "m-1", "--at", at(story[0].timestamp), "--json")
    assert (first.json["revision"], first.json["note"]) == (1, "")
    second = await history(lab, "m-1", "--at", at(story[2].timestamp - 1), "--json")
    assert second.json["revision"] == 2
    assert "changed elsewhere after that event" in second.json["note"]
    assert (await history(lab, "m-1", "--at", "2126-01-01", "--json")).json["revision"] == 5
    assert (await history(lab, "m-1", "--at", "0s", "--json")).json["revision"] == 5
    assert "was created after that time" in (await history(lab, "m-1", "--at", "3d")).errors
    before = await history(lab, "m-1", "--at", "2001-01-01T00:00:00Z")
    assert (before.code, before.out) == (1, "")
    assert "was created after that time" in before.errors


async def test_what_is_asked_for_wrongly_is_one_message(lab: System) -> None:
    await lab.seed("m-1")
    for arguments, code, words in (
        (("nobody",), 1, "measurement nobody: expected the id of a row of cell_measurements, found none"),
        (("m-1", "--at", "yesterday"), 2, "--at: expected a revision (7), a time"),
        (("m-1", "--limit", "-1"), 2, "--limit"),
        ((), 2, "MEASUREMENT"),
    ):
        ran = await history(lab, *arguments)
        assert (ran.code, ran.out) == (code, "")
        assert words in " ".join(ran.errors.split())
        assert "Traceback" not in ran.errors
    ran = await run(lab, "history", "m-1", DATABASE_URL="postgresql://a@127.0.0.1:1/b")
    assert (ran.code, ran.errors.startswith("error: Postgres can't be reached")) == (1, True)
    assert ran.errors.endswith("See that the database (DATABASE_URL) is up, and reachable from here.\n")


async def test_a_measurement_without_events_has_a_present(lab: System) -> None:
    await lab.seed("m-1")
    assert told((await history(lab, "m-1", "--json")).lines) == [("begins", "no_event")]
    assert (await history(lab, "m-1", "--at", "0", "--json")).json["measurement"]["name"] == "formation"


async def test_a_row_that_the_model_cannot_express_is_said_and_its_history_told(
    lab: System, story: Sequence[RecordMetadata]
) -> None:
    await lab.database.execute("UPDATE cell_measurements SET measurement_type = 'odd' WHERE id = 'm-1'")
    ran = await history(lab, "m-1")
    assert ran.code == 0
    assert "$.test_setup.channel_number: 3 → 7" in ran.words
    assert "can't be expressed in the response model" in ran.words


async def many(database: "asyncpg.Connection[asyncpg.Record]", count: int) -> None:
    """m-1 with so many revisions, as if they had come through two partitions in turn."""
    for partition in (0, 1):
        await database.execute(
            """INSERT INTO measurement_updates.lanes
                   (topic, partition, cluster, consumer_group, next_to_apply, next_to_answer)
               VALUES ('t', $1, 'c', 'g', 0, 0)""",
            partition,
        )
    lanes = [row["lane"] for row in await database.fetch("SELECT lane FROM measurement_updates.lanes")]
    await database.execute(
        """INSERT INTO measurement_updates.applied_updates
               (lane, log_offset, arrival, identity, content, measurement_id, event_source, event_id, revision, changed,
                previous_lane, previous_offset, answer_source, answer)
           SELECT CASE WHEN n % 2 = 0 THEN $1::integer ELSE $2::integer END, n, n, sha256(n::text::bytea), '', 'm-1', 's',
                  n::text, n, 'notes', CASE WHEN n = 1 THEN NULL WHEN n % 2 = 0 THEN $2 ELSE $1 END, nullif(n - 1, 0), 's',
                  format('{"id": "m-1", "notes": "%s"}', n)
           FROM generate_series(1, $3::integer) AS n""",
        *lanes,
        count,
    )
    await database.execute(
        """UPDATE cell_measurements SET answer_lane = $1, answer_offset = $2, revision = $2 WHERE id = 'm-1'""",
        lanes[count % 2],
        count,
    )
    await database.execute("ANALYZE measurement_updates.applied_updates")


async def test_a_long_history_is_told_whole_and_each_link_found_by_the_key(lab: System) -> None:
    await lab.seed("m-1")
    await lab.database.execute("SET measurement_updates.applying = 'on'")
    await many(lab.database, 20_000)
    ran = await history(lab, "m-1", "--limit", "0", "--json")
    assert ran.code == 0
    begins, *entries, since = ran.lines
    assert begins["why"] == "first_event"
    assert [entry["revision"] for entry in entries] == [*range(1, 20_001)]
    assert [one["before"] for one in entries[-1]["differences"]] == ["19999"]
    assert since["entry"] == "changed_elsewhere"

    await lab.database.execute(f"PREPARE chain AS {queries('history.sql')['chain']}")
    lane, offset = (await lab.row("m-1"))["answer_lane"], (await lab.row("m-1"))["answer_offset"]
    plan = "\n".join(
        row[0] for row in await lab.database.fetch(f"EXPLAIN EXECUTE chain({lane}, {offset}, 1000)")
    )
    assert plan.count("applied_updates_pkey") == 2, plan
    assert "Seq Scan" not in plan, plan


async def test_a_reader_that_has_enough_ends_it_quietly(lab: System) -> None:
    await lab.seed("m-1")
    await lab.database.execute("SET measurement_updates.applying = 'on'")
    await many(lab.database, 5_000)
    async with begun(lab, "history", "m-1", "--limit", "0") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        await process.stdout.readline()
        process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]  # as head does
        await process.wait()
        assert (process.returncode, await process.stderr.read()) == (0, b"")
