"""The database at one moment: how far each lane is, what is stored, and the rows beside their last answers."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from contracts.measurement import CellMeasurement
from worker.database import Connection, close, connect, schema_is_current
from worker.errors import Fatal
from worker.sql import queries
from worker.verification.answered import sent_rejection, sent_update
from worker.verification.digests import digest, json_digest, read_value
from worker.verification.ledger import Stored
from worker.verification.received import PATCHABLE, event_digest

_ROWS_AT_ONCE = 1_000
_REJECTED_AT_ONCE = 100
"""Each may have 64 KiB of headers."""
_JSONB = ("protocol", "test_setup", "properties", "file_metadata")
_TIMES = ("start_time", "created_at", "updated_at")
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Lane:
    """A row of `lanes`."""

    lane: int
    topic: str
    partition: int
    cluster: str
    consumer_group: str
    next_to_apply: int
    next_to_answer: int
    last_offset: int | None
    last_timestamp: int | None
    latest_arrival: int
    retired: bool


@dataclass(frozen=True, slots=True)
class StoredRow:
    """What the row of a measurement says against its last answer; at most one of the three."""

    fault: str | None = None
    edited_elsewhere: bool = False
    not_checked: bool = False


class Snapshot:
    """A read-only transaction that sees one moment, whatever is committed meanwhile."""

    def __init__(self, connection: Connection, lanes: Sequence[Lane]) -> None:
        self._connection = connection
        self.lanes = lanes

    async def sizes(self, lanes: Sequence[Lane]) -> tuple[int, int]:
        """How many rows `stored` and `rows` will yield."""
        row = await self._connection.fetchrow(_sql("how_much_there_is"), _numbers(lanes))
        assert row is not None
        return row["stored"], row["rows"]

    async def stored(
        self, lanes: Sequence[Lane], answered_to: Mapping[int, int]
    ) -> AsyncIterator[Sequence[Stored]]:
        """What these lanes have decided. `answered_to`: lane → offset below which everything is known to be answered."""
        partitions = {lane.lane: lane.partition for lane in lanes}
        for query, read, at_once in (
            ("everything_applied", _applied, _ROWS_AT_ONCE),
            ("everything_rejected", _rejected, _REJECTED_AT_ONCE),
        ):
            async for rows in self._fetched(query, at_once, list(partitions)):
                yield [
                    read(row, partitions[row["lane"]], row["log_offset"] < answered_to[row["lane"]])
                    for row in rows
                ]

    async def rows(self) -> AsyncIterator[Sequence["asyncpg.Record"]]:
        """Measurements with their last answers, for `compare`."""
        async for rows in self._fetched("rows_and_answers", _ROWS_AT_ONCE):
            yield rows

    async def _fetched(
        self, query: str, at_once: int, *arguments: Any
    ) -> AsyncIterator[Sequence["asyncpg.Record"]]:
        cursor = await self._connection.cursor(_sql(query), *arguments)
        while rows := await cursor.fetch(at_once):
            yield rows


@asynccontextmanager
async def snapshot(dsn: str) -> AsyncIterator[Snapshot]:
    """Raises DependencyAway, Fatal, and what asyncpg raises."""
    connection = await connect(dsn, application="measurement-updates verify")
    try:
        if not await schema_is_current(connection):
            raise Fatal("the database's schema isn't this version's: run `measurement-updates migrate`")
        # as integers they can be infinite or beyond year 9999 without an error here
        await connection.set_type_codec(
            "timestamptz",
            schema="pg_catalog",
            encoder=lambda at: (at,),
            decoder=lambda at: at[0],
            format="tuple",
        )
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            lanes = [Lane(**row) for row in await connection.fetch(_sql("every_lane"))]
            yield Snapshot(connection, lanes)
    finally:
        await close(connection)


def _sql(name: str) -> str:
    return queries("verification.sql")[name]


def _numbers(lanes: Sequence[Lane]) -> list[int]:
    return [lane.lane for lane in lanes]


def _applied(row: Mapping[str, Any], partition: int, answered: bool) -> Stored:
    offset, arrival, measurement = row["log_offset"], row["arrival"], row["measurement_id"]
    sent = sent_update(
        (partition, offset, arrival), measurement, row["revision"], row["changed"], row["event_source"],
        row["event_id"], row["traceparent"], row["answer_source"], row["answer"],
    )  # fmt: skip
    event = event_digest(measurement, row["event_source"], row["event_id"])
    previous = None if row["previous_lane"] is None else (row["previous_lane"], row["previous_offset"])
    return Stored(partition, offset, arrival, row["lane"], "applied", sent, event, previous, answered)


def _rejected(row: Mapping[str, Any], partition: int, answered: bool) -> Stored:
    offset, arrival = row["log_offset"], row["arrival"]
    headers = [
        part
        for name, value in zip(row["header_names"], row["header_values"], strict=True)
        for part in (name.decode("utf-8", "backslashreplace"), value)
    ]
    sent = sent_rejection(
        (partition, offset, arrival), digest(row["key"], *headers), row["code"], row["detail"], row["truncated"],
        row["value"], row["length"],
    )  # fmt: skip
    return Stored(partition, offset, arrival, row["lane"], "rejected", sent, None, None, answered)


def compare(row: Mapping[str, Any]) -> StoredRow:
    """A row of `rows` beside its last answer. What only others write they may have written since, without a trace."""
    if row["answer"] is None:
        return StoredRow(not_checked=True)  # retention has taken it
    if row["measurement_id"] != row["id"]:
        return StoredRow(fault=f"its last answer is one of measurement {row['measurement_id']}")
    if row["revision"] > row["answer_revision"]:
        return StoredRow(edited_elsewhere=True)
    if row["revision"] < row["answer_revision"]:
        return StoredRow(
            fault=f"it is at revision {row['revision']}, its last answer at {row['answer_revision']}"
        )
    try:
        answer = read_value(row["answer"].encode())
        unequal = [
            name
            for name in CellMeasurement.model_fields
            if name not in answer or json_digest(answer[name]) != json_digest(_value(name, row[name]))
        ]
    except RecursionError:
        return StoredRow(not_checked=True)
    except (TypeError, ValueError) as error:
        return StoredRow(fault=f"its last answer can't be read: {error}")
    if wrong := [name for name in unequal if name in PATCHABLE]:
        return StoredRow(
            fault=f"at revision {row['revision']}, {', '.join(wrong)} isn't what its last answer says"
        )
    return StoredRow(edited_elsewhere=bool(unequal))


def _value(name: str, found: Any) -> Any:
    """A column as the response model has it."""
    if name in _JSONB:
        return None if found is None else read_value(found.encode())
    if name in _TIMES:
        return None if found is None else _iso8601(found)
    return found


def _iso8601(microseconds: int) -> str:
    """Since 2000 → as in answers."""
    try:
        return (_EPOCH + timedelta(microseconds=microseconds)).isoformat(timespec="microseconds")[:-6] + "Z"
    except OverflowError:
        return "a time that the response model can't express"
