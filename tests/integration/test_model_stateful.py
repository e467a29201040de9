"""The pipeline on a real Postgres against the naive model: records in two partitions, other writers, crashes, any cut.

Hypothesis chooses what happens; after every step rows and answers are the model's.
"""

import asyncio
import copy
import itertools
import json
from collections import Counter
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import asyncpg
import orjson
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests import fuzz, model
from tests.naive_decode import Refused, position_in
from tests.unit.test_plan import LogRecord, as_sent, patches
from worker.answer import Answer, AnswerForm
from worker.apply import Batch, LanePosition
from worker.database import Connection, close, connect_lane
from worker.errors import Superseded
from worker.pipeline import apply_batch, decode_batch
from worker.plan import Ground
from worker.record import DecodeLimits
from worker.sql import queries
from worker.stored import stored_answers

T = TypeVar("T")

TOPIC = "updates"
FORM = AnswerForm(TOPIC, "updated", "rejected", "worker")
LIMITS = DecodeLimits(max_event_bytes=4_096)
RETENTION = 60_000
IDS = ("m-1", "m-2", "m-3", "m-4")
IN_THE_FUTURE = 90_000
"""A partition's records come from before everything that others write, or from after it: the clock makes no difference."""


class Died(Exception):
    """The worker, at a crash point."""


@dataclass(slots=True)
class Lane:
    """A partition: its log, and how it is applied."""

    partition: int
    connection: Connection
    position: LanePosition
    log: list[LogRecord] = field(default_factory=list)
    decided: int = 0
    """Records of `log`."""
    answers: list[Answer] = field(default_factory=list)
    """As they were yielded, or, after a crash, stored."""
    duplicates: int = 0

    @property
    def ground(self) -> Ground:
        return Ground(self.position.lane, self.partition, FORM, RETENTION)

    def next(self, count: int) -> tuple[list[LogRecord], int]:
        """So many records that aren't decided yet, and the offset that comes next."""
        records = self.log[self.decided : self.decided + count]
        following = self.decided + len(records)
        end = self.log[following].offset if following < len(self.log) else records[-1].offset + 2
        return records, end


@dataclass(slots=True)
class Database:
    """Lives longer than one run of the machine. `other`: another writer's session."""

    url: str
    runner: asyncio.Runner
    other: Connection
    happened: Counter[str]

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(asyncio.wait_for(coroutine, 30))


# What is in the log -----------------------------------------------------------------------------------------


@st.composite
def updates(draw: st.DrawFn) -> dict[str, Any]:
    """A record yet to be placed: a new event, one from before (again, with another content, late), or hostile bytes."""
    return {
        "kind": draw(st.sampled_from(["new", "new", "new", "new", "again", "reused", "requeued", "hostile"])),
        "form": draw(st.sampled_from(["binary", "binary", "structured", "bare"])),
        "measurement_id": draw(st.sampled_from(["m-1", "m-1", "m-2", "m-2", "m-3", "m-4"])),
        "id": f"e-{draw(st.integers(0, 30))}",
        "patch": draw(patches.map(fitting)),
        "revision": draw(st.sampled_from([None, None, None, 0, 0, 1])),
        "organization": draw(st.sampled_from([None, None, None, None, "org-1", "org-2"])),
        "reapply": draw(st.sampled_from([None, None, None, None, "run-1"])),
        "which": draw(st.integers(0, 1_000)),
        "passed": draw(st.sampled_from([-3, 0, 0, 1, 10])),
        "producers_clock": draw(st.sampled_from([False] * 9 + [True])),
        "gap": draw(st.sampled_from([1, 1, 1, 2])),
    }


def fitting(patch: dict[str, Any]) -> dict[str, Any]:
    """As the PATCH schema wants properties."""
    if patch.get("properties"):
        quantities = {name: {"value": value, "unit": "mm"} for name, value in {"a": 1, "b": 0.5}.items()}
        patch = {**patch, "properties": {**quantities, "ok": bool(len(patch["properties"]) % 2)}}
    return patch


def written(update: dict[str, Any], revision: int) -> tuple[bytes, bytes, list[tuple[str, bytes | None]]]:
    """Key, value and headers of a new event."""
    stated = {
        "specversion": "1.0",
        "type": "cell_measurement.update.v1",
        "source": "cycler",
        "id": update["id"],
        "expectedrevision": None if update["revision"] is None else str(update["revision"] + revision),
        "organizationid": update["organization"],
    }
    stated = {name: value for name, value in stated.items() if value is not None}
    key, value = update["measurement_id"].encode(), orjson.dumps(update["patch"])
    headers: list[tuple[str, bytes | None]] = []
    match update["form"]:
        case "binary":
            headers = [(f"ce_{name}", text.encode()) for name, text in stated.items()]
        case "structured":
            value = orjson.dumps({**stated, "data": update["patch"]})
            headers = [("content-type", b"application/cloudevents+json")]
    if update["reapply"]:
        headers.append(("reapply", update["reapply"].encode()))
    return key, value, headers


edits = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from([None, "", "a", "b"]),
        "protocol": st.sampled_from([None, {"a": 1}, {"a": 2}, [1], {"n": 10**30, "µ": [0.1, -0.0]}]),
        "test_setup": st.sampled_from([None, {"channel_number": 7}, {}]),
        "notes": st.sampled_from([None, "x", "by hand"]),
        "properties": st.sampled_from([None, {}, {"a": 1}]),
        "measurement_type": st.sampled_from(["properties", "time_series", "other"]),
        "organization_id": st.sampled_from(["org-1", "org-2", None]),
        "updated_at": st.just("now"),
    },
)


# The machine ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Cases:
    """What has become of what was rejected, record by record. Places are positions: (arrival, partition, offset)."""

    of: dict[model.Position, model.Position] = field(default_factory=dict)
    """The case of each rejected record: its own place, if it is the first."""
    states: dict[model.Position, tuple[str, int, model.Position]] = field(default_factory=dict)
    """State, attempts and the newest attempt of each case."""

    def note(self, record: LogRecord, arrival: int, kind: str) -> bool:
        """Whether it was another attempt of a case."""
        place = (arrival, record.partition, record.offset)
        try:
            stated = position_in(dict(record.headers).get("requeued-from"), TOPIC)
        except Refused:
            stated = place
        case = self.of.get(stated) if stated < place else None
        if case is None:
            if kind == "rejected":
                self.of[place], self.states[place] = place, ("open", 1, place)
            return False
        _, attempts, newest = self.states[case]
        if kind == "rejected":
            self.of[place], self.states[case] = case, ("open", attempts + 1, place)
        else:
            self.states[case] = "resolved", attempts, newest
        return True


class Machine(RuleBasedStateMachine):
    """Everything that may happen to rows and log; `naive` says what has to come of it."""

    database: Database

    def __init__(self) -> None:
        super().__init__()
        self.other = self.database.other
        self.run = self.database.run
        self.happened = self.database.happened
        self.sent: list[tuple[LogRecord, int]] = []
        self.sending = model.Arrivals()

    @initialize()
    def begin(self) -> None:
        self.run(self._begin())

    async def _begin(self) -> None:
        await self.other.execute(
            "TRUNCATE cell_measurements, measurement_updates.lanes, measurement_updates.applied_updates,"
            " measurement_updates.rejected_updates, measurement_updates.rejected_acts,"
            " measurement_updates.lane_decisions"
        )
        self.base = await self._clock()
        self.brokers_clock = [self.base - 10_000] * 2
        await self._insert("m-1", measurement_type="time_series", protocol='{"a": 1}')
        await self._insert("m-2", measurement_type="properties", file_metadata='{"rows": 3, "digits": 0.10}')
        await self._insert("m-3", name=None)
        self.naive = model.Model(await self._rows(), RETENTION)
        self.cases = Cases()
        self.lanes = [await self._lane(partition) for partition in range(2)]

    async def _lane(self, partition: int) -> Lane:
        await self.other.execute(queries()["begin_lane"], TOPIC, partition, "cluster", "group", 0)
        connection, position = await self._taken_over(partition)
        return Lane(partition, connection, position)

    async def _taken_over(self, partition: int) -> tuple[Connection, LanePosition]:
        """As a new owner does it."""
        connection = await connect_lane(self.database.url, application="test")
        row = await connection.fetchrow(queries()["find_lane"], TOPIC, partition)
        await connection.fetch(queries()["end_former_owner"], row["lane"])
        row = await connection.fetchrow(queries()["raise_epoch"], row["lane"], "test")
        position = LanePosition(row["lane"], row["epoch"], row["next_to_apply"], row["latest_arrival"], 0)
        return connection, position

    # Log and other writers

    @rule(partitions=st.sampled_from([(0, 1), (0,), (1,)]), batch=st.lists(updates(), min_size=3, max_size=8))
    def append(self, partitions: Sequence[int], batch: list[dict[str, Any]]) -> None:
        """To one of them, or in turn to both."""
        for update, partition in zip(batch, itertools.cycle(partitions), strict=False):
            self._append(partition, update)

    def _append(self, partition: int, update: dict[str, Any]) -> None:
        log = self.lanes[partition].log
        latest = max(self.sending.latest[partition], self.brokers_clock[partition])
        timestamp = latest + (10 * IN_THE_FUTURE if update["producers_clock"] else update["passed"])
        key, value, headers = self._content(update)
        record = LogRecord(
            TOPIC,
            partition,
            log[-1].offset + update["gap"] if log else 0,
            timestamp,
            0 if update["producers_clock"] else 1,
            key,
            value,
            tuple(headers),
        )
        log.append(record)
        self.sent.append((record, self.sending.of(record)))

    def _content(
        self, update: dict[str, Any]
    ) -> tuple[bytes | None, bytes | None, Sequence[tuple[str, bytes | None]]]:
        if update["kind"] == "hostile":
            hostile = fuzz.Fuzzer(str(update["which"]), TOPIC, IDS).record()
            named = [(name.decode("utf-8", "surrogateescape"), text) for name, text in hostile.headers]
            return hostile.key, hostile.value, named
        row = self.naive.rows.get(update["measurement_id"])
        new = written(update, row.revision if row else 0)
        if not self.sent or update["kind"] == "new":
            return new
        before, arrival = self.sent[update["which"] % len(self.sent)]
        match update["kind"]:
            case "again":
                return before.key, before.value, before.headers
            case "reused":
                return before.key, new[1], before.headers
        place = f"{TOPIC}/{before.partition}/{before.offset}@{arrival}".encode()
        value = before.value if update["which"] % 2 else new[1]  # repaired, or as it was
        headers = [header for header in before.headers if header[0] != "requeued-from"]
        return before.key, value, [*headers, ("requeued-from", place)]

    @rule(partition=st.integers(0, 1))
    def time_passes(self, partition: int) -> None:
        """What this partition gets from here on is newer than all that others write."""
        self.brokers_clock[partition] = self.base + IN_THE_FUTURE

    @rule(measurement_id=st.sampled_from(IDS), changes=edits)
    def edit(self, measurement_id: str, changes: dict[str, Any]) -> None:
        if measurement_id in self.naive.rows and changes:
            self.run(self._edit(measurement_id, changes))

    async def _edit(self, measurement_id: str, changes: dict[str, Any]) -> None:
        began = await self._clock()
        values = [
            json.dumps(value) if name in model.OBJECTS and value is not None else value
            for name, value in changes.items()
        ]
        await self._update(measurement_id, dict(zip(changes, values, strict=True)))
        row = (await self._rows())[measurement_id]
        if "updated_at" in changes:
            changes = {**changes, "updated_at": row.columns["updated_at"]}
        # the time that the trigger has stamped; none where newer events have written all these fields
        before = self.naive.rows[measurement_id].written
        stamps = {at[0] for name, at in row.written.items() if at != before.get(name)}
        assert len(stamps) <= 1
        at = stamps.pop() if stamps else began
        assert began <= at <= await self._clock()
        self.naive.edit(measurement_id, changes, at)
        self.happened["edit"] += 1

    @rule(measurement_id=st.sampled_from(["m-3", "m-4"]))
    def insert_or_delete(self, measurement_id: str) -> None:
        self.run(self._insert_or_delete(measurement_id))

    async def _insert_or_delete(self, measurement_id: str) -> None:
        if measurement_id in self.naive.rows:
            await self.other.execute("DELETE FROM cell_measurements WHERE id = $1", measurement_id)
            self.naive.delete(measurement_id)
        else:
            await self._insert(measurement_id, measurement_type="properties")
            self.naive.insert((await self._rows())[measurement_id].columns)

    # Batches

    @property
    def behind(self) -> list[Lane]:
        """The lanes with records to decide."""
        return [lane for lane in self.lanes if lane.decided < len(lane.log)]

    @precondition(lambda self: self.behind)
    @rule(which=st.integers(0, 1), count=st.integers(1, 9))
    def decide(self, which: int, count: int) -> None:
        lane = self.behind[-which]
        records, end = lane.next(count)
        answers = self.run(self._apply(lane, records, end))
        self._is_foretold(self.naive, lane, records, answers, self.cases)

    @precondition(lambda self: len(self.behind) == 2)
    @rule(counts=st.tuples(st.integers(1, 9), st.integers(1, 9)))
    def decide_both_at_once(self, counts: tuple[int, int]) -> None:
        """One of the two was first."""
        batches = [lane.next(count) for lane, count in zip(self.lanes, counts, strict=True)]
        answers = self.run(self._apply_both(batches))
        rows = self.run(self._rows())
        for order in ((0, 1), (1, 0)):
            naive, lanes = copy.deepcopy(self.naive), [copy.copy(lane) for lane in self.lanes]
            try:
                for at in order:
                    self._is_foretold(naive, lanes[at], batches[at][0], answers[at])
                assert comparable(rows) == comparable(naive.rows)
            except AssertionError:
                if order == (1, 0):
                    raise
            else:
                self.naive, self.lanes = naive, lanes
                # which attempt saw which case is open: here attempts may come before what they repeat is decided
                self.cases = self.run(self._stored_cases())
                self.happened["both at once"] += 1
                return

    async def _apply_both(self, batches: Sequence[tuple[list[LogRecord], int]]) -> Sequence[list[Answer]]:
        return await asyncio.gather(
            *(self._apply(lane, *batch) for lane, batch in zip(self.lanes, batches, strict=True))
        )

    async def _apply(self, lane: Lane, records: Sequence[LogRecord], end: int) -> list[Answer]:
        answers: list[Answer] = []
        events = decode_batch(records, lane.position.latest_arrival, LIMITS)
        async for decided in apply_batch(
            lane.connection, lane.position, Batch(events, end), lane.ground, 0, waiting=print
        ):
            answers += decided.answers
            assert decided.next_offset == end == lane.position.next_to_apply
        return answers

    @precondition(lambda self: self.behind)
    @rule(
        which=st.integers(0, 1),
        count=st.integers(1, 9),
        point=st.sampled_from(["before_postgres_commit", "between_commits"]),
        session_too=st.booleans(),
    )
    def die(self, which: int, count: int, point: str, session_too: bool) -> None:
        """At a crash point; somebody else takes over, and finds in the database whether it was decided."""
        lane = self.behind[-which]
        records, end = lane.next(count)
        self.run(self._die(lane, records, end, point, session_too))
        if point == "between_commits":
            answers = self.run(self._stored(lane, records[0].offset, end))
            self._is_foretold(self.naive, lane, records, answers, self.cases)
        self.happened[point] += 1

    async def _die(
        self, lane: Lane, records: Sequence[LogRecord], end: int, point: str, session_too: bool
    ) -> None:
        def reached(at: str) -> None:
            if at == point:
                if session_too:
                    lane.connection.terminate()
                raise Died

        former, position = lane.connection, lane.position
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("worker.apply.reached", reached)
            patch.setattr("worker.pipeline.reached", reached)
            # a transaction that is open is rolled back: without a session that is an error of its own
            with pytest.raises((asyncpg.InterfaceError, Died) if session_too else Died):
                await self._apply(lane, records, end)
        stalled = await connect_lane(self.database.url, application="test") if session_too else former
        lane.connection, lane.position = await self._taken_over(lane.partition)
        assert lane.position.next_to_apply == (end if point == "between_commits" else position.next_to_apply)
        # the one who was thought dead can't do any harm
        with pytest.raises((Superseded, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await self._apply(Lane(lane.partition, stalled, position), records, end)
        await close(stalled)

    def _is_foretold(
        self,
        naive: model.Model,
        lane: Lane,
        records: Sequence[LogRecord],
        answers: Iterable[Answer],
        cases: Cases | None = None,
    ) -> None:
        """The answers to these records are the model's."""
        given = list(answers)
        arrivals = dict(
            zip((id(record) for record, _ in self.sent), (at for _, at in self.sent), strict=True)
        )
        rest = iter(given)
        for record in records:
            outcome = naive.judge(record, arrivals[id(record)], LIMITS.max_event_bytes)
            self.happened[outcome.code or outcome.kind] += 1
            if cases is not None and cases.note(record, arrivals[id(record)], outcome.kind):
                self.happened["another attempt"] += 1
            if outcome.event and any(
                model.canonical(outcome.body[name]) != model.canonical(value)
                for name, value in outcome.event.patch.items()
                if (name, value) != ("name", None)
            ):
                self.happened["late"] += 1
            if outcome.kind == "duplicate":
                lane.duplicates += 1
            else:
                answer = next(rest, None)
                assert answer is not None
                same(answer, record, arrivals[id(record)], outcome)
        assert next(rest, None) is None
        lane.decided += len(records)
        lane.answers = lane.answers + given

    async def _stored(self, lane: Lane, begin: int, end: int) -> list[Answer]:
        pieces = stored_answers(lane.connection, lane.position.lane, FORM, lane.partition, begin, end)
        return [answer async for piece in pieces for answer in piece.answers]

    # What holds after every step

    @invariant()
    def rows_are_the_models(self) -> None:
        assert comparable(self.run(self._rows())) == comparable(self.naive.rows)

    @invariant()
    def cases_are_the_models(self) -> None:
        assert self.run(self._stored_cases()) == self.cases

    def teardown(self) -> None:
        self.run(self._end())

    async def _end(self) -> None:
        """Answers are stored as they were yielded, byte for byte."""
        lanes = getattr(self, "lanes", [])
        try:
            for lane in lanes:
                stored = await self._stored(lane, 0, 2**62)
                assert list(map(as_sent, stored)) == list(map(as_sent, lane.answers))
                assert lane.duplicates == await lane.connection.fetchval(
                    "SELECT duplicates FROM measurement_updates.lanes WHERE lane = $1", lane.position.lane
                )
        finally:
            for lane in lanes:
                await close(lane.connection)

    # SQL

    async def _rows(self) -> dict[str, model.Row]:
        found = await self.other.fetch("SELECT * FROM cell_measurements ORDER BY id")
        return {row["id"]: model.row_of(row) for row in found}

    async def _stored_cases(self) -> Cases:
        found = await self.other.fetch(
            """SELECT r.*, l.partition, c.arrival AS case_arrival, own.partition AS case_partition,
                      last.arrival AS last_arrival, newest.partition AS last_partition
               FROM measurement_updates.rejected_updates AS r JOIN measurement_updates.lanes AS l USING (lane)
               LEFT JOIN measurement_updates.rejected_updates AS c
                   ON (c.lane, c.log_offset) = (r.case_lane, r.case_offset)
               LEFT JOIN measurement_updates.lanes AS own ON own.lane = c.lane
               LEFT JOIN measurement_updates.rejected_updates AS last
                   ON (last.lane, last.log_offset) = (r.last_lane, r.last_offset)
               LEFT JOIN measurement_updates.lanes AS newest ON newest.lane = last.lane"""
        )
        cases = Cases()
        for row in found:
            place = row["arrival"], row["partition"], row["log_offset"]
            if row["case_lane"] is not None:
                assert row["state"] == "resolved"
                cases.of[place] = row["case_arrival"], row["case_partition"], row["case_offset"]
                continue
            cases.of[place] = place
            newest = place
            if row["last_lane"] is not None:
                newest = row["last_arrival"], row["last_partition"], row["last_offset"]
            cases.states[place] = row["state"], row["attempts"], newest
        return cases

    async def _clock(self) -> int:
        return int(
            await self.other.fetchval("SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint")
        )

    async def _insert(self, measurement_id: str, **columns: Any) -> None:
        row = {
            "id": measurement_id,
            "cell_instance_id": "cell-1",
            "name": "one",
            "organization_id": "org-1",
            **columns,
        }
        values = ", ".join(f"${at}" for at in range(1, len(row) + 1))
        await self.other.execute(
            f"INSERT INTO cell_measurements ({', '.join(row)}) VALUES ({values})", *row.values()
        )

    async def _update(self, measurement_id: str, changes: dict[str, Any]) -> None:
        values = [value for value in changes.values() if value != "now"]
        places = iter(range(2, len(values) + 2))
        sets = ", ".join(
            f"{name} = now()" if value == "now" else f"{name} = ${next(places)}"
            for name, value in changes.items()
        )
        await self.other.execute(
            f"UPDATE cell_measurements SET {sets} WHERE id = $1", measurement_id, *values
        )


def comparable(rows: dict[str, model.Row]) -> dict[str, tuple[str, int, dict[str, model.Position]]]:
    """Values as JSON values: Python's True is 1."""
    return {name: (model.canonical(row.columns), row.revision, row.written) for name, row in rows.items()}


def same(answer: Answer, record: LogRecord, arrival: int, outcome: model.Outcome) -> None:
    """The answer to this record is the one that the model expects."""
    headers = {name: (value or b"").decode("utf-8", "replace") for name, value in answer.headers}
    assert (answer.offset, answer.arrival) == (record.offset, arrival)
    if outcome.kind == "rejected":
        assert headers.get("rejection-code") in (outcome.codes or {outcome.code})
        truncated = json.loads(headers.get("rejection-truncated", "{}"))
        left_out = "key" in truncated.get("left_out", [])
        assert left_out == (len(record.key or b"") > 64 * 1024)
        key = None if left_out else record.key
        assert (answer.topic, answer.key, answer.value) == ("rejected", key, record.value)
        assert (headers["rejection-offset"], headers["rejection-timestamp"]) == (
            str(record.offset),
            str(arrival),
        )
    else:
        assert answer.topic == "updated"
        assert headers.items() >= outcome.headers.items()
        assert model.canonical(json.loads(answer.value or b"")) == model.canonical(outcome.body)


INTERESTING = {
    *("applied", "duplicate", "event_id_reused", "measurement_not_found", "properties_not_allowed"),
    *("revision_conflict", "measurement_unreadable", "invalid_event", "invalid_json", "invalid_patch"),
    *("late", "another attempt", "edit", "both at once", "before_postgres_commit", "between_commits"),
}


async def test_rows_and_answers_are_the_naive_models_whatever_happens(migrated_url: str) -> None:
    happened: Counter[str] = Counter()

    def run() -> None:
        with asyncio.Runner() as runner:
            other = runner.run(asyncpg.connect(migrated_url))
            bound = type("Bound", (Machine,), {"database": Database(migrated_url, runner, other, happened)})
            run_state_machine_as_test(
                bound,
                settings=settings(
                    max_examples=120,
                    stateful_step_count=30,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
            runner.run(other.close())

    for _ in range(3):  # by chance, something rare may be missing once
        await asyncio.to_thread(run)
        if happened.keys() >= INTERESTING:
            break
    assert happened.keys() >= INTERESTING, happened
