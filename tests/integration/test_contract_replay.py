"""One decision for ever: rewinds, lost group offsets, restored and fresh databases, other batch sizes."""

import asyncio
import contextlib
import dataclasses
import random
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import DeleteGroupsRequest_v1
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.system import Answer, System, until
from worker.stack import Stack
from worker.topics import create_topics

CREATED = datetime(2026, 1, 1, tzinfo=UTC)


async def seed(lab: System) -> None:
    """The same rows in whatever database."""
    for number in range(6):
        await lab.seed(
            f"m-{number}",
            created_at=CREATED,
            updated_at=CREATED,
            notes="as it was",
            measurement_type=("time_series", "file", "properties")[number % 3],
            protocol={"name": "CC", "n": 1.5},
        )


async def publish_some(lab: System, count: int, seed: int) -> None:
    """Of every kind: changes, `{}`, duplicates, late ones, every sort of rejection. One partition a measurement."""
    chance = random.Random(seed)
    sent: list[tuple[str, dict[str, Any], str]] = []
    bad = None
    for number in range(count):
        id = f"m-{chance.randrange(6)}"
        match chance.randrange(10):
            case 0:
                bad = await lab.publish(id, b'{"notes":', [("n", b"\xff")])
            case 1:
                await lab.publish("nobody", {"notes": "x"})
            case 2 if sent:
                id, patch, event = chance.choice(sent)
                if chance.random() < 0.3:
                    patch = {"notes": "reused"}
                await lab.update(id, patch, id=event)
            case 3 if bad:
                place = f"{lab.updates}/{bad.partition}/{bad.offset}@{bad.timestamp}"
                await lab.update(id, {"notes": f"late {number}"}, id=f"l-{number}", requeued_from=place)
            case 4:
                await lab.publish(id, {})
            case 5:
                await lab.update(
                    id, {"name": f"{number}"}, id=f"x-{number}", ce_expectedrevision=str(chance.randrange(4))
                )
            case 6:
                await lab.publish(id, {"properties": {"m": {"value": number / 8, "unit": "g"}}})
            case 7:
                await lab.publish_raw((None, None, [(b"\xff", b"x")]), partition=number % 2)
            case _:
                patch = chance.choice(
                    [
                        {"notes": f"{number}"},
                        {"notes": None, "protocol": {"z": number, "a": [1.0, 1e22], "µ": {}}},
                        {"test_setup": {"channel_number": number}, "name": f"n {number % 3}"},
                    ]
                )
                sent.append((id, patch, f"{seed}-{number}"))
                await lab.update(id, patch, id=f"{seed}-{number}", traceparent=f"00-{number}")


async def new_answers(lab: System, before: Sequence[Answer]) -> list[Answer]:
    """Those that weren't there before, after everything is settled."""
    known = {(answer.topic, answer.partition, answer.offset) for answer in before}
    return [a for a in await lab.answers() if (a.topic, a.partition, a.offset) not in known]


def on_the_wire(answers: Sequence[Answer]) -> list[tuple[Any, ...]]:
    """What a subscriber gets, byte for byte, in order by topic and partition."""
    return [(a.topic, a.partition, a.key, a.value, a.raw_headers) for a in answers]


def as_values(answers: Sequence[Answer]) -> dict[Any, Any]:
    """By the record that is answered: the answers with their bodies as JSON values."""
    found = {}
    for answer in answers:
        body = answer.value if answer.rejected else answer.model
        headers = [(name, value) for name, value in answer.raw_headers if name != "rejection-topic"]
        assert answer.place not in found
        found[answer.place] = (answer.rejected, answer.key, body, headers)
    return found


async def rows(lab: System) -> list[dict[str, Any]]:
    """Without the number that a lane has in its database."""
    return [{name: value for name, value in row.items() if name != "answer_lane"} for row in await lab.rows()]


async def stored(lab: System) -> list[Any]:
    """Everything that decisions write."""
    return [
        await rows(lab),
        await lab.database.fetch(
            "SELECT * FROM measurement_updates.applied_updates ORDER BY lane, log_offset"
        ),
        await lab.database.fetch(
            """SELECT lane, log_offset, arrival, key, value, header_names, header_values, code, detail::text, state
               FROM measurement_updates.rejected_updates ORDER BY lane, log_offset"""
        ),
        await lab.database.fetch(
            "SELECT lane, topic, partition, next_to_apply, last_digest FROM measurement_updates.lanes ORDER BY lane"
        ),
    ]


async def test_a_full_rewind_sends_every_stored_answer_again_byte_for_byte_and_changes_no_row(
    lab: System,
) -> None:
    await seed(lab)
    async with lab.worker():
        await publish_some(lab, 60, seed=1)
        answers = await lab.answers()
        before = await stored(lab)
    codes = {answer.code for answer in answers if answer.rejected}
    assert len(codes) >= 5
    assert len(answers) > 40
    await lab.rewind()
    # what it is called by now makes no difference to what was decided then
    async with lab.worker(worker_source="another name"):
        again = await new_answers(lab, answers)
        assert on_the_wire(again) == on_the_wire(answers)
        assert await stored(lab) == before
        await lab.update("m-0", {"notes": "afterwards"}, id="after")
        last = (await new_answers(lab, [*answers, *again]))[0]
    assert (last.model["notes"], last.text("ce_source")) == ("afterwards", "another name")


async def test_a_part_rewound_is_sent_again_from_there_on(lab: System) -> None:
    await seed(lab)
    async with lab.worker():
        await publish_some(lab, 40, seed=2)
        answers = await lab.answers()
    await lab.rewind(7)
    async with lab.worker():
        again = await new_answers(lab, answers)
    assert on_the_wire(again) == on_the_wire([answer for answer in answers if answer.place[1] >= 7])


async def test_moving_the_groups_offsets_forward_has_no_effect(lab: System) -> None:
    await seed(lab)
    async with lab.worker():
        await publish_some(lab, 20, seed=3)
        answers = await lab.answers()
    await publish_some(lab, 20, seed=4)
    committed = await lab.committed()
    await lab.commit({tp: (offset or 0) + 5 for tp, offset in committed.items()})
    async with lab.worker():
        last = await lab.update("m-0", {"notes": "last"}, id="last")
        await lab.update("m-1", {"notes": "last"}, id="last")
        await lab.update("m-2", {"notes": "last"}, id="last")

        async def applied() -> bool:
            return bool(
                await lab.database.fetchval(
                    """SELECT count(*) FROM measurement_updates.applied_updates
                       WHERE event_id = 'last' HAVING count(*) = 3"""
                )
            )

        await until(applied, "the last events are applied")
        answered = {answer.place for answer in await new_answers(lab, answers)}
    assert (last.partition, last.offset) in answered
    decided = await lab.database.fetch(
        """SELECT partition, log_offset FROM measurement_updates.applied_updates
           JOIN measurement_updates.lanes USING (lane)
           UNION ALL SELECT partition, log_offset FROM measurement_updates.rejected_updates
           JOIN measurement_updates.lanes USING (lane)"""
    )
    assert {answer.place for answer in answers} | answered == {tuple(row) for row in decided}


async def delete_group(lab: System) -> None:
    """As `kafka-consumer-groups --delete` does, or `offsets.retention.minutes` in the end."""
    admin = AIOKafkaAdminClient(bootstrap_servers=lab.settings.bootstrap_servers)
    await admin.start()
    try:
        coordinator = await admin.find_coordinator(lab.settings.worker_group)
        response = await admin._client.send(coordinator, _DeleteGroups([lab.settings.worker_group]))
        assert [code for _, code in response.results] == [0]
    finally:
        await admin.close()


class _DeleteGroups:
    """aiokafka knows the request's form; its admin client has no call for it."""

    API_KEY = 42

    def __init__(self, groups: list[str]) -> None:
        self._groups = groups

    def prepare(self, versions: dict[int, tuple[int, int]]) -> DeleteGroupsRequest_v1:
        return DeleteGroupsRequest_v1(self._groups)


async def test_a_group_whose_offsets_are_lost_goes_on_where_the_answers_end(lab: System) -> None:
    await seed(lab)
    async with lab.worker():
        await publish_some(lab, 20, seed=5)
        answers = await lab.answers()
        before = await stored(lab)
    await delete_group(lab)
    assert set((await lab.committed()).values()) == {None}
    async with lab.worker():

        async def committed_at_once() -> bool:
            return None not in (await lab.committed()).values()

        await until(committed_at_once, "the group has offsets again, without a new record")
        assert await new_answers(lab, answers) == []
        assert await stored(lab) == before
    await delete_group(lab)
    await publish_some(lab, 10, seed=6)
    async with lab.worker():
        await lab.settled()
        more = await new_answers(lab, answers)
    assert more
    assert not {answer.place for answer in more} & {answer.place for answer in answers}


@contextlib.asynccontextmanager
async def copy_of(lab: System, stack: Stack, template: str | None = None) -> AsyncIterator[System]:
    """The same system on a copy of its database as it is now (or of `template`); no worker may run on that."""
    admin = await asyncpg.connect(stack.database_url)
    name = f"copy_{uuid.uuid4().hex[:12]}"
    if template is None:
        template = urlsplit(lab.settings.dsn).path[1:]
        await lab.database.close()
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        lab.database = await asyncpg.connect(lab.settings.dsn)
    else:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    url = urlunsplit(urlsplit(lab.settings.dsn)._replace(path=f"/{name}"))
    copy = dataclasses.replace(
        lab,
        settings=lab.settings.model_copy(update={"database_url": SecretStr(url)}),
        database=await asyncpg.connect(url),
    )
    try:
        yield copy
    finally:
        await copy.database.close()
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


async def test_a_restored_database_catches_up_by_itself_to_equal_rows_and_equal_answers(
    lab: System, stack: Stack
) -> None:
    await seed(lab)
    async with lab.worker():
        await publish_some(lab, 30, seed=7)
        backed_up = await lab.answers()
    async with copy_of(lab, stack) as restored:
        async with lab.worker():
            await publish_some(lab, 40, seed=8)
            answers = await lab.answers()
            expected = await stored(lab)
        async with restored.worker(worker_batch_records=4):
            # what is committed is ahead of the restored database: settled says nothing yet
            await until(lambda: caught_up(restored, expected[3]), "the restored database has caught up")
            again = await new_answers(restored, answers)
            assert await rows(restored) == expected[0]
        assert as_values(again) == as_values(
            [answer for answer in answers if answer.place not in {known.place for known in backed_up}]
        )


async def caught_up(lab: System, lanes: Sequence[Any]) -> bool:
    """All that was applied elsewhere is applied here, and known to be answered."""
    found = await lab.database.fetch(
        "SELECT topic, partition, next_to_apply, next_to_answer FROM measurement_updates.lanes"
    )
    wanted = {(lane["topic"], lane["partition"]): lane["next_to_apply"] for lane in lanes}
    return {
        (lane["topic"], lane["partition"]): min(lane["next_to_apply"], lane["next_to_answer"])
        for lane in found
    } == wanted


async def test_a_fresh_database_with_the_same_rows_catches_up_from_the_logs_start(
    lab: System, stack: Stack, migrated_template: str
) -> None:
    await seed(lab)
    async with lab.worker():
        await publish_some(lab, 50, seed=9)
        answers = await lab.answers()
        expected = await stored(lab)
    async with copy_of(lab, stack, migrated_template) as fresh:
        await seed(fresh)
        async with fresh.worker():
            await until(lambda: caught_up(fresh, expected[3]), "the fresh database has caught up")
            again = await new_answers(fresh, answers)
            assert await rows(fresh) == expected[0]
    assert as_values(again) == as_values(answers)


async def test_batch_boundaries_make_no_difference(lab: System, stack: Stack, migrated_template: str) -> None:
    """One log, applied from scratch into a database, a group and answer topics of its own each time."""
    await publish_some(lab, 80, seed=10)
    outcomes = []
    for size in (1, 3, 2_000):
        async with copy_of(lab, stack, migrated_template) as fresh:
            fresh.settings = fresh.settings.model_copy(
                update={
                    "worker_group": f"{lab.settings.worker_group}-{size}",
                    "worker_updated_topic": f"{lab.settings.worker_updated_topic}-{size}",
                    "worker_rejected_topic": f"{lab.settings.worker_rejected_topic}-{size}",
                }
            )
            await create_topics(fresh.settings)
            await seed(fresh)
            async with fresh.worker(worker_batch_records=size):
                outcomes.append((as_values(await fresh.answers()), await rows(fresh)))
    first = outcomes[0]
    assert len(first[0]) > 40
    for other in outcomes[1:]:
        assert other == first


async def test_answers_through_two_partitions_follow_their_predecessors_also_when_sent_again(
    lab: System,
) -> None:
    """Each stored answer names the measurement's answer before it: they come out in that order, `{}` and late ones too."""
    for id in ("m-1", "m-2"):
        await lab.seed(id)
    chance = random.Random(11)

    async def publish(count: int) -> None:
        sent = [
            await lab.producer.send(
                lab.updates,
                key=chance.choice([b"m-1", b"m-2"]),
                value=chance.choice([b"{}", b'{"notes":"%d"}' % number, b'{"name":"n %d"}' % (number % 3)]),
                partition=chance.randrange(2),
            )
            for number in range(count)
        ]
        await asyncio.gather(*sent)

    await publish(40)
    async with lab.worker(worker_batch_records=3):
        await publish(40)
        answers = await lab.answers()
    predecessors = {
        (row["partition"], row["log_offset"]): None
        if row["previous"] is None
        else (row["previous"], row["previous_offset"])
        for row in await lab.database.fetch(
            """SELECT lanes.partition, log_offset, previous.partition AS previous, previous_offset
               FROM measurement_updates.applied_updates JOIN measurement_updates.lanes USING (lane)
               LEFT JOIN measurement_updates.lanes previous ON previous.lane = previous_lane"""
        )
    }
    assert len(answers) == len(predecessors) == 80

    def assert_in_order(answers: Sequence[Answer]) -> None:
        for key in (b"m-1", b"m-2"):
            mine = [answer for answer in answers if answer.key == key]
            assert len({answer.partition for answer in mine}) == 1
            chain = [None, *(answer.place for answer in mine)]
            assert [predecessors[answer.place] for answer in mine] == chain[:-1]
            assert [answer.revision for answer in mine] == sorted(answer.revision for answer in mine)

    assert_in_order(answers)
    await lab.rewind()
    async with lab.worker():
        again = await new_answers(lab, answers)
    assert_in_order(again)
    for key in (b"m-1", b"m-2"):
        assert on_the_wire([a for a in again if a.key == key]) == on_the_wire(
            [a for a in answers if a.key == key]
        )


async def test_aborted_records_and_markers_are_passed_over(lab: System) -> None:
    await seed(lab)
    async with AIOKafkaProducer(
        bootstrap_servers=lab.settings.bootstrap_servers, transactional_id=f"{lab.updates}-producer"
    ) as producer:
        for text, commit in (("a", True), ("aborted", False), ("b", True), ("aborted", False)):
            await producer.begin_transaction()
            for partition in (0, 1):
                value = b'{"notes":"%b"}' % text.encode()
                await producer.send(lab.updates, value, key=b"m-%d" % partition, partition=partition)
            await (producer.commit_transaction() if commit else producer.abort_transaction())
    async with lab.worker():
        answers = await lab.answers()
        assert sorted(answer.model["notes"] for answer in answers) == ["a", "a", "b", "b"]

        async def past_the_last_marker() -> bool:
            rows = await lab.database.fetch("SELECT next_to_apply FROM measurement_updates.lanes")
            return [row["next_to_apply"] for row in rows] == [8, 8]

        await until(past_the_last_marker, "applied is past the aborted records, though idle")
    await lab.rewind()
    async with lab.worker():
        assert on_the_wire(await new_answers(lab, answers)) == on_the_wire(answers)


async def test_the_database_leads_where_the_log_is_another_one(lab: System) -> None:
    """Neither a shorter log nor other records: nothing is judged, and it is said what an operator can do."""
    await seed(lab)
    async with lab.worker():
        sent = await lab.publish("m-1", {"notes": "a"})
        await lab.settled()
    await lab.database.execute(
        "UPDATE measurement_updates.lanes SET last_digest = 'x' WHERE partition = $1", sent.partition
    )
    await lab.publish("m-1", {"notes": "b"})
    with capture_logs() as logs:
        async with lab.worker():

            async def stopped() -> bool:
                return any(
                    entry["event"] == "lane stopped" and entry["partition"] == sent.partition
                    for entry in logs
                )

            await until(stopped, "the lane has stopped")
    [why] = {entry["why"] for entry in logs if entry["event"] == "lane stopped"}
    assert f"record {lab.updates}/{sent.partition}/{sent.offset} is another one" in why
    assert f"lanes restart {lab.updates}/{sent.partition} --why" in why
    assert (await lab.row("m-1"))["notes"] == "a"


@pytest.mark.parametrize("operator", [False, True])
async def test_a_record_stamped_ahead_of_the_databases_clock_stops_its_lane_until_then_or_accepted(
    lab: System, operator: bool
) -> None:
    """The database's clock is put back by ten minutes: the worker reads `clock_timestamp()`."""
    await seed(lab)
    name = urlsplit(lab.settings.dsn).path[1:]
    clock = """CREATE OR REPLACE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS
               $$ SELECT pg_catalog.clock_timestamp() - interval '{}' $$"""
    await lab.database.execute(clock.format("10 minutes"))
    await lab.database.execute(f"ALTER DATABASE {name} SET search_path = public, pg_catalog")
    with capture_logs() as logs:
        async with lab.worker():
            sent = await lab.publish("m-1", {"notes": "a"})

            async def stopped() -> bool:
                return any(entry["event"] == "lane stopped" for entry in logs)

            await until(stopped, "the lane has stopped")
            assert (await lab.row("m-1"))["revision"] == 0
            if operator:
                await lab.database.execute(
                    "UPDATE measurement_updates.lanes SET accepted_until = $1", sent.timestamp
                )
            else:
                await lab.database.execute(clock.format("4 minutes"))
            assert await lab.verdicts(sent) == ["1 notes"]
    why = next(entry["why"] for entry in logs if entry["event"] == "lane stopped")
    assert f"{lab.updates}/{sent.partition}/{sent.offset} is stamped {sent.timestamp}" in why
    assert "more than 5 minutes ahead" in why
    assert f"lanes accept {lab.updates}/{sent.partition}" in why
