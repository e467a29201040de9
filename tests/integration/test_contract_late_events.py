"""Late events: a field keeps the value of the latest position, whatever arrives when. Other writers take part."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from aiokafka.structs import RecordMetadata

from tests.system import Header, System

NEVER = 2**62
"""An arrival that no record has."""


def first_position(record: RecordMetadata) -> str:
    """For `requeued-from`."""
    return f"{record.topic}/{record.partition}/{record.offset}@{record.timestamp}"


def requeued(place: RecordMetadata | str) -> list[Header]:
    text = place if isinstance(place, str) else first_position(place)
    return [("requeued-from", text.encode())]


async def test_a_late_event_leaves_newer_fields_alone_and_applies_the_others(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        rejected = await lab.update("m-1", {"notes": "old", "name": "old", "test_setup": 1}, id="e-1")
        newer = await lab.update("m-1", {"notes": "new"}, id="e-2")
        repaired = await lab.update(
            "m-1",
            {"notes": "old", "name": "old", "test_setup": {"lab": "old"}},
            id="e-1",
            requeued_from=first_position(rejected),
        )
        assert await lab.verdicts(rejected, newer, repaired) == [
            "invalid_patch",
            "1 notes",
            "2 name,test_setup",
        ]
        [answer] = await lab.answers_to(repaired)
        assert (answer.model["notes"], answer.model["name"]) == ("new", "old")
        # updated_at is its own arrival, not its first position's
        assert datetime.fromisoformat(answer.model["updated_at"]).timestamp() * 1000 == repaired.timestamp

        # stamped with its first position: what was sent in between still counts as newer
        between = await lab.update("m-1", {"name": "between"}, id="e-3", requeued_from=first_position(newer))
        all_late = await lab.update(
            "m-1", {"name": None, "notes": "x"}, id="e-4", requeued_from=first_position(rejected)
        )
        assert await lab.verdicts(between, all_late) == ["3 name", "3"]
    row = await lab.row("m-1")
    assert (row["notes"], row["name"], row["revision"]) == ("new", "between", 3)


async def test_a_position_newer_than_the_records_own_counts_for_nothing(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        records = [
            await lab.publish(
                "m-1",
                {"notes": "a"},
                requeued(f"{lab.updates}/0/0@{NEVER}"),
            ),
            await lab.publish("m-1", {"notes": "b"}),
        ]
        assert await lab.verdicts(*records) == ["1 notes", "2 notes"]
        [answer] = await lab.answers_to(records[0])
    assert answer.text("ce_causationid") == first_position(records[0]).partition("/")[2]


async def test_a_bare_event_sent_again_keeps_its_first_position_as_its_identity(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        applied = await lab.publish("m-1", {"notes": "a"})
        refused = await lab.publish("m-1", {"notes": 1})
        records = [
            await lab.publish("m-1", {"notes": "a"}, requeued(applied)),
            await lab.publish("m-1", {"notes": "b"}, requeued(applied)),
            await lab.publish("m-1", {"notes": "c"}, requeued(refused)),
            await lab.publish("m-1", {"notes": "c"}, requeued(refused)),
        ]
        verdicts = await lab.verdicts(applied, refused, *records)
        assert verdicts[:2] == ["1 notes", "invalid_patch"]
        assert verdicts[2:] == ["duplicate", "event_id_reused", "2 notes", "duplicate"]
        [answer] = await lab.answers_to(records[2])
    assert answer.text("ce_causationid") == first_position(refused).partition("/")[2]
    assert answer.text("ce_id") == first_position(records[2]), "the answer is to the record that was applied"


async def test_writing_the_present_value_moves_the_fields_position(lab: System) -> None:
    await lab.seed("m-1", notes="same", measurement_type="time_series")
    async with lab.worker():
        early = await lab.publish("m-1", b"{")
        same = await lab.update("m-1", {"notes": "same"}, id="e-1")
        nothing = await lab.update("m-1", {"properties": None}, id="e-2")
        unnamed = await lab.update("m-1", {"name": None}, id="e-3")
        assert await lab.verdicts(same, nothing, unnamed) == ["0", "0", "0"]
        await lab.database.execute(
            "UPDATE cell_measurements SET measurement_type = 'properties' WHERE id = 'm-1'"
        )
        late = await lab.update(
            "m-1",
            {"notes": "late", "properties": {"a": "late"}, "name": "late"},
            id="e-4",
            requeued_from=first_position(early),
        )
        # only the name is open: null wrote nothing there
        assert await lab.verdicts(late) == ["1 name"]


async def test_within_a_millisecond_partition_and_offset_decide(lab: System) -> None:
    await lab.seed("m-1")
    place = f"{lab.updates}/{{}}/{{}}@1000"
    async with lab.worker():
        records = [
            await lab.publish("m-1", {"notes": text}, requeued(place.format(partition, offset)))
            for text, partition, offset in (
                ("a", 1, 5),
                ("b", 0, 9),
                ("c", 1, 4),
                ("d", 1, 6),
                ("e", 2, 0),
            )
        ]
        assert await lab.verdicts(*records) == ["1 notes", "1", "1", "2 notes", "3 notes"]


async def test_a_field_that_nothing_has_written_is_older_than_everything(lab: System) -> None:
    await lab.seed("m-1", notes="by the INSERT")
    async with lab.worker():
        ancient = await lab.publish("m-1", {"notes": "x"}, requeued(f"{lab.updates}/0/0@0"))
        assert await lab.verdicts(ancient) == ["1 notes"]


async def test_the_same_events_end_in_the_same_values_in_whatever_order_they_are_delivered(
    lab: System,
) -> None:
    """A log of updates, then the same events as repaired rejections, shuffled, each on a row of its own."""
    chance = random.Random(3)
    patches: list[dict[str, Any]] = [
        {
            field: chance.choice([None, f"{field} {number}"])
            if field in ("name", "notes")
            else chance.choice([None, {"lab": str(number)}])
            for field in ("name", "notes", "protocol", "test_setup")
            if chance.random() < 0.5
        }
        for number in range(12)
    ]
    await lab.seed("in order")
    async with lab.worker():
        log = [await lab.publish("in order", patch, partition=0) for patch in patches]
        rows = []
        for number in range(8):
            row = await lab.seed(f"shuffled {number}")
            order = list(range(len(patches)))
            chance.shuffle(order)
            order += chance.sample(order, 4)  # some twice
            for index in order:
                await lab.publish(row, patches[index], requeued(log[index]), partition=0)
            rows.append(row)
        await lab.settled()
    fields = ("name", "notes", "protocol", "test_setup")
    expected = await lab.row("in order")
    for row in rows:
        found = await lab.row(row)
        assert {field: found[field] for field in fields} == {field: expected[field] for field in fields}, row


async def other_writer(lab: System, statement: str) -> None:
    """As the REST API would: a session that the worker hasn't marked."""
    await lab.database.execute(statement)


async def test_a_late_event_does_not_undo_what_another_writer_changed_since(lab: System) -> None:
    await lab.seed("m-1", measurement_type="properties")
    async with lab.worker():
        early = await lab.publish("m-1", b"{")
        first = await lab.update("m-1", {"notes": "event", "protocol": {"a": 1}}, id="e-1")
        assert await lab.verdicts(first) == ["1 protocol,notes"]
        await other_writer(
            lab,
            """UPDATE cell_measurements SET name = 'rest', notes = 'rest', protocol = '{"rest": 1}',
               test_setup = '{"lab": "rest"}', properties = '{"rest": true}'""",
        )
        assert (await lab.row("m-1"))["revision"] == 2
        patch: dict[str, Any] = {
            "name": "late",
            "notes": "late",
            "protocol": None,
            "test_setup": None,
            "properties": None,
        }
        late = await lab.update("m-1", patch, id="e-2", requeued_from=first_position(early))
        later = await lab.update("m-1", patch, id="e-3")
        assert await lab.verdicts(late, later) == ["2", "3 name,protocol,test_setup,notes,properties"]


async def test_another_writers_change_stamps_only_the_columns_that_changed(lab: System) -> None:
    await lab.seed("m-1", notes="a")
    async with lab.worker():
        early = await lab.publish("m-1", b"{")
        await lab.settled()
        await other_writer(lab, "UPDATE cell_measurements SET name = 'rest', notes = notes, protocol = NULL")
        late = await lab.update(
            "m-1", {"name": "late", "notes": "late"}, id="e-1", requeued_from=first_position(early)
        )
        assert await lab.verdicts(late) == ["2 notes"]


async def test_the_trigger_sets_the_revision_whatever_the_statement_says(lab: System) -> None:
    await lab.seed("m-1", notes="a", test_setup={"channel_number": 3})
    statements = {
        "notes = 'b', revision = 100": 1,
        "revision = 100": 1,
        "revision = 0, name_position = NULL, notes_position = NULL, answer_lane = 7, answer_offset = 7": 1,
        "notes = 'b'": 1,
        """test_setup = '{"channel_number": 3.0}'""": 1,
        "start_time = now(), step_labels_validated = true, file_metadata = '{}'": 1,
        "updated_at = now(), created_by = 'x', organization_id = 'o', measurement_type = 'file'": 1,
        """test_setup = '{"channel_number": 4}', name = 'c'""": 2,
        "notes = NULL": 3,
        "properties = '{}'": 4,
        "protocol = '{}'": 5,
    }
    for statement, revision in statements.items():
        before = await lab.row("m-1")
        await other_writer(lab, f"UPDATE cell_measurements SET {statement}")
        row = await lab.row("m-1")
        assert row["revision"] == revision, statement
        assert (row["answer_lane"], row["answer_offset"]) == (None, None)
        for field in ("name", "protocol", "test_setup", "notes", "properties"):
            if row[field] == before[field]:
                assert row[f"{field}_position"] == before[f"{field}_position"], (statement, field)
            else:
                assert row[f"{field}_position"] > (before[f"{field}_position"] or b""), (statement, field)


async def test_an_insert_stamps_nothing_and_starts_at_revision_0(lab: System) -> None:
    await lab.database.execute(
        "INSERT INTO cell_measurements (id, cell_instance_id, name, notes) VALUES ('m-1', 'c', 'n', 'x')"
    )
    row = await lab.row("m-1")
    assert row["revision"] == 0
    assert [row[name] for name in row if name.endswith("_position")] == [None] * 5


async def test_the_trigger_never_stamps_below_what_the_field_has(lab: System) -> None:
    """Clocks that disagree: an event stamped ahead of the database's clock."""
    await lab.seed("m-1")
    ahead = (NEVER).to_bytes(8, "big") + bytes(16)
    async with lab.database.transaction():
        await lab.database.execute("SET LOCAL measurement_updates.applying = on")
        await lab.database.execute("UPDATE cell_measurements SET notes_position = $1", ahead)
    await other_writer(lab, "UPDATE cell_measurements SET notes = 'rest', name = 'rest'")
    row = await lab.row("m-1")
    assert row["notes_position"] == ahead
    assert row["revision"] == 1
    stamped = int.from_bytes(row["name_position"][:8], "big")
    assert abs(stamped - datetime.now(UTC).timestamp() * 1000) < 60_000
    assert row["name_position"][8:] == b"\x7f" + b"\xff" * 7 + b"\x7f" + b"\xff" * 7


async def test_what_the_worker_writes_is_not_taken_for_another_writers_change(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        sent = await lab.update("m-1", {"notes": "a"}, id="e-1")
        await lab.settled()
    row = await lab.row("m-1")
    own = b"".join(number.to_bytes(8, "big") for number in (sent.timestamp, sent.partition, sent.offset))
    assert (row["revision"], row["notes_position"], row["name_position"]) == (1, own, None)


async def test_another_writers_change_in_between_is_seen_and_not_announced(lab: System) -> None:
    await lab.seed("m-1", notes="a")
    async with lab.worker():
        first = await lab.update("m-1", {"name": "x"}, id="e-1")
        await lab.settled()
        await other_writer(lab, "UPDATE cell_measurements SET notes = 'rest'")
        second = await lab.update("m-1", {"name": "y"}, id="e-2", ce_expectedrevision="2")
        assert await lab.verdicts(first, second) == ["1 name", "3 name"]
        answers = await lab.answers()
    assert [answer.model["notes"] for answer in answers] == ["a", "rest"]


async def test_a_row_deleted_elsewhere_is_not_found_and_one_inserted_anew_is(lab: System) -> None:
    await lab.seed("m-0")
    await lab.seed("m-1")
    async with lab.worker():
        records = [await lab.update("m-1", {"notes": "a"}, id="e-1")]
        await lab.settled()
        await other_writer(lab, "DELETE FROM cell_measurements WHERE id = 'm-1'")
        records.append(await lab.update("m-1", {"notes": "b"}, id="e-2"))
        await lab.settled()
        await lab.seed("m-1")
        records.append(await lab.update("m-1", {"notes": "c"}, id="e-3"))
        assert await lab.verdicts(*records) == ["1 notes", "measurement_not_found", "1 notes"]


async def through_both(lab: System, texts: Sequence[str]) -> list[RecordMetadata]:
    """Alternating partitions, acknowledged one after the other."""
    return [
        await lab.publish("m-1", {"notes": text}, partition=number % 2) for number, text in enumerate(texts)
    ]


async def test_one_measurement_through_two_partitions_is_answered_in_revision_order(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker(worker_batch_records=3):
        records = await through_both(lab, [str(number) for number in range(40)])
        await lab.answers_to(*records)
        answers = await lab.answers()
    assert len({answer.partition for answer in answers}) == 1
    revisions = [answer.revision for answer in answers]
    assert revisions == sorted(revisions)
    row = await lab.row("m-1")
    last = answers[-1]
    assert (last.model["notes"], last.revision) == (row["notes"], row["revision"])
    assert row["notes"] == "39", "the latest position wins, in whichever order the two lanes applied them"
