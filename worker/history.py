"""One measurement's history, from what is stored for its applied events.

Each stored answer names the one before it; the row names the last. That chain is walked backwards by the primary key, in
pages, keeping 12 bytes a revision; then it is told forwards.
"""

from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from worker.database import Connection, close, connect, schema_is_current
from worker.differences import Difference, NotThere, differences
from worker.errors import Fatal
from worker.measurement import PATCHABLE, Measurement, measurement_of
from worker.sql import queries
from worker.verification.digests import read_value

_KEYS_AT_ONCE = 1_000
_LINKS_AT_ONCE = 200
_BYTES_AT_ONCE = 16 * 1024**2

Model = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Link:
    """One applied event, and the measurement as it left it."""

    topic: str
    partition: int
    offset: int
    arrival: int
    """In ms since 1970."""
    source: str
    id: str
    traceparent: str | None
    revision: int
    changed: tuple[str, ...]
    answer: bytes
    """The body of the measurement updated event, as it was sent."""


@dataclass(frozen=True, slots=True)
class Applied:
    """An event was applied. `differences` is None where the answer before it isn't kept, or can't be compared."""

    link: Link
    differences: Sequence[Difference] | None


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Something that is no event (the REST API) wrote the measurement in between."""

    first_revision: int
    last_revision: int
    """Below `first_revision` where only fields without a revision were written, or the revision went back."""
    after: int | None
    """Arrival of the event before it, in ms; None: before the first one."""
    before: int | None
    """Arrival of the event after it; None: after the last one."""
    differences: Sequence[Difference]


@dataclass(frozen=True, slots=True)
class Begins:
    """Where this history begins: with the first event, where retention has taken what was before, or where it was cut."""

    why: Literal["first_event", "retention", "limit", "no_event"]


Entry = Begins | Applied | Elsewhere


@dataclass(frozen=True, slots=True)
class Key:
    """One link of the chain, without what is large."""

    lane: int
    offset: int
    revision: int
    changed: bool
    arrival: int
    previous: tuple[int, int] | None


class MeasurementHistory:
    """Open with `measurement_history`."""

    def __init__(self, connection: Connection, row: Any) -> None:
        self._connection = connection
        self.measurement: Measurement = measurement_of(row)
        self.created_at: int | None = row["created_at"]
        """Microseconds since 2000."""

    @property
    def present(self) -> bytes | None:
        """The row as the response model has it; None where it can't be expressed in it."""
        measurement = self.measurement
        if measurement.updated_at is None or measurement.unreadable(
            measurement.fields, measurement.updated_at
        ):
            return None
        return measurement.model(measurement.fields, measurement.updated_at)

    async def keys(self) -> AsyncGenerator[Key, None]:
        """The chain, the newest first; it ends at the first event, or where retention has taken what comes next."""
        place = self.measurement.last_answer
        while place is not None:
            rows = await self._connection.fetch(_sql("chain"), *place, _KEYS_AT_ONCE)
            for row in rows:
                place = (
                    None if row["previous_lane"] is None else (row["previous_lane"], row["previous_offset"])
                )
                yield Key(
                    row["lane"], row["log_offset"], row["revision"], row["changed"], row["arrival"], place
                )
            if len(rows) < _KEYS_AT_ONCE:
                return

    async def links(self, keys: Sequence[tuple[int, int]]) -> Sequence[tuple[int, Link]]:
        """Some of these from the first on, each with its index; none where retention has taken them all."""
        lanes, offsets = [lane for lane, _ in keys], [offset for _, offset in keys]
        rows = await self._connection.fetch(_sql("links"), lanes, offsets, _BYTES_AT_ONCE)
        return [(row["place"] - 1, _link(row)) for row in rows]

    async def entries(self, limit: int | None, unchanged: bool) -> AsyncGenerator[Entry, None]:
        """The newest last. `limit`: at most so many events; `unchanged`: those too that changed nothing."""
        lanes, offsets, begins = await self._walk(limit, unchanged)
        yield begins
        previous: Link | None = None
        left = len(lanes)
        is_baseline = begins.why == "limit" or self._hidden_baseline
        while left > 0:
            at_once = range(left - 1, max(-1, left - 1 - _LINKS_AT_ONCE), -1)
            found = await self.links([(lanes[index], offsets[index]) for index in at_once])
            for _, link in found:
                for entry in _told(previous, link, begins, is_baseline):
                    yield entry
                is_baseline = False
                previous = link
            left -= found[-1][0] + 1 if found else len(at_once)
        for entry in self._since(previous):
            yield entry

    async def _walk(self, limit: int | None, unchanged: bool) -> "tuple[array[int], array[int], Begins]":
        """Lanes and offsets of what is shown, the newest first, and of what the oldest is compared with."""
        lanes, offsets = array("i"), array("q")
        self._hidden_baseline = False
        key: Key | None = None
        async for key in self.keys():
            if key.changed or unchanged:
                lanes.append(key.lane)
                offsets.append(key.offset)
                if limit is not None and len(lanes) > limit:
                    return lanes, offsets, Begins("limit")
        if key is None:
            return lanes, offsets, Begins("no_event" if self.measurement.last_answer is None else "retention")
        if not (key.changed or unchanged):
            lanes.append(key.lane)
            offsets.append(key.offset)
            self._hidden_baseline = True
        return lanes, offsets, Begins("first_event" if key.previous is None else "retention")

    def _since(self, last: Link | None) -> Iterable[Entry]:
        """What the row has otherwise than its last answer."""
        present = self.present
        if last is None or present is None:
            return
        revision = self.measurement.revision
        found = _differences(_model(last.answer), _model(present)) or ()
        if found or revision != last.revision:
            yield Elsewhere(last.revision + 1, revision, last.arrival, None, found)


@asynccontextmanager
async def measurement_history(dsn: str, measurement_id: str) -> AsyncIterator[MeasurementHistory]:
    """Raises Fatal where there is no such measurement, DependencyAway, and what asyncpg raises."""
    connection = await connect(dsn, application="measurement-updates history")
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
        row = None
        if "\0" not in measurement_id:
            row = await connection.fetchrow(_sql("measurement_row"), measurement_id)
        if row is None:
            raise Fatal(
                f"measurement {measurement_id}: expected the id of a row of cell_measurements, found none. Ids are"
                " case-sensitive; the history of a row that was deleted can't be found any more"
            )
        yield MeasurementHistory(connection, row)
    finally:
        await close(connection)


def _told(previous: Link | None, link: Link, begins: Begins, is_baseline: bool) -> Iterable[Entry]:
    """The event, after what was written elsewhere since the one before it. A baseline is compared with, not told."""
    if previous is None:
        if begins.why == "first_event" and link.revision > bool(link.changed):
            yield Elsewhere(1, link.revision - bool(link.changed), None, link.arrival, ())
        if not is_baseline:
            yield Applied(link, None)
        return
    found = _differences(_model(previous.answer), _model(link.answer))
    own = tuple(f"$.{name}" for name in link.changed)
    by_event = [one for one in found or () if _top(one.path) in own]
    others = [one for one in found or () if _top(one.path) not in own]
    if others or link.revision != previous.revision + bool(link.changed):
        last = link.revision - bool(link.changed)
        yield Elsewhere(previous.revision + 1, last, previous.arrival, link.arrival, others)
    yield Applied(link, None if found is None else by_event)


def _top(path: str) -> str:
    """`$.test_setup.lab` → `$.test_setup`."""
    return "$." + path[2:].partition(".")[0].partition("[")[0]


def _differences(before: Model | None, after: Model | None) -> list[Difference] | None:
    """Of the model, without the time that moves with every change. None where they can't be compared."""
    if before is None or after is None:
        return None
    try:
        return [one for one in differences(before, after) if one.path != "$.updated_at"]
    except RecursionError:
        return None


def first_values(link: Link) -> list[Difference]:
    """What an event has written, where what was before isn't known."""
    model = _model(link.answer) or {}
    return [
        Difference(f"$.{name}", NotThere.UNKNOWN, model.get(name))
        for name in PATCHABLE
        if name in link.changed
    ]


def _model(answer: bytes) -> Model | None:
    """None where it is nested deeper than any event."""
    try:
        model = read_value(answer)
    except (RecursionError, ValueError):
        return None
    assert isinstance(model, dict)
    return model


def _link(row: Any) -> Link:
    return Link(
        row["topic"],
        row["partition"],
        row["log_offset"],
        row["arrival"],
        row["event_source"],
        row["event_id"],
        row["traceparent"],
        row["revision"],
        tuple(name for name in row["changed"].split(",") if name),
        row["answer"].encode(),
    )


def _sql(name: str) -> str:
    return queries("history.sql")[name]
