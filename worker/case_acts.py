"""What an operator does to rejected cases, in the database: each act is kept with who, when and why."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from worker.case_list import Case, CaseState
from worker.database import Connection
from worker.sql import queries

Row = tuple[int, int]
"""(lane, offset) of a row of `rejected_updates`."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, and why."""

    by: str
    why: str | None


@dataclass(slots=True)
class Held:
    """A case whose rows are locked: more than one where its log was applied anew."""

    rows: list[Row]
    state: CaseState
    newest: Row
    """Its newest attempt."""


@dataclass(frozen=True, slots=True)
class Discarded:
    """`refused`: why a case wasn't discarded."""

    cases: list[Case]
    refused: list[tuple[Case, str]]


async def discard(connection: Connection, cases: Sequence[Case], actor: Actor) -> Discarded:
    """One transaction. Raises what asyncpg raises."""
    done: list[Case] = []
    refused: list[tuple[Case, str]] = []
    async with connection.transaction():
        held = await hold(connection, cases)
        for case in cases:
            found = held.get(case.first_position)
            if found is None:
                refused.append((case, "it isn't there any more"))
            elif found.state in ("resolved", "discarded"):
                refused.append((case, f"it is {found.state} already"))
            else:
                done.append(case)
        await mark(connection, [held[case.first_position] for case in done], "discarded", actor, None)
    return Discarded(done, refused)


async def hold(connection: Connection, cases: Sequence[Case]) -> dict[str, Held]:
    """Locks them, until the transaction ends; by first position."""
    held: dict[str, Held] = {}
    for row in await connection.fetch(
        queries("rejected.sql")["lock_cases"],
        [case.topic for case in cases],
        [case.partition for case in cases],
        [case.offset for case in cases],
        [case.arrival for case in cases],
    ):
        place = f"{row['topic']}/{row['partition']}/{row['log_offset']}@{row['arrival']}"
        own = (row["case_lane"], row["case_offset"])
        newest = own if row["last_lane"] is None else (row["last_lane"], row["last_offset"])
        # in lane order: the newest lane's row speaks for all
        rows = held[place].rows if place in held else []
        held[place] = Held([*rows, own], row["state"], newest)
    return held


async def mark(
    connection: Connection, held: Collection[Held], state: CaseState, actor: Actor, detail: str | None
) -> dict[Row, int]:
    """The new state and the act of the same name; the act's id by row."""
    rows = [row for case in held for row in case.rows]
    if not rows:
        return {}
    lanes, offsets = zip(*rows, strict=True)
    sql = queries("rejected.sql")
    await connection.execute(sql["set_state"], lanes, offsets, state, None)
    acts = await connection.fetch(
        sql["keep_acts"], lanes, offsets, [detail] * len(rows), state, actor.by, actor.why
    )
    return {(act["lane"], act["log_offset"]): act["act_id"] for act in acts}


async def put_back(connection: Connection, rows: Sequence[Row], state: CaseState) -> None:
    """Where a requeued one couldn't be sent after all."""
    lanes, offsets = zip(*rows, strict=True)
    await connection.execute(queries("rejected.sql")["set_state"], lanes, offsets, state, "requeued")


async def note_sent(connection: Connection, details: Mapping[int, str]) -> None:
    """What became of these acts, by id."""
    if details:
        await connection.execute(queries("rejected.sql")["note_sent"], list(details), list(details.values()))


async def last_requeued(connection: Connection, case: Case) -> tuple[datetime, str, str | None] | None:
    """When, by whom and where to it was requeued last."""
    row = await connection.fetchrow(queries("rejected.sql")["last_requeued"], case.lane, case.offset)
    return None if row is None else (row["acted_at"], row["acted_by"], row["detail"])
