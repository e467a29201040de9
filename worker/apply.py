"""apply: the one Postgres transaction of a batch.

1. move the lane on, if it is still ours and where we left it, and lock the measurements, in id order
2. look identities up
3. plan (pure)
4. write rows, applied and rejected updates, and what became of rejected cases
5. commit

A batch of plain updates is first tried without locks: read, plan, and then write if all is as it was read (a small one in
one statement, which is a transaction by itself). Where something else has written in between, or it is more than plain
updates, it goes the way above.
"""

import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import asyncpg
import orjson

from worker.applied_rows import COLUMNS, in_binary, in_columns
from worker.crash_points import reached
from worker.database import Connection, transaction
from worker.errors import DependencyAway, LaneStopped, Superseded
from worker.measurement import BIT, JSON_FIELDS, PATCHABLE, Measurement, MeasurementRows
from worker.plan import Ground, KnownIdentity, Plan, TooMuchAtOnce, plan
from worker.record import DIGESTED_BYTES, MAX_KEPT_BYTES, Record, Rejection, Update, whole_length
from worker.rejected_cases import settle_cases
from worker.sql import queries
from worker.stages import Watching, unwatched

LaneMove: TypeAlias = tuple[int, int, int, int, int | None, int | None, bytes | None, int]
"""The lane's epoch and next_to_apply as they were; next_to_apply, next_to_answer, the last record's offset, timestamp and
digest, and the latest arrival, as they will be."""
_LOCKED = [None] * 10
MAX_CLOCK_LEAD = 5 * 60 * 1000
"""Milliseconds that a record may be ahead of the database's clock."""


_FEW = 64
"""Up to so many applied updates go with the rows. More go by COPY: half the work on both sides, but two round trips more."""
_LITTLE = 1024**2
"""Bytes of rows that are read without a lock for so few, at most. The other way cuts batches whose rows are larger while it
reads them; this one makes all of them text before it knows.
"""
_LARGE_ROW = 16 * 1024
"""Bytes of a row, as it is stored, beyond which it is read under a lock only. Of many rows, those with any compressed value,
too: it may be a hundred times as long."""
LOCKED_BATCHES = 16
"""So many batches lock what they read at once, after one that was read without a lock in vain: somebody else has written to
what it had read, it took too long, its rows are too large."""


class AheadOfClock(Exception):
    """A record of the batch is stamped too far ahead of the database's clock. Nothing was written."""

    def __init__(self, latest: int) -> None:
        super().__init__(latest)
        self.latest = latest
        """The latest arrival that is admitted now, in ms."""


class NothingToJudgeBy(DependencyAway):
    """`cell_measurements` is empty: the wrong database, or one that isn't filled yet."""

    do = ""  # its message says it


@dataclass(slots=True)
class LanePosition:
    """A lane as its row in `lanes` has it, while we own it."""

    lane: int
    epoch: int
    next_to_apply: int
    latest_arrival: int
    accepted_until: int
    locked_batches: int = 1
    """So many more lock what they read at once: the first one, as there is trouble that only that way gets over (rows that
    are too large to be read together)."""


@dataclass(slots=True)
class Batch:
    """Decoded records in log order, and how far the log is read with them."""

    events: Sequence[Update | Rejection]
    next_offset: int
    """Of the log: past the last record, and past transaction markers behind it."""


def digest_of(record: Record) -> bytes:
    """What a record is known by when the log is checked later on."""
    digest = hashlib.blake2b(digest_size=16)
    for part, digested in ((record.key, MAX_KEPT_BYTES), (record.value, DIGESTED_BYTES)):
        digest.update(b"-" if part is None else b"%d:" % whole_length(part))
        digest.update((part or b"")[:digested])
    return digest.digest()


async def apply(
    connection: Connection,
    position: LanePosition,
    batch: Batch,
    ground: Ground,
    answered: int,
    stage: Watching = unwatched,
) -> Plan:
    """Decide a batch for ever. On success `position` is moved; on any error it isn't, and nothing was written.

    Raises Superseded (the lane isn't ours or isn't where we left it), AheadOfClock, NothingToJudgeBy, TooMuchAtOnce,
    and what asyncpg raises.
    """
    updates = [event for event in batch.events if isinstance(event, Update)]
    last = batch.events[-1] if batch.events else None
    move = (
        position.epoch,
        position.next_to_apply,
        batch.next_offset,
        min(answered, batch.next_offset),
        last.record.offset if last else None,
        last.record.timestamp if last else None,
        digest_of(last.record) if last else None,
        last.arrival if last else position.latest_arrival,
    )
    result = await _apply_unlocked(connection, position, batch, updates, ground, move, stage)
    if result is None:
        result = await _apply_locked(connection, position, batch, updates, ground, move, stage)
    position.next_to_apply = batch.next_offset
    position.latest_arrival = move[-1]
    return result


async def _apply_locked(
    connection: Connection,
    position: LanePosition,
    batch: Batch,
    updates: Sequence[Update],
    ground: Ground,
    move: LaneMove,
    stage: Watching,
) -> Plan:
    sql = queries()
    ids = list({update.measurement_id for update in updates})
    async with transaction(connection):
        found = await connection.fetch(
            sql["move_lane_and_lock"],
            position.lane,
            *move,
            ids,
            ground.max_batch_bytes,
        )
        _check_lane(found, position, batch)

        rows = found if found[0]["id"] is not None else []
        measurements = await _measurements(connection, rows, ids, len(updates), ground.max_batch_bytes)
        if batch.events and not measurements:
            if not await connection.fetchval(sql["any_measurement"]):
                raise NothingToJudgeBy(
                    "table cell_measurements is empty, so nothing is judged: is DATABASE_URL the right database?"
                    " Fill the table, or point the worker at the right one"
                )
            # it may have been filled between the two looks: nothing is judged by the empty table
            measurements = await _measurements(connection, [], ids, len(updates), ground.max_batch_bytes)
        identities = await _find_identities(connection, updates)

        with stage("plan"):
            result = plan(batch.events, measurements, identities, ground)

        if result.measurements:
            await _write_updates(connection, result, ground)
        if result.rejected:
            await _insert_rejected(connection, result, ground.lane)
        if result.duplicates:
            await connection.execute(sql["count_duplicates"], ground.lane, result.duplicates)
        await settle_cases(connection, batch.events, result, ground)
        reached("before_postgres_commit")
    return result


async def _apply_unlocked(
    connection: Connection,
    position: LanePosition,
    batch: Batch,
    updates: Sequence[Update],
    ground: Ground,
    move: LaneMove,
    stage: Watching,
) -> Plan | None:
    """A batch of plain updates. None where it is anything else, or something else has written in between: then nothing was
    written."""
    if not 0 < len(batch.events) == len(updates) or any(update.sent_again for update in updates):
        return None
    if position.locked_batches:
        position.locked_batches -= 1
        return None
    few = len(updates) <= _FEW
    # unless it goes well: whatever fails here isn't tried again at once
    position.locked_batches = LOCKED_BATCHES
    ids = list({update.measurement_id for update in updates})
    found = await connection.fetch(
        queries()["read_batch"],
        position.lane,
        position.epoch,
        position.next_to_apply,
        ids,
        min(_LITTLE, ground.max_batch_bytes) if few else ground.max_batch_bytes,
        _identities(updates),
        _LARGE_ROW,
        few,
    )
    _check_lane(found, position, batch)
    result = None
    if len(found) == len(ids) and found[0]["id"] is not None and not found[0]["any_known"]:
        measurements = MeasurementRows()
        measurements.add(found)
        with stage("plan"):
            result = plan(batch.events, measurements, {}, ground)
    if result is None or result.rejected or result.duplicates:
        if few:  # it has cost little: the next one may be plain
            position.locked_batches = 0
        return None
    writers = {row["id"]: row["written_by"] for row in found}
    as_read = [writers[measurement.id] for measurement in result.measurements]
    unlocked = (as_read, *move, len(as_read))
    try:
        if few:
            reached("before_postgres_commit")
            await _write_updates(connection, result, ground, unlocked)
        else:
            async with transaction(connection):
                await _write_updates(connection, result, ground, unlocked)
                reached("before_postgres_commit")
    except asyncpg.SerializationError:
        return None
    position.locked_batches = 0
    return result


def _check_lane(found: Sequence[asyncpg.Record], position: LanePosition, batch: Batch) -> None:
    """Raises Superseded, AheadOfClock."""
    if not found:
        raise Superseded("the lane has another owner, or isn't where this worker left it")
    latest = max(found[0]["clock"] + MAX_CLOCK_LEAD, position.accepted_until)
    if batch.events and batch.events[-1].arrival > latest:
        raise AheadOfClock(latest)


def clock_stop(event: Update | Rejection, topic: str, partition: int) -> LaneStopped:
    """The first record that isn't applied is stamped too far in the future."""
    return LaneStopped(
        f"record {topic}/{partition}/{event.record.offset} is stamped {event.arrival} ms, more than 5 minutes ahead of"
        " the database's clock: mend the clocks (broker and database), wait until that time has come, or accept it:"
        f" measurement-updates lanes accept {topic}/{partition} --why …"
    )


async def _measurements(
    connection: Connection,
    rows: Sequence[asyncpg.Record],
    ids: Sequence[str],
    updates: int,
    max_bytes: int,
) -> MeasurementRows:
    """By id, from the rows that are locked; what isn't there is left out. Raises TooMuchAtOnce where all of them would be
    larger.

    What isn't there is looked for once more: who deletes a row and inserts it anew, in one transaction that the first look
    had to wait for, leaves neither row for that look to see.
    """
    found = MeasurementRows()
    _add(found, rows, len(ids), updates)
    if missing := found.missing(ids):
        more = await connection.fetch(queries()["lock_measurements"], missing, max_bytes)
        _add(found, more, len(ids), updates)
    return found


def _add(found: MeasurementRows, rows: Sequence[asyncpg.Record], wanted: int, updates: int) -> None:
    """Raises TooMuchAtOnce where the last row says that there are more than fit."""
    if rows and rows[-1]["id"] is None:
        raise TooMuchAtOnce(max(1, updates * (len(found) + len(rows) - 1) // wanted))
    found.add(rows)


async def _find_identities(
    connection: Connection, updates: Sequence[Update]
) -> Mapping[bytes, list[KnownIdentity]]:
    found: defaultdict[bytes, list[KnownIdentity]] = defaultdict(list)
    if updates:
        for identity, content, arrival in await connection.fetch(
            queries()["find_identities"], _identities(updates)
        ):
            found[identity].append(KnownIdentity(content, arrival))
    return found


def _identities(updates: Sequence[Update]) -> list[bytes]:
    wanted = {update.identity for update in updates}
    wanted |= {update.plain_identity for update in updates if update.plain_identity is not None}
    return list(wanted)


async def _write_updates(
    connection: Connection, result: Plan, ground: Ground, unlocked: Sequence[Any] = _LOCKED
) -> None:
    """Rows and applied updates. `unlocked`: what `write_updates` checks and moves itself ($31 to $40)."""
    measurements = result.measurements
    written = stamped = 0
    for measurement in measurements:
        written |= measurement.written
        stamped |= measurement.stamped
    columns: list[Sequence[Any] | None] = [
        [measurement.id for measurement in measurements],
        [measurement.written for measurement in measurements],
        [measurement.updated_at for measurement in measurements],
        [measurement.revision for measurement in measurements],
        [measurement.last_answer and measurement.last_answer[1] for measurement in measurements],
    ]
    # asyncpg asks of each element of an array whether it is one itself (Iterable? Sized?), which costs more than to send it:
    # there is no array for a field that no row of the batch changes
    columns += [_texts(field, measurements) if written & BIT[field] else None for field in PATCHABLE]
    columns += [
        [measurement.positions[field] for measurement in measurements] if stamped & BIT[field] else None
        for field in PATCHABLE
    ]
    few = len(result.applied) <= _FEW
    rows = await connection.fetchval(
        queries()["write_updates"],
        *columns,
        ground.lane,
        ground.form.source,
        *(in_columns(result.applied) if few else [None] * len(COLUMNS)),
        *unlocked,
    )
    if rows != len(measurements):
        # the rows are locked, so they are there: something else keeps them from being written
        raise DependencyAway(
            f"Postgres has written {rows} of {len(measurements)} rows of cell_measurements: expected all."
            " Look for a trigger (BEFORE UPDATE returning NULL), a rule or a row-security policy that swallows updates",
            do="remove what swallows them: it goes on by itself",
        )
    if not few:
        await connection.copy_to_table(
            "applied_updates",
            schema_name="measurement_updates",
            columns=("answer_source", "lane", *COLUMNS),
            format="binary",
            source=_pieces(in_binary(result.applied, ground.lane, ground.form.source)),
        )


async def _pieces(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _texts(field: str, measurements: Sequence[Measurement]) -> list[str | None]:
    """What is written to a column: JSON text, or the string itself."""
    bit = BIT[field]
    texts = [measurement.fields[field] if measurement.written & bit else None for measurement in measurements]
    if field in JSON_FIELDS:
        return [None if text is None else text.decode() for text in texts]
    return [None if text is None else orjson.loads(text) for text in texts]


async def _insert_rejected(connection: Connection, result: Plan, lane: int) -> None:
    await connection.executemany(
        queries()["insert_rejected"],
        [
            (
                lane,
                row.offset,
                row.arrival,
                row.key,
                row.value,
                row.header_names,
                row.header_values,
                row.code,
                row.detail.decode(),
                row.truncated and row.truncated.decode(),
            )
            for row in result.rejected
        ],
    )
