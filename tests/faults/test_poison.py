"""Data that is well formed and that Postgres refuses: found by halving the batch, rejected alone, and it harms no other."""

import random
import signal
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, log2
from typing import Any

import asyncpg
import orjson
import pytest
import pytest_asyncio

from tests import model
from tests.faults.drill import Drill
from tests.faults.states import exit_code
from tests.integration.test_model_stateful import FORM, RETENTION, TOPIC, comparable, same
from tests.unit.test_plan import LogRecord
from worker import pipeline
from worker.apply import Batch, LanePosition, apply
from worker.database import Connection, close, connect_lane
from worker.pipeline import apply_batch, decode_batch
from worker.plan import Ground, Plan
from worker.record import DecodeLimits
from worker.sql import queries

Patch = Mapping[str, Any]
Event = tuple[str, Patch]

CHANCE = random.Random("poison")
IDS = ("m-0", "m-1", "m-2", "m-3")


@dataclass(slots=True)
class Bench:
    """A lane on a database of its own. `other`: another session, `tries`: how many events each transaction had."""

    connection: Connection
    other: Connection
    position: LanePosition
    clock: int
    tries: list[int] = field(default_factory=list)

    async def decide(self, events: Sequence[Event], refuses: model.Refuses, sqlstate: str = "") -> list[int]:
        """One batch: answers (in log order), rows, rejections and lane are as the model says. Which events are refused."""
        begin, end = self.position.next_to_apply, self.position.next_to_apply + 2 * len(events)
        records = [
            LogRecord(TOPIC, 0, at, self.clock + at, 1, id.encode(), orjson.dumps(patch), ())
            for at, (id, patch) in zip(range(begin, end, 2), events, strict=True)  # a marker behind each
        ]
        naive = model.Model(await self.rows(), RETENTION, refuses)
        expected = [naive.judge(record, record.timestamp) for record in records]
        self.tries.clear()
        batch = Batch(decode_batch(records, self.position.latest_arrival, DecodeLimits()), end)
        ground = Ground(self.position.lane, 0, FORM, RETENTION)
        decided = [d async for d in apply_batch(self.connection, self.position, batch, ground, 0, print)]

        answers = [answer for part in decided for answer in part.answers]
        for answer, record, outcome in zip(answers, records, expected, strict=True):
            same(answer, record, record.timestamp, outcome)
        assert comparable(await self.rows()) == comparable(naive.rows)
        applied = await self.other.fetchval("SELECT next_to_apply FROM measurement_updates.lanes")
        assert applied == self.position.next_to_apply == decided[-1].next_offset == end
        refused = [at for at, outcome in enumerate(expected) if outcome.code]
        rows = await self.other.fetch(
            "SELECT * FROM measurement_updates.rejected_updates ORDER BY log_offset"
        )
        rejected = [row for row in rows if row["log_offset"] >= begin]
        assert [row["log_offset"] for row in rejected] == [begin + 2 * at for at in refused]
        assert all(f"(SQLSTATE {sqlstate}" in row["detail"] for row in rejected)
        return refused

    async def rows(self) -> dict[str, model.Row]:
        found = await self.other.fetch("SELECT * FROM cell_measurements ORDER BY id")
        return {row["id"]: model.row_of(row) for row in found}


@pytest_asyncio.fixture
async def bench(migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    other = await asyncpg.connect(migrated_url)
    await other.executemany(
        "INSERT INTO cell_measurements (id, name, notes) VALUES ($1, 'formation', $2)",
        [*zip(IDS, IDS, strict=True), ("taken", "poison")],
    )
    lane = await other.fetchval(f"{queries()['begin_lane'].rstrip('; ')} RETURNING lane", TOPIC, 0, "", "", 0)
    clock = int(await other.fetchval("SELECT extract(epoch FROM clock_timestamp()) * 1000"))
    connection = await connect_lane(migrated_url, application="test")
    built = Bench(connection, other, LanePosition(lane, 0, 0, 0, 0), clock)

    async def counted(session: Connection, position: LanePosition, batch: Batch, *more: Any) -> Plan:
        built.tries.append(len(batch.events))
        return await apply(session, position, batch, *more)

    monkeypatch.setattr(pipeline, "apply", counted)
    try:
        yield built
    finally:
        await close(connection)
        await other.close()


def most_tries(events: int, poisons: int) -> int:
    """Halving makes a tree of at most `depth` levels below the batch. A part with poison is tried in vain, and has both its
    halves tried, if it has more than one event: on each level there are at most min(2^level, poisons) of these. Besides
    the batch itself, each poison is tried once more, as a rejection. So for one poison: 2 * depth + 2."""
    depth = ceil(log2(events))
    return 1 + 2 * sum(min(1 << level, poisons) for level in range(depth)) + poisons


def log_of(size: int, places: Collection[int], poison: str | None) -> list[Event]:
    """Good events write notes up to the first poison, and another field of the same measurements behind it: a value that
    is overwritten in the same transaction is never shown to the database."""
    good: list[Patch] = [{"notes" if at < min(places) else "name": f"good {at}"} for at in range(size)]
    return [(CHANCE.choice(IDS), {"notes": poison} if at in places else good[at]) for at in range(size)]


def has_notes(notes: str | None) -> model.Refuses:
    return lambda row: row["notes"] == notes


def trigger(kind: str, timing: str, statement: str) -> str:
    return f"""CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN IF NEW.notes = 'poison' THEN {statement}; END IF; RETURN NEW; END $$;
        CREATE {kind} TRIGGER refuse {timing} FOR EACH ROW EXECUTE FUNCTION refuse()"""


NOW = "", "BEFORE UPDATE ON cell_measurements"
AT_COMMIT = "CONSTRAINT", "AFTER UPDATE ON cell_measurements DEFERRABLE INITIALLY DEFERRED"
TABLE = "ALTER TABLE cell_measurements"
CHECK = f"{TABLE} ADD CHECK (id = 'taken' OR notes <> 'poison')"
UNIQUE = f"{TABLE} ADD UNIQUE (notes)"
INCOMPRESSIBLE = "".join(chr(CHANCE.randrange(0x4E00, 0x9FFF)) for _ in range(4_000))
REFUSALS: dict[str, tuple[str, str, str | None]] = {
    "a CHECK": (CHECK, "23514", "poison"),
    "NOT NULL": (f"{TABLE} ALTER notes SET NOT NULL", "23502", None),
    "a value that is taken": (UNIQUE, "23505", "poison"),
    "a RAISE": (trigger(*NOW, "RAISE 'not here'"), "P0001", "poison"),
    "a RAISE at COMMIT": (trigger(*AT_COMMIT, "RAISE 'not here'"), "P0001", "poison"),
    "a cast": (trigger(*NOW, "PERFORM NEW.notes::integer"), "22P02", "poison"),
    "an overflow": (trigger(*NOW, "PERFORM 32768::smallint"), "22003", "poison"),
    "an index row too large": ("CREATE INDEX ON cell_measurements (notes)", "54000", INCOMPRESSIBLE),
    "a limit at COMMIT": (trigger(*AT_COMMIT, "RAISE 'full' USING ERRCODE = '54001'"), "54001", "poison"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_whatever_refuses_it_that_event_is_rejected_alone(bench: Bench, refusal: str) -> None:
    statement, sqlstate, poison = REFUSALS[refusal]
    await bench.other.execute(statement)
    place = CHANCE.randrange(40)
    assert await bench.decide(log_of(40, {place}, poison), has_notes(poison), sqlstate) == [place]
    assert len(bench.tries) <= most_tries(40, 1) == 14


@pytest.mark.parametrize(
    ("size", "poisons"), [(1, 1), (2, 1), (3, 1), (1_000, 1), (2, 2), (64, 64), (300, 2), (1_000, 30)]
)
async def test_poison_is_found_in_few_tries_wherever_it_is(bench: Bench, size: int, poisons: int) -> None:
    await bench.other.execute(CHECK)
    single = [[0], [size // 2], [size - 1]] if poisons == 1 else []
    for places in [*single, sorted(CHANCE.sample(range(size), poisons))]:
        assert await bench.decide(log_of(size, places, "poison"), has_notes("poison"), "23514") == places
        assert len(bench.tries) <= most_tries(size, poisons)


@pytest.mark.parametrize(
    "statement",
    [
        UNIQUE,
        f"{UNIQUE} DEFERRABLE INITIALLY DEFERRED",
        f"{TABLE} ADD CHECK (name <> 'x' OR notes <> 'same')",
    ],
)
async def test_of_what_is_refused_only_together_the_later_is_rejected(bench: Bench, statement: str) -> None:
    """Two rows with one text; two fields of one row."""
    await bench.other.execute(statement)
    events = [("m-2", {"notes": "same"}), ("m-1", {"name": "x"}), ("m-1", {"notes": "same"}), ("m-1", {})]
    assert await bench.decide(events, lambda row: (row["id"], row["notes"]) == ("m-1", "same"), "23") == [2]


async def test_events_that_are_refused_only_in_one_transaction_are_all_applied(bench: Bench) -> None:
    """One gives a unique text up, the next one takes it: one UPDATE of both rows may meet them the other way round."""
    await bench.other.execute(UNIQUE)
    handed_on = [("m-0", "free"), ("m-1", "m-0"), ("m-3", "free too"), ("m-2", "m-3")]
    assert await bench.decide([(id, {"notes": notes}) for id, notes in handed_on], lambda _: False) == []
    assert len(bench.tries) > 1


async def test_what_a_later_event_overwrites_is_never_shown_to_the_database(bench: Bench) -> None:
    await bench.other.execute(CHECK)
    events: list[Event] = [("m-1", {"notes": "poison"}), ("m-1", {"notes": "good"})]
    assert await bench.decide(events, lambda _: False) == []
    assert bench.tries == [2]
    assert await bench.decide(events[:1], has_notes("poison"), "23514") == [0]


@pytest.mark.thorough
async def test_poison_among_good_events(drill: Drill) -> None:
    """And a worker dies that has decided only a part of it."""
    lab, load, chance = drill.system, drill.load, drill.chance
    await lab.database.execute("UPDATE cell_measurements SET measurement_type = 'properties'")
    await lab.database.execute(
        f"{TABLE} ADD CHECK (properties = '{{}}')"
    )  # a field that the load never writes
    lab.base = {id: await lab.row(id) for id in lab.base}
    places = []

    async def poison(count: int) -> None:
        for number in range(count):
            value = orjson.dumps({"properties": {"mass": {"value": number, "unit": "g"}}})
            headers = chance.choice([[], load._headers(-1)])  # never applied: that identity stays free
            at = await (await load._send(f"m-{chance.randrange(20)}", value, headers))
            places.append((at.partition, at.offset))

    async with drill.under_load("poison at the database", refuses=lambda row: bool(row["properties"])):
        for number in drill.rounds:
            await poison(12)
            dying = drill.start_worker(WORKER_CRASH_AT="between_commits:6")
            assert await exit_code(dying, 60) == -signal.SIGKILL
            if number == 0:
                drill.start_worker()
            await poison(12)
            await drill.recovered()
    codes = {answer.place: answer.code for answer in await lab.answers() if answer.rejected}
    assert sorted(at for at, code in codes.items() if code == "storage_refused") == sorted(places)
