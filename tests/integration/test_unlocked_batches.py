"""A batch that is read without a lock is written only where all is as it was read, however many updates it has."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import asyncpg
import orjson
import pytest
from aiokafka import ConsumerRecord

from tests.system import System, until
from worker import apply as applying
from worker.answer import AnswerForm
from worker.apply import Batch, LanePosition, apply
from worker.database import Connection, close, connect_lane
from worker.pipeline import apply_batch, decode_batch
from worker.plan import Ground, Plan
from worker.record import DecodeLimits
from worker.sql import queries

FEW, MANY = 3, applying._FEW + 6


class OneLane:
    """A lane that has decided its first batch: the next one isn't locked."""

    def __init__(self, connection: Connection, lane: int, epoch: int) -> None:
        self.connection = connection
        self.position = LanePosition(lane, epoch, 0, 0, 2**62, locked_batches=0)
        self._ground = Ground(lane, 0, AnswerForm("t", "updated", "rejected", "worker"), 1_000)

    async def apply(self, ids: Sequence[str]) -> Plan:
        """The name of each becomes `event`."""
        return await apply(self.connection, self.position, self._batch(ids), self._ground, 0)

    async def apply_in_pieces(self, ids: Sequence[str], max_batch_bytes: int) -> list[int]:
        """Likewise. How many each transaction has applied."""
        ground = replace(self._ground, max_batch_bytes=max_batch_bytes)
        decisions = apply_batch(self.connection, self.position, self._batch(ids), ground, 0, print)
        return [decided.applied async for decided in decisions]

    def _batch(self, ids: Sequence[str]) -> Batch:
        first = self.position.next_to_apply
        records = [
            ConsumerRecord("t", 0, first + at, 1, 1, id.encode(), b'{"name": "event"}', None, 3, 14, ())
            for at, id in enumerate(ids)
        ]
        return Batch(decode_batch(records, 0, DecodeLimits()), first + len(ids))


@pytest.fixture
async def lane(lab: System) -> AsyncIterator[OneLane]:
    connection = await connect_lane(lab.settings.dsn, application="test")
    try:
        await connection.execute(queries()["begin_lane"], "t", 0, "cluster", "group", 0)
        row = await connection.fetchrow(queries()["find_lane"], "t", 0)
        yield OneLane(connection, row["lane"], row["epoch"])
    finally:
        await close(connection)


async def seed(lab: System, count: int) -> list[str]:
    ids = [f"m-{number:02}" for number in range(count)]
    for id in ids:
        await lab.seed(id)
    return ids


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.parametrize(
    ("statement", "becomes"),
    [
        ("UPDATE cell_measurements SET notes = 'rest' WHERE id = 'm-02'", ("event", "rest", 2)),
        ("UPDATE cell_measurements SET created_by = 'rest' WHERE id = 'm-02'", ("event", None, 1)),
        ("DELETE FROM cell_measurements WHERE id = 'm-02'", None),
    ],
)
async def test_what_is_written_by_others_after_it_was_read_is_judged_anew(
    lab: System, lane: OneLane, count: int, statement: str, becomes: tuple[str, str | None, int] | None
) -> None:
    ids = await seed(lab, count)
    rest = await asyncpg.connect(lab.settings.dsn)
    try:
        async with rest.transaction():
            await rest.execute(statement)
            decided = asyncio.create_task(lane.apply(ids))

            async def waits() -> bool:
                query = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $1"
                return bool(await lab.database.fetchval(query, lane.connection.get_server_pid()))

            await until(waits, "it waits for the row")
    finally:
        await rest.close()
    result = await decided
    # it had been read without a lock; so many batches lock what they read now
    assert lane.position.locked_batches == applying.LOCKED_BATCHES
    assert lane.position.next_to_apply == count
    assert [one.code for one in result.rejected] == ([] if becomes else ["measurement_not_found"])
    assert len(result.applied) == count - len(result.rejected)
    rows = await lab.database.fetch("SELECT name, notes, revision FROM cell_measurements WHERE id = 'm-02'")
    assert [tuple(row) for row in rows] == ([becomes] if becomes else [])
    stored = await lab.database.fetch(
        "SELECT measurement_id, answer FROM measurement_updates.applied_updates ORDER BY log_offset"
    )
    assert [row["measurement_id"] for row in stored] == [id for id in ids if becomes or id != "m-02"]
    if becomes:
        assert orjson.loads(stored[2]["answer"])["notes"] == becomes[1]


@pytest.mark.parametrize("count", [FEW, MANY])
async def test_plain_updates_are_decided_without_a_lock(lab: System, lane: OneLane, count: int) -> None:
    ids = await seed(lab, count)
    for revision in (1, 2):
        assert len((await lane.apply(ids)).applied) == count
        assert lane.position.locked_batches == 0
        # the second time nothing changes: the rows are stamped, and stay at their revision
        rows = await lab.database.fetch(
            "SELECT name, revision, answer_offset FROM cell_measurements ORDER BY id"
        )
        assert [tuple(row) for row in rows] == [
            ("event", 1, count * (revision - 1) + at) for at in range(count)
        ]


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.parametrize("what", ["a large row", "a compressed value", "one that isn't there"])
async def test_what_many_updates_can_not_be_decided_by_locks_the_next_ones_at_once(
    lab: System, lane: OneLane, what: str, count: int
) -> None:
    ids = await seed(lab, count)
    if what == "one that isn't there":
        await lab.database.execute("DELETE FROM cell_measurements WHERE id = 'm-02'")
    else:
        text = secrets.token_hex(applying._LARGE_ROW) if what == "a large row" else "x" * 8_000
        protocol = orjson.dumps({"definition": text}).decode()
        await lab.database.execute("UPDATE cell_measurements SET protocol = $1 WHERE id = 'm-02'", protocol)
    locked = applying.LOCKED_BATCHES if count == MANY else 0
    assert len((await lane.apply(ids)).applied) == count - (what == "one that isn't there")
    assert lane.position.locked_batches == locked
    await lane.apply(ids)
    assert lane.position.locked_batches == max(0, locked - 1)


async def test_what_can_not_be_read_without_a_lock_is_read_under_one_next(
    lab: System, lane: OneLane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time-out of the server's, say: the same batch is tried again, by the same lane."""
    ids = await seed(lab, FEW)
    with monkeypatch.context() as broken:
        broken.setitem(queries(), "read_batch", "SELECT nothing_of_the_kind")
        with pytest.raises(asyncpg.UndefinedColumnError):
            await lane.apply(ids)
    assert lane.position.locked_batches == applying.LOCKED_BATCHES
    assert len((await lane.apply(ids)).applied) == FEW


async def test_rows_that_do_not_fit_together_are_locked_in_all_pieces_and_what_comes_next(
    lab: System, lane: OneLane
) -> None:
    ids = await seed(lab, MANY)
    applied = await lane.apply_in_pieces(ids, max_batch_bytes=1_000)
    assert len(applied) > 1
    assert sum(applied) == MANY
    assert lane.position.locked_batches >= applying.LOCKED_BATCHES
