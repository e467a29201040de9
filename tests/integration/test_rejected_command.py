"""`rejected`: what was rejected is listed, shown, repaired, sent again and followed, or discarded; and a case's state
moves by itself when it is answered, whoever sent it again."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.structs import RecordMetadata

from tests.faults.states import administering
from tests.system import COMMAND, Header, System
from worker.case_list import CaseFilter, cases, find_case
from worker.retention import remove_expired
from worker.sql import queries
from worker.verification import verify

WRONG = {"notes": "vented", "test_setup": {"channel_number": "25"}}
RIGHT = {"notes": "vented", "test_setup": {"channel_number": 25}}


async def rejected(
    lab: System, *arguments: str, stdin: bytes = b"", **environment: str
) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        COMMAND, "rejected", *arguments, env={**lab.environment, **environment},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, errors = await asyncio.wait_for(process.communicate(stdin), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), errors.decode()


async def said(lab: System, *arguments: str, code: int = 0, stdin: bytes = b"") -> dict[str, Any]:
    """Its `--json` object."""
    found, out, errors = await rejected(lab, *arguments, "--json", stdin=stdin)
    assert found == code, errors
    return dict(orjson.loads(out))


async def listed(lab: System, *filters: str) -> list[dict[str, Any]]:
    code, out, errors = await rejected(lab, "list", "--each", "--json", *filters)
    assert code == 0, errors
    return [orjson.loads(line) for line in out.splitlines()]


def id_of(record: RecordMetadata) -> str:
    return f"{record.partition}/{record.offset}"


def first(record: RecordMetadata) -> str:
    return f"{record.topic}/{record.partition}/{record.offset}@{record.timestamp}"


def requeued_from(record: RecordMetadata) -> Header:
    return "requeued-from", first(record).encode()


async def case_of(lab: System, record: RecordMetadata) -> tuple[str, int, list[tuple[str, str | None]]]:
    """State, attempts, and the acts with their details."""
    row = await lab.database.fetchrow(
        """SELECT r.* FROM measurement_updates.rejected_updates AS r JOIN measurement_updates.lanes USING (lane)
           WHERE topic = $1 AND partition = $2 AND log_offset = $3""",
        record.topic,
        record.partition,
        record.offset,
    )
    assert row is not None
    assert row["case_lane"] is None
    acts = await lab.database.fetch(queries("rejected.sql")["acts_of_case"], row["lane"], row["log_offset"])
    return row["state"], row["attempts"], [(act["act"], act["detail"]) for act in acts]


async def as_stored(lab: System) -> list[Any]:
    """Rejected rows but for what belongs to their cases."""
    return [
        *await lab.database.fetch(
            """SELECT lane, log_offset, arrival, key, value, header_names, header_values, code, detail::text,
                      truncated::text
               FROM measurement_updates.rejected_updates ORDER BY lane, log_offset"""
        )
    ]


def kept_bodies(directory: Path) -> list[Any]:
    return [orjson.loads(file.read_bytes()) for file in directory.iterdir()]


async def nothing_found(lab: System) -> None:
    report = await verify(lab.settings)
    assert report.ok, report.as_json()


# Listing and showing ----------------------------------------------------------------------------------------


async def test_what_was_rejected_is_grouped_by_what_is_wrong_and_filtered(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        for number in range(3):
            await lab.update("m-1", {"name": number}, id=f"e-{number}", source="cycler-7")
        await lab.update("m-8", {"notes": "x"}, id="e-8", ce_organizationid="org-1")
        await lab.structured("m-9", {"notes": "x"}, id="e-9", source="cycler-9", organizationid="org-2")
        await lab.publish("m-1", b"{nonsense")
        await lab.settled()

    code, out, errors = await rejected(lab, "list")
    assert (code, errors) == (0, "")
    lines = out.splitlines()
    assert "      3  invalid_patch" in lines[0]
    assert "$.name: expected a string of 1 to 255 characters" in " ".join(out.split())
    assert lines[-1] == "6 open of 3 kinds"
    assert all(len(line) <= 80 for line in lines)
    assert "\x1b" not in out

    groups = (await said(lab, "list"))["groups"]
    assert [(group["code"], group["cases"]) for group in groups] == [
        ("invalid_patch", 3), ("measurement_not_found", 2), ("invalid_json", 1),
    ]  # fmt: skip
    assert groups[0]["first_seen"] <= groups[0]["last_seen"]

    for filters, expected in (
        (("--code", "invalid_patch", "--code", "invalid_json"), 4),
        (("--measurement", "m-1"), 4),
        (("--measurement", "m-9"), 1),
        (("--source", "cycler-9"), 1),
        (("--source", "cycler-7", "--code", "invalid_json"), 0),
        (("--organization", "org-1"), 1),
        (("--organization", "org-2"), 1),
        (("--since", "1h"), 6),
        (("--until", "1h"), 0),
        (("--since", "2020-01-01", "--until", "2020-01-02T12:00+01:00"), 0),
        (("--state", "resolved"), 0),
        (("--state", "all"), 6),
    ):
        assert len(await listed(lab, *filters)) == expected, filters
    code, out, _ = await rejected(lab, "list", "--each", "--limit", "2")
    assert "the newest 2 of 6" in out
    for arguments, words in (
        (("--code", "nonsense"), "--code: expected one of empty_event"),
        (("--since", "yesterday"), "--since: expected 2h"),
    ):
        code, out, errors = await rejected(lab, "list", *arguments)
        assert code == 2
        assert words in errors


async def test_nothing_rejected_is_said(lab: System) -> None:
    assert await rejected(lab, "list") == (0, "nothing open with these filters\n", "")
    assert await rejected(lab, "list", "--each") == (0, "nothing open with these filters\n", "")


async def test_a_case_is_shown_with_its_marks_its_measurement_and_its_history(lab: System) -> None:
    await lab.seed("m-1", notes="as it was")
    async with lab.worker():
        sent = await lab.update("m-1", WRONG, id="e-1", mine="header")
        reused = await lab.update("m-1", {}, id="e-2", ce_expectedrevision="5")
        await lab.settled()
    code, out, errors = await rejected(lab, "show", id_of(sent))
    assert (code, errors) == (0, "")
    lines = out.splitlines()
    wrong = next(number for number, line in enumerate(lines) if line.startswith("  ✗ "))
    assert '"channel_number": "25"' in lines[wrong]
    assert "↑ expected an integer of at most 64 bits, or null" in lines[wrong + 1]
    for words in (
        "invalid_patch  open",
        "mine: header",
        "notes: as it was",
        "rejected: invalid_patch",
        "--edit",
    ):
        assert words in out
    assert all(len(line) <= 80 for line in lines)
    code, out, _ = await rejected(lab, "show", first(reused))
    assert "✗ ce_expectedrevision: 5" in out
    assert "↑ expected 0" in out

    shown = await said(lab, "show", f"{lab.updates}/{id_of(sent)}")
    assert shown["id"] == first(sent)
    assert orjson.loads(shown["value"]) == WRONG
    assert shown["violations"][0]["path"] == "$.test_setup.channel_number"
    assert shown["measurement"]["notes"] == "as it was"
    assert shown["rejections"][0]["place"] == first(sent)


@pytest.mark.parametrize("act", [("show",), ("discard", "--why", "a test")])
async def test_what_is_no_id_is_said_before_anything_is_connected_to(
    lab: System, act: tuple[str, ...]
) -> None:
    code, out, errors = await rejected(
        lab, *act, "nonsense", DATABASE_URL="postgresql://nobody@127.0.0.1:1/none"
    )
    assert (code, out) == (2, "")
    assert "expected PARTITION/OFFSET or TOPIC/PARTITION/OFFSET, found nonsense" in errors


async def test_an_envelope_is_no_body_to_repair(lab: System) -> None:
    await lab.seed("m-0")
    async with lab.worker():
        [sent] = await lab.publish_raw((b"m-1", b'{"notes": "x"}', [(b"ce_id", b"e-1")]))
        await lab.settled()
    code, out, _ = await rejected(lab, "show", id_of(sent))
    assert code == 0
    assert "by its producer, as a new event" in out
    assert "requeue" not in out


async def test_a_place_without_a_case_is_explained(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        await lab.publish("m-1", {"notes": "x"}, partition=0)
        await lab.settled()
    for id, code, words in (
        ("0/0", 1, "the record there was applied to measurement m-1"),
        ("0/7", 1, f"it isn't decided yet, {lab.updates}/0 is applied up to 1"),
        ("elsewhere/0/7", 1, "no worker has taken elsewhere/0 over in this database"),
        ("nonsense", 2, "expected PARTITION/OFFSET or TOPIC/PARTITION/OFFSET, found nonsense"),
        ("0/99999999999999999999", 2, "expected PARTITION/OFFSET"),
    ):
        found, out, errors = await rejected(lab, "show", id)
        assert (found, out) == (code, "")
        assert words in " ".join(errors.split())


# Requeueing -------------------------------------------------------------------------------------------------


async def test_requeued_as_it_was_it_is_applied_late_and_resolved(lab: System) -> None:
    async with lab.worker():
        await lab.seed("m-0")
        sent = await lab.update("m-1", {"notes": "early", "name": "LFP"}, id="e-1", mine="header")
        await lab.settled()
        await lab.seed("m-1")
        await lab.update("m-1", {"notes": "late"}, id="e-2")
        await lab.settled()
        code, out, errors = await rejected(
            lab, "requeue", id_of(sent), "--by", "anna", "--why", "was created too late"
        )
        assert code == 0, errors
        assert "applied, revision 2, name" in out
        assert (await lab.row("m-1"))["notes"] == "late"
        assert await listed(lab) == []
        state, attempts, acts = await case_of(lab, sent)
        assert (state, attempts) == ("resolved", 1)
        assert [act for act, _ in acts] == ["requeued", "answered"]
        assert (acts[0][1] or "").startswith(f"as it was, sent as {lab.updates}/")
        assert acts[1] == ("answered", "applied")
        act = await lab.database.fetchrow("SELECT * FROM measurement_updates.rejected_acts ORDER BY act_id")
        assert act is not None
        assert (act["acted_by"], act["why"]) == ("anna", "was created too late")

        # once more: nothing happens twice
        code, out, errors = await rejected(lab, "requeue", id_of(sent))
        assert code == 1
        assert "it is resolved: --again sends it all the same" in " ".join(errors.split())
        assert (await said(lab, "requeue", id_of(sent), "--again"))["duplicates"] == 1
        assert (await case_of(lab, sent))[0] == "resolved"
    await nothing_found(lab)


async def test_rejected_again_it_is_the_same_case_until_it_is_repaired(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        sent = await lab.update("m-1", WRONG, id="e-1")
        await lab.settled()
        before = await as_stored(lab)
        result = await said(lab, "requeue", id_of(sent), code=1)
        assert result["rejected"] == {"invalid_patch": 1}
        [case] = await listed(lab)
        assert (case["id"], case["attempts"], case["state"]) == (first(sent), 2, "open")
        second = result["each"][0]["sent"]
        assert (await said(lab, "show", second))["id"] == first(sent), "an attempt's place means its case"

        code, _, errors = await rejected(
            lab, "requeue", id_of(sent), "--patch", "-", stdin=orjson.dumps(WRONG)
        )
        assert code == 1
        assert "$.test_setup.channel_number: expected an integer" in errors
        assert "nothing was sent" in errors
        assert (await case_of(lab, sent))[:2] == ("open", 2)

        result = await said(lab, "requeue", id_of(sent), "--patch", "-", stdin=orjson.dumps(RIGHT))
        assert (result["applied"], result["each"][0]["revision"]) == (1, 1)
        assert (await lab.row("m-1"))["test_setup"] == {"channel_number": 25}
        state, attempts, acts = await case_of(lab, sent)
        assert (state, attempts) == ("resolved", 2)
        assert [detail for act, detail in acts if act == "answered"] == ["invalid_patch", "applied"]
        assert await listed(lab) == []
        assert (await listed(lab, "--state", "all"))[0]["attempts"] == 2
        stored = await as_stored(lab)
        assert [row for row in stored if row in before] == before, "what was stored stays byte for byte"
        code, out, _ = await rejected(lab, "show", id_of(sent))
        assert out.count("rejected: invalid_patch") == 2
        assert "with another body, sent as" in " ".join(out.split())
    await nothing_found(lab)


async def test_of_a_structured_event_the_data_is_replaced(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        sent = await lab.structured("m-1", WRONG, id="e-1", traceparent="00-1-2-03")
        await lab.settled()
        result = await said(lab, "requeue", id_of(sent), "--patch", "-", stdin=orjson.dumps(RIGHT))
        assert result["applied"] == 1
        [_, answer] = await lab.answers()
    [answer] = [answer for answer in await lab.answers() if not answer.rejected]
    assert (answer.text("ce_causationid"), answer.text("traceparent")) == ("e-1", "00-1-2-03")
    assert answer.model["test_setup"] == {"channel_number": 25}


async def test_a_body_is_repaired_in_the_editor_and_checked_before_it_is_sent(
    lab: System, tmp_path: Path
) -> None:
    await lab.seed("m-1")
    editor = f'{sys.executable} -c "import sys, pathlib as p; f = p.Path(sys.argv[1]); t = f.read_text(); '
    async with lab.worker():
        sent = await lab.update("m-1", WRONG, id="e-1")
        await lab.settled()
        for change, words in (
            ('f.write_text(t)"', "the body wasn't changed"),
            (
                "f.write_text(t.replace('vented', 'x'))\"",
                "the body is wrong: nothing was sent; it is kept in",
            ),
            ('sys.exit(1)"', "the body wasn't changed"),
        ):
            code, _, errors = await rejected(
                lab, "requeue", id_of(sent), "--edit", VISUAL=editor + change, TMPDIR=str(tmp_path)
            )
            assert code == 1
            assert words in " ".join(errors.split())
        assert kept_bodies(tmp_path) == [{**WRONG, "notes": "x"}]
        assert (await case_of(lab, sent))[0] == "open"
        repair = "assert t.startswith('// The body breaks'); f.write_text(t.replace('\\\"25\\\"', '25'))\""
        code, out, errors = await rejected(
            lab, "requeue", id_of(sent), "--edit", VISUAL=editor + repair, TMPDIR=str(tmp_path)
        )
        assert code == 0, errors
        assert "applied, revision 1, test_setup, notes" in out
    assert (await lab.row("m-1"))["test_setup"] == {"channel_number": 25}


async def test_a_filtered_set_is_rehearsed_then_sent_in_order_and_counted(lab: System) -> None:
    await lab.seed("m-0")
    async with lab.worker():
        for number in range(5):
            await lab.update("m-1", {"notes": f"{number}"}, id=f"e-{number}", source="late")
        await lab.update("m-1", {"name": 5}, id="wrong", source="late")
        await lab.update("m-9", {"notes": "x"}, id="another", source="other")
        await lab.settled()
        rehearsed = await said(lab, "requeue", "--source", "late", "--dry-run")
        assert (rehearsed["cases"], rehearsed["requeued"]) == (6, 0)
        assert rehearsed["foreseen"] == {"invalid_patch": 1}
        code, out, _ = await rejected(lab, "requeue", "--source", "late", "--dry-run")
        assert code == 0
        assert "would be rejected again: invalid_patch" in out
        assert len(await listed(lab)) == 7
        await lab.seed("m-1")
        code, out, _ = await rejected(lab, "requeue", "--source", "late")
        assert code == 1
        counts = [line.split() for line in out.splitlines()[-4:]]
        assert counts == [
            ["requeued", "6"],
            ["applied", "5"],
            ["rejected", "again", "1"],
            ["invalid_patch", "1"],
        ]
        assert (await lab.row("m-1"))["notes"] == "4"
        assert {case["code"] for case in await listed(lab)} == {"invalid_patch", "measurement_not_found"}
    await nothing_found(lab)


async def test_what_is_meant_must_be_said(lab: System) -> None:
    for arguments, words in (
        (("requeue",), "expected ids (0/17), filters"),
        (("requeue", "0/1", "--code", "invalid_json"), "expected ids or filters, found both"),
        (("requeue", "--all", "--patch", "-"), "--patch and --edit: expected one ID"),
        (("requeue", "0/1", "0/2", "--edit"), "--patch and --edit: expected one ID"),
        (("discard", "--why", "w"), "expected ids (0/17), filters"),
        (("discard", "0/1"), "--why"),
    ):
        code, _, errors = await rejected(lab, *arguments)
        assert code == 2
        assert words in " ".join(errors.split())
    code, out, _ = await rejected(lab, "requeue", "--all")
    assert (code, out) == (0, "nothing to requeue with these filters\n")


async def test_killed_between_act_and_send_it_is_sent_by_running_it_again(lab: System) -> None:
    await lab.seed("m-0")
    async with lab.worker():
        sent = await lab.update("m-1", {"notes": "x"}, id="e-1")
        await lab.settled()
        await lab.seed("m-1")
        code, _, _ = await rejected(lab, "requeue", id_of(sent), WORKER_CRASH_AT="between_act_and_send")
        assert code == -signal.SIGKILL
        assert await case_of(lab, sent) == ("requeued", 1, [("requeued", "as it was")])
        assert (await listed(lab, "--state", "requeued"))[0]["id"] == first(sent)
        _, out, _ = await rejected(lab, "list")
        assert "1 requeued and not answered yet (--state requeued)" in out

        code, _, errors = await rejected(lab, "requeue", id_of(sent))
        assert code == 1
        assert "but nothing says that it was sent, and isn't answered yet: --again" in " ".join(
            errors.split()
        )
        assert (await said(lab, "requeue", id_of(sent), "--again"))["applied"] == 1
        assert (await said(lab, "requeue", id_of(sent), "--again"))["duplicates"] == 1
        assert (await case_of(lab, sent))[:2] == ("resolved", 1)
    await nothing_found(lab)


async def test_two_at_once_send_it_once(lab: System) -> None:
    await lab.seed("m-0")
    async with lab.worker():
        sent = await lab.update("m-1", {"notes": "x"}, id="e-1")
        await lab.settled()
        await lab.seed("m-1")
        results = await asyncio.gather(*(rejected(lab, "requeue", id_of(sent)) for _ in range(2)))
        assert sorted(code for code, _, _ in results) == [0, 1], results
        await lab.settled()
    [_, _, acts] = await case_of(lab, sent)
    assert [act for act, _ in acts] == ["requeued", "answered"]


async def test_without_a_worker_it_is_requeued_and_not_waited_for(lab: System) -> None:
    await lab.seed("m-0")
    async with lab.worker():
        sent = await lab.update("m-1", {"notes": "x"}, id="e-1")
        await lab.settled()
    await lab.seed("m-1")
    code, out, _ = await rejected(lab, "requeue", id_of(sent), "--no-wait")
    assert code == 0
    assert "not answered yet" in out
    assert (await case_of(lab, sent))[0] == "requeued"
    process = await asyncio.create_subprocess_exec(
        COMMAND, "rejected", "requeue", id_of(sent), "--again", env=lab.environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    assert b"waiting for a worker" in await asyncio.wait_for(process.stderr.readline(), 60)
    process.send_signal(signal.SIGINT)
    out_, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 130
    assert b"not answered yet" in out_
    async with lab.worker():
        await lab.settled()
    assert (await case_of(lab, sent))[0] == "resolved", "sent twice, applied once"
    await nothing_found(lab)


async def test_what_is_stored_in_part_is_read_from_the_input_log_while_it_is_there(lab: System) -> None:
    await lab.seed("m-0")
    topic = ConfigResourceType.TOPIC, lab.settings.worker_rejected_topic
    async with administering(lab) as admin:
        await admin.alter_configs([ConfigResource(*topic, {"max.message.bytes": str(64 * 1024)})])
    notes = "x" * 200_000
    async with lab.worker():
        sent = [await lab.update("m-1", {"notes": notes}, id=f"e-{at}", source="large") for at in range(2)]
        await lab.settled()
        await lab.seed("m-1")
        code, out, _ = await rejected(lab, "show", id_of(sent[0]))
        assert "cut: of 200,0" in out
        assert (await said(lab, "requeue", id_of(sent[0])))["applied"] == 1
        assert (await lab.row("m-1"))["notes"] == notes

        async with administering(lab) as admin:
            before = {TopicPartition(lab.updates, sent[1].partition): RecordsToDelete(sent[1].offset + 1)}
            await admin.delete_records(before)
        code, _, errors = await rejected(lab, "requeue", id_of(sent[1]))
        assert code == 1
        assert "isn't stored as a whole (its value has 200,012 bytes)" in " ".join(errors.split())
        assert "--patch FILE" in errors
        assert (await case_of(lab, sent[1]))[0] == "open"
        result = await said(lab, "requeue", id_of(sent[1]), "--patch", "-", stdin=b'{"notes":"short"}')
        assert result["applied"] == 1
    assert (await lab.row("m-1"))["notes"] == "short"


# Answers move states ----------------------------------------------------------------------------------------


async def test_a_producer_that_sends_it_again_moves_the_state_as_well(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        sent = await lab.publish("m-1", WRONG, partition=0)
        await lab.settled()
        second = await lab.publish("m-1", WRONG, [requeued_from(sent)], partition=1)
        await lab.settled()
        assert (await case_of(lab, sent))[:2] == ("open", 2)
        # one that names the attempt, not the first record, means the same case
        third = await lab.publish("m-1", {"name": 7}, [requeued_from(second)], partition=1)
        await lab.settled()
        assert (await case_of(lab, sent))[:2] == ("open", 3)
        [case] = await listed(lab)
        assert case["last_seen"] == third.timestamp
        assert "$.name" in case["message"]
        await lab.publish("m-1", RIGHT, [requeued_from(sent)], partition=1)
        await lab.settled()
        assert await case_of(lab, sent) == (
            "resolved", 3,
            [("answered", "invalid_patch"), ("answered", "invalid_patch"), ("answered", "applied")],
        )  # fmt: skip
        # what names no case is a case of its own
        await lab.publish("m-1", WRONG, [("requeued-from", f"{lab.updates}/0/0@1".encode())], partition=0)
        await lab.settled()
        assert len(await listed(lab)) == 1
    await nothing_found(lab)


async def test_attempts_of_one_batch_come_out_in_log_order(lab: System) -> None:
    """Everything is there before the worker is: first record and attempts are decided in one transaction."""
    await lab.seed("m-1")
    one = await lab.publish("m-1", WRONG, partition=0)
    await lab.publish("m-1", RIGHT, [requeued_from(one)], partition=0)
    await lab.publish("m-1", WRONG, [requeued_from(one)], partition=0)
    two = await lab.publish("m-1", WRONG, partition=0)
    again = await lab.publish("m-1", WRONG, [requeued_from(two)], partition=0)
    await lab.publish("m-1", WRONG, [requeued_from(again)], partition=0)
    await lab.publish("m-1", RIGHT, [requeued_from(two)], partition=0)
    three = await lab.publish("m-1", WRONG, partition=0)
    async with lab.worker():
        await lab.settled()
    assert await case_of(lab, one) == ("open", 2, [("answered", "applied"), ("answered", "invalid_patch")])
    assert await case_of(lab, two) == (
        "resolved", 3, [("answered", "invalid_patch"), ("answered", "invalid_patch"), ("answered", "applied")],
    )  # fmt: skip
    assert await case_of(lab, three) == ("open", 1, [])
    assert [case["id"] for case in await listed(lab)] == [first(one), first(three)]
    await nothing_found(lab)


# Discarding -------------------------------------------------------------------------------------------------


async def test_discarded_cases_are_closed_with_who_and_why(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        sent = [await lab.publish("m-1", b"{nonsense") for _ in range(3)]
        await lab.publish("m-1", WRONG)
        await lab.settled()
        before = await as_stored(lab)
        filters = ("--code", "invalid_json", "--why", "test cells", "--by", "anna")
        assert len((await said(lab, "discard", *filters, "--dry-run"))["discarded"]) == 3
        assert len(await listed(lab)) == 4
        code, out, _ = await rejected(lab, "discard", id_of(sent[0]), "--why", "an accident", "--by", "bert")
        assert (code, out) == (0, "discarded 1 of 1\n")
        assert len((await said(lab, "discard", *filters))["discarded"]) == 2
        assert [case["code"] for case in await listed(lab)] == ["invalid_patch"]
        assert len(await listed(lab, "--state", "discarded")) == 3
        assert await case_of(lab, sent[1]) == ("discarded", 1, [("discarded", None)])
        act = await lab.database.fetchrow(
            "SELECT * FROM measurement_updates.rejected_acts WHERE acted_by = 'bert'"
        )
        assert act is not None
        assert act["why"] == "an accident"
        code, _, errors = await rejected(lab, "discard", id_of(sent[0]), "--why", "w")
        assert code == 1
        assert "it is discarded already" in errors
        # a replay that meets one, rejected as before, doesn't open it again
        await lab.publish("m-1", b"{nonsense", [requeued_from(sent[1])])
        await lab.settled()
        acts = [("discarded", None), ("answered", "invalid_json")]
        assert await case_of(lab, sent[1]) == ("discarded", 2, acts)
        # somebody sends it again all the same
        assert (await said(lab, "requeue", id_of(sent[0]), "--again", "--patch", "-", stdin=b"{}"))[
            "applied"
        ] == 1
        assert (await case_of(lab, sent[0]))[0] == "resolved"
        assert [row for row in await as_stored(lab) if row in before] == before
    await nothing_found(lab)


# In the database --------------------------------------------------------------------------------------------


async def lane(database: Any, *, retired: bool = False, **columns: Any) -> int:
    values = {"topic": "updates", "next_to_answer": 5_000, "latest_arrival": 1_000_000, **columns}
    return int(
        await database.fetchval(
            f"""INSERT INTO measurement_updates.lanes
                    (partition, cluster, consumer_group, next_to_apply, retired_at, {", ".join(values)})
                VALUES (0, 'c', 'g', 5000, {"now()" if retired else "NULL"}, $1, $2, $3) RETURNING lane""",
            *values.values(),
        )
    )


async def row(database: Any, lane: int, offset: int, arrival: int, **columns: Any) -> None:
    values = {"lane": lane, "log_offset": offset, "arrival": arrival, "code": "invalid_json", **columns}
    places = ", ".join(f"${at}" for at in range(1, len(values) + 1))
    await database.execute(
        f"""INSERT INTO measurement_updates.rejected_updates ({", ".join(values)}, header_names, header_values, detail)
            VALUES ({places}, '{{}}', '{{}}', '{{"message":"m","violations":[],"total":0}}')""",
        *values.values(),
    )


async def test_of_a_log_that_began_anew_the_newest_lane_is_meant_unless_the_arrival_says_another(
    lab: System,
) -> None:
    old = await lane(lab.database, retired=True)
    new = await lane(lab.database)
    await row(lab.database, old, 7, 100)
    await row(lab.database, new, 7, 900)
    await row(lab.database, old, 8, 200)
    await row(lab.database, new, 8, 200)  # applied anew by `lanes restart`: the same record
    found = {
        id: (await find_case(lab.database, id, "updates")).lane
        for id in ("0/7", "updates/0/7@900", "0/7@100", "0/8", "0/8@200")
    }
    assert found == {"0/7": new, "updates/0/7@900": new, "0/7@100": old, "0/8": new, "0/8@200": new}
    everything = [(case.lane, case.offset) async for case in cases(lab.database, CaseFilter())]
    assert everything == [(old, 7), (new, 8), (new, 7)]


async def no_ends() -> dict[int, int]:
    return {}


async def test_retention_keeps_attempts_with_their_case_and_a_case_with_its_last_act(lab: System) -> None:
    number = await lane(lab.database, latest_arrival=200 * 86_400_000)
    await row(
        lab.database, number, 1, 1, attempts=2, last_lane=number, last_offset=2
    )  # open: all of it stays
    await row(lab.database, number, 2, 2, case_lane=number, case_offset=1, state="resolved")
    await row(lab.database, number, 3, 3, attempts=2, state="resolved")  # closed long ago: all of it goes
    await row(lab.database, number, 4, 4, case_lane=number, case_offset=3, state="resolved")
    await row(lab.database, number, 5, 5, state="resolved")  # closed of late
    for offset, at in ((3, "1970-01-01"), (5, "now")):
        await lab.database.execute(
            f"""INSERT INTO measurement_updates.rejected_acts (lane, log_offset, act, acted_by, acted_at)
                VALUES ($1, $2, 'answered', 'w', '{at}')""",
            number,
            offset,
        )
    async with asyncpg.create_pool(lab.settings.dsn, min_size=1, max_size=1) as pool:
        removed = [(await remove_expired(pool, lab.settings, no_ends))["rejected_updates"] for _ in range(3)]
    assert removed == [1, 1, 0]
    left = await lab.database.fetch(
        "SELECT log_offset FROM measurement_updates.rejected_updates ORDER BY log_offset"
    )
    assert [row["log_offset"] for row in left] == [1, 2, 5]
    assert await lab.database.fetchval("SELECT count(*) FROM measurement_updates.rejected_acts") == 1


async def test_open_cases_and_those_of_a_batch_are_found_by_index(lab: System) -> None:
    number = await lane(lab.database)
    await lab.database.execute(
        """INSERT INTO measurement_updates.rejected_updates
               (lane, log_offset, arrival, header_names, header_values, code, detail, state)
           SELECT $1, at, at, '{}', '{}', 'invalid_json', '{}', CASE WHEN at % 1000 = 0 THEN 'open' ELSE 'resolved' END
           FROM generate_series(1, 20000) AS at""",
        number,
    )
    await lab.database.execute("ANALYZE")
    sql = queries("rejected.sql")
    for name, arguments in (
        ("list_cases", f"ARRAY['open'], 0, {2**63 - 1}, NULL, NULL, false"),
        ("lock_cases", "ARRAY['updates'], ARRAY[0], ARRAY[7], ARRAY[7]"),
        ("settle_cases", "ARRAY[1], ARRAY[7], ARRAY['open'], ARRAY[1], ARRAY[1], ARRAY[8]"),
        ("count_states", ""),
        ("attempts_of_case", "1, 7"),
    ):
        await lab.database.execute(f"PREPARE {name} AS {sql[name]}")
        call = f"{name}({arguments})" if arguments else name
        plan = "\n".join(row[0] for row in await lab.database.fetch(f"EXPLAIN EXECUTE {call}"))
        assert "Index" in plan, f"{name}:\n{plan}"
        assert "Seq Scan on rejected_updates" not in plan, f"{name}:\n{plan}"
