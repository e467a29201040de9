"""Rejected cases: what became of rejected records that were sent again, by our command or by anybody's producer.

A record with `requeued-from` is another attempt of the case that it names. Applied or a duplicate: the case is resolved.
Rejected: the case is open again with one more attempt, and the new row belongs to it. Written in the transaction that
decides the record. Where no such case is there (retention has taken it), a rejected record is a case of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from contracts.envelope import FirstPosition, read_position
from contracts.events import REQUEUED_FROM
from worker.database import Connection
from worker.plan import Ground, Plan
from worker.record import Rejection, Update, position
from worker.sql import queries

Row = tuple[int, int]
"""(lane, offset) of a row of `rejected_updates`."""


@dataclass(slots=True)
class Settled:
    """What one batch makes of a case."""

    state: str = "open"
    rejections: int = 0
    last: Row | tuple[None, None] = (None, None)


async def settle_cases(
    connection: Connection, events: Sequence[Update | Rejection], result: Plan, ground: Ground
) -> None:
    """Inside the transaction of a batch, after its rejections are stored. Nothing is executed where no record of the batch
    was sent again. Raises what asyncpg raises.
    """
    attempts = list(_sent_again(events))
    if not attempts:
        return
    sql = queries("rejected.sql")
    places = sorted({first for _, first in attempts})
    found: dict[FirstPosition, list[Row]] = {}
    for row in await connection.fetch(
        sql["lock_cases"],
        [ground.form.updates_topic] * len(places),
        [place.partition for place in places],
        [place.offset for place in places],
        [place.arrival for place in places],
    ):
        place = FirstPosition(row["partition"], row["log_offset"], row["arrival"])
        found.setdefault(place, []).append((row["case_lane"], row["case_offset"]))
    if not found:
        return

    outcomes = {row.offset: row.code for row in result.rejected}
    outcomes.update((applied.update.record.offset, "applied") for applied in result.applied)
    settled, joined, acts = _fold(attempts, found, outcomes, ground.lane)
    await connection.execute(
        sql["settle_cases"],
        *zip(*settled, strict=True),
        [case.state for case in settled.values()],
        [case.rejections for case in settled.values()],
        *zip(*(case.last for case in settled.values()), strict=True),
    )
    if joined:
        lanes, offsets = zip(*joined.values(), strict=True)
        await connection.execute(sql["join_cases"], ground.lane, list(joined), lanes, offsets)
    lanes, offsets = zip(*(case for case, _ in acts), strict=True)
    details = [outcome for _, outcome in acts]
    await connection.execute(sql["keep_acts"], lanes, offsets, details, "answered", ground.form.source, None)


def _sent_again(events: Sequence[Update | Rejection]) -> Iterator[tuple[int, FirstPosition]]:
    """Offset, and where it stood first."""
    for event in events:
        if isinstance(event, Update) and not event.sent_again:
            continue
        record = event.record
        own = position(event.arrival, record.partition, record.offset)
        stated = dict(record.headers).get(REQUEUED_FROM)
        first = None if stated is None else read_position(stated, record.topic)
        # one that is newer than the record itself counts for nothing
        if first is not None and position(first.arrival, first.partition, first.offset) < own:
            yield record.offset, first


def _fold(
    attempts: Sequence[tuple[int, FirstPosition]],
    found: dict[FirstPosition, list[Row]],
    outcomes: dict[int, str],
    lane: int,
) -> tuple[dict[Row, Settled], dict[int, Row], list[tuple[Row, str]]]:
    """In log order: the last outcome counts, every rejection is an attempt.

    Returns what becomes of each case, the case of each rejected attempt (by offset), and the answers (case, outcome).
    """
    settled: dict[Row, Settled] = {}
    joined: dict[int, Row] = {}
    acts: list[tuple[Row, str]] = []
    for offset, first in attempts:
        outcome = outcomes.get(offset, "duplicate")
        case = None
        for row in found.get(first, ()):
            # who names an attempt of this very batch means that one's case
            case = joined.get(row[1], row) if row[0] == lane else row
            acts.append((case, outcome))
            became = settled.setdefault(case, Settled())
            if outcome in ("applied", "duplicate"):
                became.state = "resolved"
            else:
                became.state, became.last = "open", (lane, offset)
                became.rejections += 1
        if case is not None and outcome not in ("applied", "duplicate"):
            joined[offset] = case  # of a log that was applied anew: the newest lane's
    return settled, joined, acts
