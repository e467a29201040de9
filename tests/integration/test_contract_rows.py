"""What stands in the database: rows that the model can't express, data that is refused, a table that is empty."""

from typing import Any

import asyncpg
import orjson
import pytest
from structlog.testing import capture_logs

from tests.faults.states import lanes_wait
from tests.system import Header, System, system, until
from worker.stack import Stack

UNREADABLE = {
    "name NULL": ("name = NULL", "$.name"),
    "name empty": ("name = ''", "$.name"),
    "name of 256": ("name = repeat('x', 256)", "$.name"),
    "protocol a list": ("protocol = '[1]'", "$.protocol"),
    "protocol a number": ("protocol = '3'", "$.protocol"),
    "test_setup a string": ("test_setup = '\"x\"'", "$.test_setup"),
    "properties true": ("properties = 'true'", "$.properties"),
    "file_metadata a list": ("file_metadata = '[]'", "$.file_metadata"),
    "unknown type": ("measurement_type = 'other'", "$.measurement_type"),
    "created at infinity": ("created_at = 'infinity'", "$.created_at"),
    "created in 20000": ("created_at = '20000-01-01'", "$.created_at"),
    "created before Christ": ("created_at = '0044-03-15 BC'", "$.created_at"),
    "started at -infinity": ("start_time = '-infinity'", "$.start_time"),
    "updated at infinity": ("updated_at = 'infinity'", "$.updated_at"),
}
READABLE = {
    "name of 255": "name = repeat('µ', 255)",
    "JSON null": "protocol = 'null', test_setup = 'null', properties = 'null', file_metadata = 'null'",
    "any object": """protocol = '{"name": 3, "definition": [true]}', test_setup = '{"channel_number": "x"}',
                     properties = '{"mass": 3, "deep": {"a": [1]}}', file_metadata = '{"a": [{}]}'""",
    "year 9999": "created_at = '9999-12-31T23:59:59.999999Z', start_time = '0001-01-01T00:00:00Z'",
    "updated at -infinity": "updated_at = '-infinity'",
    "empty texts": "cell_instance_id = '', notes = '', organization_id = '', created_by = ''",
}


async def test_a_row_that_the_model_cannot_express_is_unreadable_until_it_is_mended(lab: System) -> None:
    for id, (statement, _) in UNREADABLE.items():
        await lab.seed(id, measurement_type="properties")
        await lab.database.execute(f"UPDATE cell_measurements SET {statement} WHERE id = $1", id)
    for id, statement in READABLE.items():
        await lab.seed(id)
        await lab.database.execute(f"UPDATE cell_measurements SET {statement} WHERE id = $1", id)
    mending: dict[str, dict[str, Any]] = {
        "name NULL": {"name": "mended"},
        "name empty": {"name": "mended"},
        "name of 256": {"name": "mended"},
        "protocol a list": {"protocol": {}},
        "protocol a number": {"protocol": None},
        "test_setup a string": {"test_setup": None},
        "properties true": {"properties": {}},
    }
    async with lab.worker():
        records = [await lab.update(id, {"notes": "x"}, id="e-1") for id in UNREADABLE]
        readable = [await lab.update(id, {"notes": "x"}, id="e-1") for id in READABLE]
        untouched = await lab.update("name NULL", {}, id="e-2")
        unnamed = await lab.update("name NULL", {"name": None}, id="e-3")
        mended = [await lab.update(id, patch, id="e-4") for id, patch in mending.items()]
        verdicts = dict(zip(UNREADABLE, await lab.verdicts(*records), strict=True))
        assert verdicts == dict.fromkeys(UNREADABLE, "measurement_unreadable")
        assert await lab.verdicts(untouched, unnamed) == ["measurement_unreadable"] * 2
        answers = await lab.answers_to(*records)
        for (id, (_, path)), answer in zip(UNREADABLE.items(), answers, strict=True):
            assert answer.detail["violations"][0]["path"] == path, id
            assert path[2:] in answer.detail["message"], id

        before = dict(await lab.database.fetch("SELECT id, revision FROM cell_measurements"))
        assert all(answer.changed == ["notes"] for answer in await lab.answers_to(*readable))
        for id, answer in zip(mending, await lab.answers_to(*mended), strict=True):
            assert answer.changed == list(mending[id]), id
            assert answer.revision == before[id]
            assert answer.model[answer.changed[0]] == mending[id][answer.changed[0]]

        await lab.database.execute(
            """UPDATE cell_measurements SET created_at = now(), start_time = NULL, file_metadata = NULL,
               measurement_type = 'file', cell_instance_id = 'c', updated_at = now()"""
        )
        again = [await lab.update(id, {"notes": "y"}, id="e-1") for id in UNREADABLE]
        assert {verdict.partition(" ")[2] for verdict in await lab.verdicts(*again)} == {"notes"}


async def test_what_only_postgres_can_hold_is_passed_on_compared_and_sent_again(lab: System) -> None:
    """REST wrote it: numbers beyond a double, objects deeper than parsers like."""
    depth = 3_000
    objects = {
        "1e400": '{"n": 1e400}',
        "digits": '{"n": 123456789012345678901234567890}',
        "many digits": '{"n": %s.5}' % ("9" * 6_000),
        "deep": '{"n": ' * depth + "1" + "}" * depth,
    }
    for id, text in objects.items():
        await lab.seed(id)
        await lab.database.execute(
            "UPDATE cell_measurements SET protocol = $2, file_metadata = $2 WHERE id = $1", id, text
        )
    async with lab.worker():
        passed_on = [await lab.update(id, {"notes": "x"}, id="e-1") for id in objects]
        assert await lab.verdicts(*passed_on) == ["2 notes"] * len(objects)
        answers = await lab.answers_to(*passed_on)
        assert b'"n": 123456789012345678901234567890}' in (answers[1].value or b"")
        replaced = [await lab.update(id, {"protocol": {"n": 1}}, id="e-2") for id in objects]
        assert await lab.verdicts(*replaced) == ["3 protocol"] * len(objects)
        answers = await lab.answers()
    await lab.rewind()
    async with lab.worker():
        again = [answer.value or b"" for answer in await lab.answers()]
    assert sorted(again) == sorted(2 * [answer.value or b"" for answer in answers])


REFUSALS = {
    "a CHECK": (
        "ALTER TABLE cell_measurements ADD CONSTRAINT no_refusal CHECK (notes <> 'refused')",
        "23514",
    ),
    "a trigger's RAISE": (
        """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
           BEGIN IF NEW.notes = 'refused' THEN RAISE 'not in this lab'; END IF; RETURN NEW; END $$;
           CREATE TRIGGER refuse BEFORE UPDATE ON cell_measurements FOR EACH ROW EXECUTE FUNCTION refuse()""",
        "P0001",
    ),
    "a deferred constraint": (
        """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
           BEGIN IF NEW.notes = 'refused' THEN RAISE 'not in this lab'; END IF; RETURN NULL; END $$;
           CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON cell_measurements
           DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()""",
        "P0001",
    ),
    "a unique name, deferred": (
        "ALTER TABLE cell_measurements ADD UNIQUE (notes) DEFERRABLE INITIALLY DEFERRED",
        "23505",
    ),
    "a cast": (
        "ALTER TABLE cell_measurements ADD CHECK (notes IS NULL OR notes <> 'refused' OR notes::integer > 0)",
        "22P02",
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_data_that_the_database_refuses_rejects_that_event_alone(lab: System, refusal: str) -> None:
    statement, sqlstate = REFUSALS[refusal]
    for number in range(4):
        await lab.seed(f"m-{number}")
    await lab.seed("taken", notes="refused" if "unique" in refusal else "taken")
    await lab.database.execute(statement)
    refused = (0, 13, 14, 39)
    records = []
    for number in range(40):
        # each refused text is the last of its measurement: what is overwritten at once, the database may never see
        id = await lab.seed(f"refused-{number}") if number in refused else f"m-{number % 4}"
        notes = "refused" if number in refused else str(number)
        records.append(await lab.publish(id, {"notes": notes}, partition=0))
    async with lab.worker():
        verdicts = await lab.verdicts(*records)
        assert tuple(n for n, verdict in enumerate(verdicts) if verdict == "storage_refused") == refused
        [answer] = await lab.answers_to(records[13])
        updated = [answer for answer in await lab.answers() if not answer.rejected]
    assert sqlstate in answer.detail["message"]
    assert answer.detail["total"] == 1
    assert (answer.key, answer.value) == (b"refused-13", b'{"notes":"refused"}')
    for number in range(4):
        mine = [answer for answer in updated if answer.key == b"m-%d" % number]
        assert [answer.revision for answer in mine] == list(range(1, len(mine) + 1))
        texts = [str(n) for n in range(number, 40, 4) if n not in refused]
        assert [answer.model["notes"] for answer in mine] == texts
    for number in refused:
        row = await lab.row(f"refused-{number}")
        assert (row["notes"], row["revision"], row["notes_position"]) == (None, 0, None)


async def test_a_refusal_that_is_not_about_data_waits_and_rejects_nothing(lab: System) -> None:
    await lab.seed("m-1")
    await lab.database.execute("REVOKE ALL ON cell_measurements FROM CURRENT_USER")
    await lab.database.execute(
        """CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$
           BEGIN PERFORM 1 FROM no_such_table; RETURN NEW; END $$;
           CREATE TRIGGER broken BEFORE UPDATE ON cell_measurements FOR EACH ROW EXECUTE FUNCTION broken()"""
    )
    with capture_logs() as logs:
        async with lab.worker():
            sent = await lab.update("m-1", {"notes": "a"}, id="e-1")

            async def waits() -> bool:
                return any("no_such_table" in entry.get("why", "") for entry in logs)

            await until(waits, "the lane says what it waits for")
            await lab.database.execute("DROP TRIGGER broken ON cell_measurements")
            assert await lab.verdicts(sent) == ["1 notes"]


async def test_while_the_table_is_empty_nothing_is_judged(lab: System) -> None:
    structured: list[Header] = [("content-type", b"application/cloudevents+json")]
    with capture_logs() as logs:
        async with lab.worker():
            records = [
                await lab.publish("m-1", {"notes": "a"}, partition=0),
                await lab.publish("m-1", b"{", partition=0),
                await lab.publish("m-1", None, partition=1),
                await lab.publish(b"\xff", b"x" * 2 * 1024**2, structured, partition=1),
                await lab.publish("m-2", {"notes": "a"}, partition=1),
            ]

            async def both_wait() -> bool:
                waiting = {e["partition"] for e in logs if "cell_measurements is empty" in e.get("why", "")}
                return waiting == {0, 1}

            await until(both_wait, "both lanes say that the table is empty")
            assert await lab.answers(0) == []
            assert (
                await lab.database.fetchval("SELECT sum(next_to_apply) FROM measurement_updates.lanes") == 0
            )
            await lab.seed("m-1")
            assert await lab.verdicts(*records) == [
                "1 notes",
                "invalid_json",
                "empty_event",
                "too_large",
                "measurement_not_found",
            ]


@pytest.mark.parametrize(
    ("statement", "outcome"),
    [
        ("UPDATE cell_measurements SET notes = 'rest' WHERE id = 'm-1'", "2 name"),
        # not of a patchable field: the revision stays
        ("UPDATE cell_measurements SET created_by = 'rest' WHERE id = 'm-1'", "1 name"),
        ("DELETE FROM cell_measurements WHERE id = 'm-1'", "measurement_not_found"),
        ("SELECT FROM cell_measurements WHERE id = 'm-1' FOR UPDATE", "1 name"),
    ],
)
async def test_a_row_that_another_transaction_holds_is_waited_for(
    lab: System, statement: str, outcome: str
) -> None:
    """And the event is judged by what that one leaves: it may have been read before."""
    await lab.seed("m-1")
    await lab.seed("m-2")
    rest = await asyncpg.connect(lab.settings.dsn)
    async with lab.worker():
        async with rest.transaction():
            await rest.execute(statement)
            held = await lab.update("m-1", {"name": "x"}, id="e-1")

            async def waits() -> bool:
                return bool(
                    await lab.database.fetchval(
                        """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                           AND application_name LIKE 'measurement-updates lane%' AND wait_event_type = 'Lock'"""
                    )
                )

            await until(waits, "the lane waits for the row")
        assert await lab.verdicts(held) == [outcome]
        [answer] = await lab.answers_to(held)
    await rest.close()
    if not answer.rejected:
        row = await lab.row("m-1")
        wanted = {name: answer.model[name] for name in ("name", "notes", "created_by")}
        assert wanted == {name: row[name] for name in wanted}


async def test_partitions_that_wait_for_rows_do_not_hold_up_the_others(
    stack: Stack, migrated_url: str
) -> None:
    """More of them than lanes may decide at once."""
    async with system(stack.kafka_bootstrap_servers, migrated_url, worker_partitions=6) as lab:
        for number in range(6):
            await lab.seed(f"m-{number}")
        rest = await asyncpg.connect(lab.settings.dsn)
        async with lab.worker():
            async with rest.transaction():
                await rest.execute("SELECT FROM cell_measurements WHERE id < 'm-5' FOR UPDATE")
                held = [
                    await lab.publish(f"m-{number}", {"name": "x"}, partition=number) for number in range(5)
                ]
                await lanes_wait(lab, 5)
                await lab.publish("m-5", {"name": "x"}, partition=5)

                async def is_applied() -> bool:
                    return bool((await lab.row("m-5"))["revision"] == 1)

                await until(is_applied, "the partition that waits for nothing goes on")
            assert [answer.revision for answer in await lab.answers_to(*held)] == [1] * 5
        await rest.close()


async def test_every_decision_is_kept_with_what_it_was_made_of(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        applied = await lab.update("m-1", {"notes": "a"}, id="e-1")
        rejected = await lab.publish_raw((b"\xfe", b"{", [(b"\xff", None), (b"n", b"\x00")]))
        answers = {answer.place: answer for answer in await lab.answers()}
    row: Any = await lab.database.fetchrow(
        """SELECT a.*, lanes.partition FROM measurement_updates.applied_updates a
           JOIN measurement_updates.lanes USING (lane)"""
    )
    assert (row["partition"], row["log_offset"], row["arrival"]) == (
        applied.partition,
        applied.offset,
        applied.timestamp,
    )
    assert (row["measurement_id"], row["event_source"], row["event_id"]) == ("m-1", "cycler", "e-1")
    assert (row["revision"], row["changed"]) == (1, "notes")
    assert row["answer"].encode() == answers[applied.partition, applied.offset].value
    row = await lab.database.fetchrow("SELECT * FROM measurement_updates.rejected_updates")
    assert (row["key"], row["value"], row["state"]) == (b"\xfe", b"{", "open")
    assert (row["header_names"], row["header_values"]) == ([b"\xff", b"n"], [None, b"\x00"])
    assert (row["log_offset"], row["code"]) == (rejected[0].offset, "invalid_event")
    assert orjson.loads(row["detail"])["total"] == 1
    lanes = await lab.database.fetch("SELECT * FROM measurement_updates.lanes ORDER BY partition")
    assert [lane["topic"] for lane in lanes] == [lab.updates] * 2
    assert {lane["consumer_group"] for lane in lanes} == {lab.settings.worker_group}
    for lane in lanes:
        assert lane["next_to_apply"] == lane["next_to_answer"], "answered is noted at a clean stop"
    assert sum(lane["next_to_apply"] for lane in lanes) == 2
