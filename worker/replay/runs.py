"""Replays as the database keeps them: who, why, which range, how far, and what became of the records."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from datetime import datetime
from typing import Any, Literal

import orjson

from worker.database import Connection
from worker.errors import Fatal, Superseded, WorkerError
from worker.replay.ranges import Range
from worker.replay.selection import Selection
from worker.sql import queries

State = Literal["running", "cancelled", "published", "done"]


@dataclass(slots=True)
class Counts:
    """Records: read, of those wanted, of those published, and those that can't be or are gone."""

    read: int = 0
    selected: int = 0
    published: int = 0
    unpublishable: int = 0
    missed: int = 0

    @property
    def complete(self) -> bool:
        return not (self.unpublishable or self.missed)


@dataclass(slots=True)
class Run:
    """A row of `replays`."""

    id: str
    started_by: str
    why: str
    selection: Selection
    reapply: bool
    topic: str
    ranges: dict[int, Range]
    started_at: datetime | None = None
    state: State = "running"
    counts: Counts = field(default_factory=Counts)
    ends: dict[int, int] = field(default_factory=dict)
    """By partition: the offset after its last published record."""
    outcome: dict[str, Any] | None = None
    ended_by: str | None = None

    @property
    def total(self) -> int:
        """Offsets of the range."""
        return sum(end - begin for begin, end in self.ranges.values())

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "state": self.state,
            "started_at": self.started_at,
            "by": self.started_by,
            "why": self.why,
            "topic": self.topic,
            "selection": self.selection.as_json(),
            "reapply": self.reapply,
            "ranges": {str(partition): list(one) for partition, one in self.ranges.items()},
            **asdict(self.counts),
            "outcome": self.outcome,
        }


@dataclass(frozen=True, slots=True)
class Written:
    """Records of a replay in the input log, none between them: from this offset to before that one."""

    partition: int
    first_offset: int
    next_offset: int


async def begin(connection: Connection, run: Run) -> None:
    """Raises Fatal where the same replay isn't finished yet: the same records published twice help nobody."""
    sql = queries("replay.sql")
    selection = orjson.dumps(run.selection.as_json()).decode()
    async with connection.transaction():
        await connection.execute(sql["one_at_a_time"])
        same = await connection.fetchrow(sql["unfinished_like"], run.topic, selection, run.reapply)
        if same is not None:
            raise Fatal(
                f"a replay with the same options isn't finished yet: {same['id']}, begun by {same['started_by']}.\n"
                f"Go on with it: measurement-updates replay resume {same['id']}\n"
                f"or give it up: measurement-updates replay cancel {same['id']}"
            )
        ranges = orjson.dumps({str(partition): one for partition, one in run.ranges.items()}).decode()
        await connection.execute(
            sql["begin_replay"], run.id, run.started_by, run.why, selection, run.reapply, run.topic, ranges
        )


async def find(connection: Connection, id: str) -> Run:
    """Raises Fatal where there is none."""
    row = await connection.fetchrow(queries("replay.sql")["find_replay"], id)
    if row is None:
        raise Fatal(
            f"there is no replay {id} in this database: `measurement-updates replay status` lists them"
        )
    return _run(row)


async def latest(connection: Connection, topic: str, count: int = 20) -> list[Run]:
    """The last one first."""
    return [
        _run(row) for row in await connection.fetch(queries("replay.sql")["latest_replays"], topic, count)
    ]


async def note(connection: Connection, run: Run) -> None:
    """How far it is. Raises Fatal where somebody has cancelled it, Superseded where another process has gone on with it."""
    if await connection.fetchval(queries("replay.sql")["note_replay"], run.id, *astuple(run.counts)) is None:
        raise ended_elsewhere(await find(connection, run.id))


def ended_elsewhere(run: Run) -> WorkerError:
    """Why this process has nothing to do with it any more. `run`: as it is now."""
    if run.state == "cancelled":
        return cancelled(run)
    return Superseded(f"another process has gone on with this replay: it is {run.state} now")


def cancelled(run: Run) -> Fatal:
    return Fatal(
        f"replay {run.id} has been cancelled: what it has published stays, nothing more is published"
    )


async def note_written(connection: Connection, run: Run, written: Sequence[Written]) -> None:
    """Where its records stand, before they are committed."""
    await connection.execute(
        queries("replay.sql")["note_records"],
        run.id,
        [one.partition for one in written],
        [one.first_offset for one in written],
        [one.next_offset for one in written],
    )


async def all_published(connection: Connection, run: Run) -> Run:
    """As it is now. Raises what `note` does."""
    published = await connection.fetchval(queries("replay.sql")["all_published"], run.id)
    now = await find(connection, run.id)
    if published is None:
        raise ended_elsewhere(now)
    return now


async def cancel(connection: Connection, id: str, by: str) -> Run:
    """Raises Fatal where there is nothing to cancel any more."""
    run = await find(connection, id)
    if await connection.fetchval(queries("replay.sql")["cancel_replay"], id, by) is None:
        raise Fatal(f"replay {id} is {run.state}: expected one that is still being published")
    return await find(connection, id)


async def keep_counts(connection: Connection, run: Run) -> None:
    """Of one that is cancelled."""
    await connection.execute(queries("replay.sql")["keep_counts"], run.id, *astuple(run.counts))


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the workers are with what a replay has published."""

    done: int
    total: int
    pending: int
    """Of its records."""
    waiting_for: Mapping[int, int]
    """Partition → offset that its lane has yet to reach."""


async def progress(connection: Connection, run: Run) -> Progress:
    """In offsets: records of others lie between."""
    done = total = pending = 0
    waiting_for = {}
    for row in await connection.fetch(queries("replay.sql")["pieces"], run.id, run.topic):
        first, end, applied = row["first_offset"], row["next_offset"], row["next_to_apply"]
        total += end - first
        done += min(max(applied, first), end) - first
        pending += row["pending"]
        if applied < end:
            waiting_for[row["partition"]] = end
    return Progress(done, total, pending, waiting_for)


async def outcome(connection: Connection, run: Run, pending: int) -> dict[str, Any]:
    """What became of its records so far: `applied` (of those `unchanged`), `duplicates`, `rejected` by code, `pending`."""
    sql = queries("replay.sql")
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        applied = await connection.fetchrow(sql["count_applied"], run.id, run.topic)
        codes = await connection.fetch(sql["count_rejected"], run.id, run.topic)
    rejected = {row["code"]: row["found"] for row in codes}
    assert applied is not None
    others = run.counts.published - applied["applied"] - sum(rejected.values()) - pending
    return {
        "applied": applied["applied"],
        "unchanged": applied["unchanged"],
        "duplicates": max(0, others),
        "rejected": rejected,
        "pending": pending,
    }


async def finish(connection: Connection, run: Run, result: Mapping[str, Any]) -> Run:
    """Everything is decided."""
    await connection.execute(queries("replay.sql")["keep_outcome"], run.id, orjson.dumps(result).decode())
    return await find(connection, run.id)


def _run(row: Mapping[str, Any]) -> Run:
    counts = ("read", "selected", "published", "unpublishable", "missed")
    return Run(
        id=row["id"],
        started_by=row["started_by"],
        why=row["why"],
        selection=Selection.of_json(orjson.loads(row["selection"])),
        reapply=row["reapply"],
        topic=row["topic"],
        ranges={int(partition): tuple(one) for partition, one in orjson.loads(row["ranges"]).items()},
        started_at=row["started_at"],
        state=row["state"],
        counts=Counts(**{name: row[name] for name in counts}),
        ends={int(partition): end for partition, end in orjson.loads(row["ends"]).items()},
        outcome=None if row["outcome"] is None else orjson.loads(row["outcome"]),
        ended_by=row["ended_by"],
    )
