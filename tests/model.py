"""A naive model of the whole system, from the contract alone: fold a log of records, and what others write, over rows.

Slow and plain on purpose: one record at a time, values as values, no batches, no text kept. Imports nothing of `worker`.
Not in it: sizes of answers, infinite times. What the database refuses, its caller says (`refuses`).
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

FIELDS = ("name", "protocol", "test_setup", "notes", "properties")
OBJECTS = ("protocol", "test_setup", "properties", "file_metadata")
TIMES = ("created_at", "updated_at", "start_time")

Position = tuple[int, int, int]
"""(arrival, partition, offset)"""
Place = tuple[int, int]
"""(partition, offset)"""
OLDER_THAN_ALL = (-1, -1, -1)
LAST = 2**63 - 1


@dataclass
class Row:
    """A measurement: the response model's columns as JSON values, and what is ours."""

    columns: dict[str, Any]
    revision: int = 0
    written: dict[str, Position] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """An update whose form is right."""

    own: Position
    first: Position
    measurement_id: str
    source: str
    id: str
    patch: dict[str, Any]
    expected_revision: int | None = None
    organization_id: str | None = None
    reapply: str | None = None
    traceparent: str | None = None


@dataclass(frozen=True)
class Outcome:
    """`applied` with revision, changed and body; `rejected` with its code; or `duplicate`."""

    kind: str
    code: str = ""
    revision: int = 0
    changed: tuple[str, ...] = ()
    body: dict[str, Any] = field(default_factory=dict)
    event: Event | None = None
    codes: frozenset[str] = frozenset()
    """Where the form is wrong: two codes, where both are right."""

    @property
    def headers(self) -> dict[str, str]:
        """Of a measurement updated event, those that follow from log and rows alone."""
        assert self.event is not None
        passed_on = {} if self.event.traceparent is None else {"traceparent": self.event.traceparent}
        return {
            "ce_specversion": "1.0",
            "ce_type": "cell_measurement.updated.v1",
            "ce_subject": self.event.measurement_id,
            "ce_time": self.body["updated_at"],
            "content-type": "application/json",
            "ce_revision": str(self.revision),
            "ce_changed": ",".join(self.changed),
            "ce_causationid": self.event.id,
            "ce_causationsource": self.event.source,
            **passed_on,
        }


class Record(Protocol):
    """One record of the input topic (aiokafka's ConsumerRecord has this shape)."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def timestamp_type(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...


Refuses = Callable[[Mapping[str, Any]], bool]
"""Of a row's columns as an event would leave them: does the database refuse them?"""


def nothing(_: Mapping[str, Any]) -> bool:
    return False


class Model:
    """Rows, and the identities that were applied."""

    def __init__(
        self,
        rows: dict[str, Row],
        identity_retention: int,
        refuses: Refuses = nothing,
    ) -> None:
        self.rows = rows
        self.retention = identity_retention
        self.refuses = refuses
        self.seen: defaultdict[tuple[str | None, ...], list[tuple[str, int]]] = defaultdict(list)

    def fold(self, event: Event) -> Outcome:
        """Judge one event, and apply it where it is to be applied."""
        row = self.rows.get(event.measurement_id)
        if event.organization_id is not None and (
            row is None or row.columns["organization_id"] != event.organization_id
        ):
            return Outcome("rejected", "measurement_not_found")

        identity = (event.measurement_id, event.source, event.id, event.reapply)
        content = canonical([event.patch, event.expected_revision])
        near = self.contents(identity, event)
        if content in near:
            return Outcome("duplicate")
        plainly = [] if event.reapply is None else self.contents((*identity[:3], None), event)
        if near or (plainly and content not in plainly):
            return Outcome("rejected", "event_id_reused")
        if row is None:
            return Outcome("rejected", "measurement_not_found")
        if event.patch.get("properties") is not None and row.columns["measurement_type"] != "properties":
            return Outcome("rejected", "properties_not_allowed")
        if event.expected_revision is not None and event.expected_revision != row.revision:
            return Outcome("rejected", "revision_conflict")

        after = dict(row.columns)
        written = dict(row.written)
        changed = []
        for name in FIELDS:
            if name not in event.patch or (name == "name" and event.patch[name] is None):
                continue
            if event.first < row.written.get(name, OLDER_THAN_ALL):
                continue
            written[name] = event.first
            if canonical(after[name]) != canonical(event.patch[name]):
                after[name] = event.patch[name]
                changed.append(name)
        if plainly and not changed:
            return Outcome("duplicate")
        if changed:
            after["updated_at"] = max(after["updated_at"], time_text(event.own[0]))
        if not readable(after):
            return Outcome("rejected", "measurement_unreadable")
        if self.refuses(after):
            return Outcome("rejected", "storage_refused")
        row.columns, row.written = after, written
        row.revision += bool(changed)
        self.seen[identity].append((content, event.own[0]))
        return Outcome("applied", "", row.revision, tuple(changed), after, event)

    def contents(self, identity: tuple[str | None, ...], event: Event) -> list[str]:
        """Of the events of this identity that were applied, near enough in time."""
        return [
            content
            for content, arrival in self.seen[identity]
            if abs(arrival - event.own[0]) < self.retention
        ]

    def judge(self, record: Record, arrival: int, max_event_bytes: int = 1024**2) -> Outcome:
        """The same from a record's bytes."""
        from tests.naive_decode import RawRecord, decode  # which imports Event from here

        raw = RawRecord(
            record.topic, record.partition, record.offset, arrival, record.key, record.value, record.headers
        )
        decoded = decode(raw, max_event_bytes)
        if isinstance(decoded, Event):
            return self.fold(decoded)
        return Outcome("rejected", min(decoded), codes=decoded)

    def edit(self, measurement_id: str, changes: Mapping[str, Any], at: int) -> None:
        """Another writer's UPDATE, `at` that many ms since 1970: the trigger stamps what is another value than before."""
        row = self.rows[measurement_id]
        changed = [
            name
            for name in FIELDS
            if name in changes and canonical(changes[name]) != canonical(row.columns[name])
        ]
        for name in changed:
            row.written[name] = max(row.written.get(name, OLDER_THAN_ALL), (at, LAST, LAST))
        row.columns = {**row.columns, **changes}
        row.revision += bool(changed)

    def insert(self, columns: dict[str, Any]) -> None:
        """Another writer's INSERT: it stamps nothing."""
        self.rows[columns["id"]] = Row(columns)

    def delete(self, measurement_id: str) -> None:
        """Another writer's DELETE: what was applied stays known."""
        del self.rows[measurement_id]


class Arrivals:
    """Broker timestamps, never less than the one before in the partition; a producer's clock counts for nothing."""

    def __init__(self) -> None:
        self.latest: defaultdict[int, int] = defaultdict(int)

    def of(self, record: Record) -> int:
        """To be asked of each record of a partition, in log order."""
        if record.timestamp_type == 1:
            self.latest[record.partition] = max(self.latest[record.partition], record.timestamp)
        return self.latest[record.partition]


def fold_log(records: Iterable[Record], naive: Model) -> dict[Place, Outcome]:
    """What becomes of each record, given in order of application (so in log order within a partition); rows are
    `naive`'s."""
    arrivals = Arrivals()
    return {(record.partition, record.offset): naive.judge(record, arrivals.of(record)) for record in records}


def readable(columns: Mapping[str, Any]) -> bool:
    """Can the response model express this row?"""
    return (
        isinstance(columns["name"], str)
        and 1 <= len(columns["name"]) <= 255
        and columns["measurement_type"] in ("time_series", "file", "properties")
        and all(columns[name] is None or isinstance(columns[name], dict) for name in OBJECTS)
    )


def row_of(found: Mapping[str, Any]) -> Row:
    """A row of cell_measurements with our columns, as asyncpg reads it; objects may be parsed already."""
    ours = {"revision", "answer_lane", "answer_offset", *(f"{name}_position" for name in FIELDS)}
    columns = {name: value for name, value in found.items() if name not in ours}
    for name in OBJECTS:
        columns[name] = json.loads(columns[name]) if isinstance(columns[name], str) else columns[name]
    for name in TIMES:
        columns[name] = None if columns[name] is None else _text(columns[name])
    written = {name: position_of(at) for name in FIELDS if (at := found[f"{name}_position"]) is not None}
    return Row(columns, found["revision"], written)


def position_of(stored: bytes) -> Position:
    """24 bytes: three numbers."""
    arrival, partition, offset = (int.from_bytes(stored[at : at + 8], "big") for at in (0, 8, 16))
    return arrival, partition, offset


def time_text(ms: int) -> str:
    """As in answers: always of the same length, so that text sorts as time."""
    return _text(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms))


def _text(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def canonical(value: Any) -> str:
    """Equal for equal JSON values: 3 and 3.0 are, true and 1 aren't."""
    return json.dumps(normal(value), sort_keys=True)


def normal(value: Any) -> Any:
    """The value with each number written in one way."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: normal(member) for key, member in value.items()}
    if isinstance(value, list):
        return [normal(member) for member in value]
    return value
