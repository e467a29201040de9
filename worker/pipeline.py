"""The path of a batch: read → decode → plan → apply → emit. `lane.py` runs it for one partition."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from contracts.events import Violation
from worker.answer import Answer
from worker.apply import LOCKED_BATCHES, AheadOfClock, Batch, LanePosition, apply, clock_stop
from worker.crash_points import reached
from worker.database import Connection, describe
from worker.decode import decode
from worker.plan import Ground, TooMuchAtOnce
from worker.record import DecodeLimits, Record, Rejection, Update
from worker.retry import backoff, judge_postgres
from worker.stages import Watching, unwatched


@dataclass(slots=True)
class Decided:
    """What a transaction of Postgres has decided and Kafka doesn't know yet."""

    answers: Sequence[Answer]
    next_offset: int
    applied: int
    duplicates: int
    rejected: Sequence[str]
    """Their codes."""


def decode_batch(
    records: Sequence[Record], latest_arrival: int, limits: DecodeLimits
) -> list[Update | Rejection]:
    """Records in log order → events. An arrival never goes back, whatever the broker's clock did."""
    events = []
    for record in records:
        # CreateTime is a producer's clock (the topic's setting was changed): it counts for nothing
        if record.timestamp_type == 1 and record.timestamp > latest_arrival:
            latest_arrival = record.timestamp
        events.append(decode(record, latest_arrival, limits))
    return events


async def apply_batch(
    connection: Connection,
    position: LanePosition,
    batch: Batch,
    ground: Ground,
    answered: int,
    waiting: Callable[[str], None],
    stage: Watching = unwatched,
) -> AsyncIterator[Decided]:
    """Decide a batch, in as many transactions as it takes, in log order. `waiting` hears what it waits for.

    Cut in halves where Postgres refuses an event's data, until that one event is alone and rejected; cut before a record
    from the future; cut where rows or answers would take too much memory. Raises LaneStopped at a record from the future,
    and what `apply` raises.
    """
    waits = backoff(first=0.02, cap=1.0)
    todo = [batch]
    while todo:
        batch = todo.pop()
        try:
            with stage("apply"):
                plan = await apply(connection, position, batch, ground, answered, stage)
        except AheadOfClock as ahead:
            admitted = [event for event in batch.events if event.arrival <= ahead.latest]
            first = batch.events[len(admitted)]
            if not admitted:
                raise clock_stop(first, ground.form.updates_topic, ground.partition) from None
            todo += [
                Batch(batch.events[len(admitted) :], batch.next_offset),
                Batch(admitted, first.record.offset),
            ]
        except TooMuchAtOnce as cut:
            todo += _in_pieces(batch, cut.fitting)
            # only under a lock rows are read as far as they fit: so are these, and what comes after them may be no smaller
            position.locked_batches = len(todo) + LOCKED_BATCHES
        except Exception as error:
            match judge_postgres(error):
                case "again":
                    todo.append(batch)
                    waiting(f"Postgres: {describe(error)}: tried again")
                    await asyncio.sleep(next(waits))
                case "refused" if batch.events:
                    todo += _without_the_refused(batch, error)
                case _:
                    raise
        else:
            reached("between_commits")
            codes = [row.code for row in plan.rejected]
            decided = Decided(plan.answers, batch.next_offset, len(plan.applied), plan.duplicates, codes)
            del plan  # its rows aren't needed while the answers wait
            yield decided


def _in_pieces(batch: Batch, size: int) -> list[Batch]:
    """Batches of so many events, the last one first (a stack)."""
    events = batch.events
    ends = [events[at].record.offset for at in range(size, len(events), size)] + [batch.next_offset]
    return [
        Batch(events[at : at + size], end) for at, end in zip(range(0, len(events), size), ends, strict=True)
    ][::-1]


def _without_the_refused(batch: Batch, error: Exception) -> list[Batch]:
    """Two halves, the later one first (a stack); the event itself, rejected, once it is alone."""
    if len(batch.events) > 1:
        return _in_pieces(batch, (len(batch.events) + 1) // 2)
    event = batch.events[0]
    if isinstance(event, Rejection):
        raise error  # nothing of it goes near the measurements: not the event's fault
    reason = describe(error)
    violation = Violation(_refused_path(error), "data that the database takes", reason)
    message = f"The database refuses this event's data: {reason}."
    rejection = Rejection(event.record, event.arrival, "storage_refused", message, (violation,), 1)
    return [Batch([rejection], batch.next_offset)]


def _refused_path(error: Exception) -> str:
    column = getattr(error, "column_name", None)
    return f"$.{column}" if column else "$"
