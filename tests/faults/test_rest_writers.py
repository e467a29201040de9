"""Other writers, as the REST service is one, change the rows that the worker changes: no deadlock is an error, no update is
lost on either side, and what is late doesn't undo what they wrote.

In the end both sides are put into one history for each measurement: its records in log order, and before each of them
what the others had written by then, as the answer's revision says. The naive model goes through it: it must foretell every
answer, every row that the others were shown, and the last row.
"""

import asyncio
import random
import signal
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import asyncpg
import orjson
import pytest
from aiokafka.structs import RecordMetadata

from tests import model
from tests.faults.checker import foretold, given_in, input_log
from tests.faults.drill import Drill
from tests.faults.states import Log, held, lanes_wait
from tests.system import Answer, Place, System, until

WRITERS = 4
CHOICE = ("name", "notes", "protocol", "test_setup", "properties")
SHOWN = "*, statement_timestamp() AS began, clock_timestamp() AS shown"
"""What a statement returns of a row: its lock is held by then, so `shown` orders all that others did to one row."""


@dataclass(frozen=True, slots=True)
class Act:
    """What another writer has done to a row, and committed. `row`: as it was left; of a deletion, as it was last."""

    kind: Literal["edit", "insert", "delete"]
    row: model.Row
    began: int
    shown: int
    """Microseconds since 1970, by the database's clock."""
    fields: Sequence[str] = ()


class Writers:
    """They lock rows in descending order, the worker in ascending order: its lanes and they lock each other out, but
    they themselves don't."""

    def __init__(self, system: System, chance: random.Random) -> None:
        self.acts: defaultdict[str, list[Act]] = defaultdict(list)
        self.happened: Counter[str] = Counter()
        self._dsn = system.settings.dsn
        self._measurements = sorted(system.base, reverse=True)
        self._chance = chance
        self._count = 0

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Whoever has waited for his `deadlock_timeout` first is the one that Postgres rolls back: both sides in turn."""
        over = asyncio.Event()
        async with asyncio.TaskGroup() as writers:
            for number in range(WRITERS):
                writers.create_task(self._keep_writing(over, ("5ms", "1s")[number % 2]))
            try:
                yield
            finally:
                over.set()

    async def _keep_writing(self, over: asyncio.Event, deadlock_timeout: str) -> None:
        connection = await asyncpg.connect(
            self._dsn, server_settings={"deadlock_timeout": deadlock_timeout, "timezone": "UTC"}
        )
        try:
            while not over.is_set():
                try:
                    await self._write(connection)
                except asyncpg.DeadlockDetectedError:
                    self.happened["deadlock"] += 1
                await asyncio.sleep(self._chance.random() * 0.05)  # between two calls of the API
        finally:
            await connection.close()

    async def _write(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        """Several rows in a transaction; now and then it keeps their locks for a second."""
        chosen = self._chance.sample(range(len(self._measurements)), self._chance.randint(2, 6))
        holds = self._chance.random() < 0.03
        async with connection.transaction():
            acts = [await self._act(connection, self._measurements[at]) for at in sorted(chosen)]
            if holds:
                await connection.execute("SELECT pg_sleep(1)")
        self.happened["hold"] += holds
        for act in acts:
            if act is not None:
                self.acts[act.row.columns["id"]].append(act)
                self.happened[act.kind] += 1

    async def _act(self, connection: "asyncpg.Connection[asyncpg.Record]", measurement_id: str) -> Act | None:
        """None: another one was first."""
        if self._chance.random() < 0.1:
            deleted = await connection.fetchrow(
                f"DELETE FROM cell_measurements WHERE id = $1 RETURNING {SHOWN}", measurement_id
            )
            return _act("delete", deleted)
        changes = self._changes()
        columns = ", ".join(f"{name} = ${number}" for number, name in enumerate(changes, 2))
        edited = await connection.fetchrow(
            f"UPDATE cell_measurements SET {columns}, updated_at = clock_timestamp() WHERE id = $1 RETURNING {SHOWN}",
            measurement_id,
            *changes.values(),
        )
        if edited is not None:
            return _act("edit", edited, tuple(changes))
        inserted = await connection.fetchrow(
            "INSERT INTO cell_measurements (id, cell_instance_id, name, notes) VALUES ($1, 'cell-1', 'anew', 'anew')"
            f" ON CONFLICT DO NOTHING RETURNING {SHOWN}",
            measurement_id,
        )
        return _act("insert", inserted)

    def _changes(self) -> dict[str, str]:
        """Values that nobody has written before, so each is a change."""
        self._count += 1
        value = {"by hand": self._count}
        text = f"by hand {self._count}"
        names = self._chance.sample(CHOICE, self._chance.randint(1, 3))
        return {name: text if name in ("name", "notes") else orjson.dumps(value).decode() for name in names}


def _act(
    kind: Literal["edit", "insert", "delete"], found: Mapping[str, Any] | None, fields: Sequence[str] = ()
) -> Act | None:
    if found is None:
        return None
    columns = dict(found)
    began, shown = (round(columns.pop(name).timestamp() * 1_000_000) for name in ("began", "shown"))
    return Act(kind, model.row_of(columns), began, shown, fields)


class History:
    """One measurement. `kept`: how often an event was applied and left a field as another writer had written it since."""

    def __init__(self, measurement_id: str, system: System, acts: Iterable[Act]) -> None:
        base = system.base.get(measurement_id)
        self._id = measurement_id
        self._acts = deque(sorted(acts, key=lambda act: act.shown))
        self._naive = model.Model(
            {} if base is None else {measurement_id: model.row_of(base)},
            int(system.settings.worker_identity_retention.total_seconds() * 1000),
        )
        self.kept = 0

    @property
    def row(self) -> model.Row | None:
        return self._naive.rows.get(self._id)

    def take(self, record: model.Record, arrival: int, answer: Answer | None) -> None:
        """The next record, and before it what others had done by then. Raises AssertionError."""
        while self._acts and not self._is_where_it_was_judged(answer):
            self._take_act()
        outcome = self._naive.judge(record, arrival)
        given = ("duplicate",) if answer is None else given_in(answer)
        at = record.partition, record.offset
        assert given == foretold(outcome), f"{self._id}: record {at} over {self.row}"
        if outcome.event is not None:
            self.kept += self._left_alone(outcome.event.patch)

    def take_the_rest(self) -> None:
        while self._acts:
            self._take_act()

    def _is_where_it_was_judged(self, answer: Answer | None) -> bool:
        """`created_at` tells a row from the one before it that had the same id."""
        row = self.row
        if answer is None or (answer.rejected and answer.code in ("invalid_json", "event_id_reused")):
            return True  # whatever the row is
        if answer.rejected and answer.code == "measurement_not_found":
            return row is None
        if row is None:
            return False
        if answer.rejected:
            assert answer.code == "revision_conflict"
            return bool(str(row.revision) == answer.detail["violations"][0]["expected"])
        before = answer.revision - bool(answer.changed)
        return (row.columns["created_at"], row.revision) == (answer.model["created_at"], before)

    def _take_act(self) -> None:
        act = self._acts.popleft()
        match act.kind:
            case "insert":
                assert self.row is None, f"{self._id}: inserted, though it was there: {act}"
                self._naive.insert(act.row.columns)
            case "edit":
                assert self.row is not None, f"{self._id}: edited, though it wasn't there: {act}"
                changes = {name: act.row.columns[name] for name in (*act.fields, "updated_at")}
                self._naive.edit(self._id, changes, _stamp(act))
        assert self.row == act.row, f"{self._id}: expected {self.row} at {act}"
        if act.kind == "delete":
            self._naive.delete(self._id)

    def _left_alone(self, patch: Mapping[str, Any]) -> int:
        row = self.row
        assert row is not None
        return sum(
            row.written.get(name, model.OLDER_THAN_ALL)[1] == model.LAST
            and model.canonical(row.columns[name]) != model.canonical(value)
            for name, value in patch.items()
            if (name, value) != ("name", None)
        )


def _stamp(act: Act) -> int:
    """The time that the trigger has given an edit: one while the statement ran."""
    stamps = {act.row.written.get(name, model.OLDER_THAN_ALL)[0] for name in act.fields}
    while_it_ran = range(act.began // 1_000, act.shown // 1_000 + 1)
    assert [at in while_it_ran for at in stamps] == [True], f"expected one of {while_it_ran} ms: {act}"
    return stamps.pop()


async def histories(system: System, acts: Mapping[str, Sequence[Act]]) -> list[History]:
    """Of every key in the log, gone through to the end. Raises AssertionError where the model foretells something else."""
    answers: dict[Place, Answer] = {answer.place: answer for answer in await system.answers(count=0)}
    found = {
        row["id"]: model.row_of(row) for row in await system.database.fetch("SELECT * FROM cell_measurements")
    }
    arrivals = model.Arrivals()
    gone_through: dict[str, History] = {}
    for record in await input_log(system):
        name = (record.key or b"").decode()
        if name not in gone_through:
            gone_through[name] = History(name, system, acts.get(name, ()))
        place = record.partition, record.offset
        gone_through[name].take(record, arrivals.of(record), answers.get(place))
    assert acts.keys() <= gone_through.keys()
    for name, history in gone_through.items():
        history.take_the_rest()
        assert history.row == found.get(name), f"{name}: expected {history.row}, found {found.get(name)}"
    return list(gone_through.values())


async def test_other_writers_deadlock_with_the_worker_and_nobody_loses_an_update(drill: Drill) -> None:
    system = drill.system
    name = await system.database.fetchval("SELECT current_database()")
    await system.database.execute(f"ALTER DATABASE {name} SET deadlock_timeout = '20ms'")
    writers = Writers(system, drill.chance)
    async with drill.under_load("other writers update, delete and insert the same rows", foldable=False):
        worker = drill.start_worker()
        for _ in drill.rounds:
            await drill.flowing()
            before, already = await deadlocks(system), Counter(writers.happened)
            async with writers.writing():
                await drill.published(2_000)
                await drill.answered()  # they go on meanwhile
                await drill.says("deadlock detected")
                await everything_happened(writers, already)
                await deadlocks_rose(system, before)
            await drill.recovered()
        assert worker.poll() is None
    no_errors(drill.logs)
    gone_through = await histories(system, writers.acts)
    assert sum(history.kept for history in gone_through) > 0


async def deadlocks(system: System) -> int:
    """As the server counts them."""
    found = await system.database.fetchval(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    )
    return int(found)


async def deadlocks_rose(system: System, before: int) -> None:
    async def rose() -> bool:
        return await deadlocks(system) > before

    await until(rose, f"more than {before} deadlocks")


async def everything_happened(writers: Writers, before: Mapping[str, int]) -> None:
    """Of what others do, each at least once in this round; that they were rolled back by a deadlock, too."""
    kinds = ("edit", "delete", "insert", "hold", "deadlock")

    async def happened() -> bool:
        return all(writers.happened[kind] > before.get(kind, 0) for kind in kinds)

    await until(happened, lambda: f"each of {kinds} once more than {before}, there are {writers.happened}")


def no_errors(logs: Sequence[Log]) -> None:
    """A deadlock that a lane was rolled back by is what it waits for, and no more."""
    events = [event for log in logs for event in log.events()]
    errors = [event for event in events if event["level"] not in ("debug", "info", "warning")]
    # what aiokafka says is about Kafka: of a broker that has just started, say
    assert [event for event in errors if not event.get("logger", "").startswith("aiokafka")] == []
    said = [event for event in events if "deadlock" in str(event)]
    assert {(event["event"], event["level"]) for event in said} <= {("lane waiting", "warning")}


@pytest.mark.parametrize("late", ["it waits for the row", "it is stopped"])
async def test_events_from_before_an_edit_are_applied_after_it_and_do_not_undo_it(
    lab: System, log: Log, late: str
) -> None:
    await lab.seed("m-1", notes="as it was")
    with lab.process(log.file) as worker:
        first = await lab.update("m-1", {"name": "first"}, id="e-0")
        assert await lab.verdicts(first) == ["1 name"]
        if late == "it is stopped":
            worker.send_signal(signal.SIGSTOP)
        async with held(lab, "SELECT FROM cell_measurements WHERE id = 'm-1' FOR UPDATE") as other:
            records = [
                await lab.update("m-1", {"notes": "event", "test_setup": {"lab": "event"}}, id="e-1"),
                await lab.update("m-1", {"notes": "later event"}, id="e-2"),
            ]
            if late == "it waits for the row":
                await lanes_wait(lab)
            await other.execute(
                """UPDATE cell_measurements SET notes = 'REST', protocol = '{"by": "REST"}'"""
            )
        if late == "it is stopped":
            worker.send_signal(signal.SIGCONT)
        records.append(await requeued(lab, records[0]))
        assert await lab.verdicts(*records) == ["3 test_setup", "3", "4 name"]
        answers = await lab.answers_to(*records)
    assert [answer.model["notes"] for answer in answers] == ["REST"] * 3
    assert [answer.model["protocol"] for answer in answers] == [{"by": "REST"}] * 3
    row = await lab.row("m-1")
    assert (row["notes"], row["protocol"], row["name"]) == ("REST", {"by": "REST"}, "requeued")
    assert row["test_setup"] == {"lab": "event"}
    no_errors([log])


async def test_a_row_that_is_deleted_and_inserted_at_once_is_there_all_the_time(
    lab: System, log: Log
) -> None:
    """A statement that waited for it sees neither row: Postgres looks for rows as they were when it began."""
    await lab.seed("m-1")
    await lab.seed("m-2")
    with lab.process(log.file):
        async with held(lab, "DELETE FROM cell_measurements WHERE id = 'm-1'") as other:
            await other.execute(
                "INSERT INTO cell_measurements (id, cell_instance_id, name) VALUES ('m-1', 'c', 'anew')"
            )
            records = [
                await lab.publish(id, {"notes": "event"}, partition=0) for id in ("m-1", "m-2", "m-3", "m-1")
            ]
            await lanes_wait(lab)
        assert await lab.verdicts(*records) == ["1 notes", "1 notes", "measurement_not_found", "1"]
    assert (await lab.row("m-1"))["name"] == "anew"


async def requeued(lab: System, at: RecordMetadata) -> RecordMetadata:
    """Published now, and as old as another record."""
    return await lab.update(
        "m-1",
        {"protocol": None, "name": "requeued"},
        id="e-3",
        requeued_from=f"{at.topic}/{at.partition}/{at.offset}@{at.timestamp}",
    )
