"""Which records of the input a replay takes, and what they are when they are published again. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from contracts import events
from contracts.envelope import InvalidEnvelope, UpdateEnvelope, read_position, read_update
from contracts.json_values import NotJson, deeper_than
from worker.answer import wire_size
from worker.errors import SettingsError
from worker.record import MAX_KEPT_BYTES, CutBytes, Record
from worker.settings import Duration

Only = Literal["all", "rejected"]
Headers = list[tuple[str, bytes | None]]
_MAX_DEPTH = 100
_CLOSED = ("resolved", "discarded")


@dataclass(frozen=True, slots=True)
class Point:
    """Where a range begins or ends: an offset, or a time in ms since 1970."""

    kind: Literal["earliest", "offset", "time"]
    value: int = 0


def read_point(option: str, text: str, now: int) -> Point:
    """TIME or OFFSET. `now`: ms since 1970. Raises SettingsError."""
    if text == "earliest":
        return Point("earliest")
    if text == "now":
        return Point("time", now)
    if text.isdecimal():
        return Point("offset", int(text))
    try:
        back = TypeAdapter[Any](Duration).validate_python(text)
        return Point("time", max(0, now - int(back.total_seconds() * 1000)))
    except (ValidationError, OverflowError):
        pass
    expected = "an offset, earliest, now, how long ago (90m, 3d), or a time with its zone (2026-01-31T12:00Z)"
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"{option}: expected {expected}, found {text}") from None
    if time.tzinfo is None:
        raise SettingsError(f"{option}: expected a time with its zone, for example {text}Z, found {text}")
    return Point("time", max(0, int(time.timestamp() * 1000)))


@dataclass(frozen=True, slots=True)
class Selection:
    """The options, as they were given."""

    begin: str
    until: str | None = None
    partition: int | None = None
    measurement: str | None = None
    organization: str | None = None
    source: str | None = None
    only: Only = "all"

    @property
    def filters(self) -> bool:
        """Does it look at what is in the records?"""
        return (self.measurement, self.organization, self.source) != (None, None, None)

    def as_json(self) -> dict[str, Any]:
        """By the options' names, without what wasn't given."""
        given = asdict(self)
        return {
            name: value for name, value in {"from": given.pop("begin"), **given}.items() if value is not None
        }

    @classmethod
    def of_json(cls, options: Mapping[str, Any]) -> "Selection":
        """What `as_json` has made."""
        return cls(**{"begin" if name == "from" else name: value for name, value in options.items()})


@dataclass(frozen=True, slots=True)
class Decided:
    """What the database has of a record: its arrival, and the state of its rejection if it was rejected."""

    arrival: int
    rejection: str | None


@dataclass(slots=True)
class Again:
    """A record of the range, as it is published again."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    fault: str | None
    """Why it can't be published byte for byte."""
    decided: bool
    """Somebody has decided it already."""

    @property
    def place(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass(slots=True)
class Selector:
    """Told of all records of a partition's range, in order. `reapply`: the replay's id, where events are applied again."""

    selection: Selection
    reapply: str | None
    max_record_bytes: int
    """What the input topic takes."""
    latest_arrival: int = 0
    """Arrivals never go back: those of the records before count."""

    def choose(
        self, records: Sequence[Record], decided: Mapping[int, Decided], next_to_apply: int
    ) -> list[Again]:
        """Those that are to be published again. `decided`: by offset."""
        chosen = []
        for record in records:
            known = decided.get(record.offset)
            # as the worker counts: a producer's clock counts for nothing
            stamped = record.timestamp if record.timestamp_type == 1 else 0
            self.latest_arrival = max(self.latest_arrival, stamped, known.arrival if known else 0)
            arrival = known.arrival if known else self.latest_arrival
            if self._is_wanted(record, known):
                chosen.append(self._again(record, arrival, record.offset < next_to_apply))
        return chosen

    def _is_wanted(self, record: Record, known: Decided | None) -> bool:
        if self.selection.only == "rejected" and (
            known is None or known.rejection is None or known.rejection in _CLOSED
        ):
            return False
        return not self.selection.filters or self._matches(record)

    def _matches(self, record: Record) -> bool:
        """What can't be decoded matches no filter."""
        selection = self.selection
        envelope = _envelope(record)
        if envelope is None:
            return False
        source = envelope.source or f"kafka:{record.topic}"
        return (
            selection.measurement in (None, envelope.measurement_id)
            and selection.organization in (None, envelope.organization_id)
            and selection.source in (None, source)
        )

    def _again(self, record: Record, arrival: int, decided: bool) -> Again:
        headers: Headers = list(record.headers)
        stated = dict(headers).get(events.REQUEUED_FROM)
        if stated is None or read_position(stated, record.topic) is None:
            # one that is malformed isn't kept: it is what the record was rejected for
            place = f"{record.topic}/{record.partition}/{record.offset}@{arrival}"
            headers = _with(headers, events.REQUEUED_FROM, place)
        if self.reapply is not None:
            headers = _with(headers, events.REAPPLY, self.reapply)
        again = Again(
            record.topic, record.partition, record.offset, record.key, record.value, headers, None, decided
        )
        again.fault = self._fault(again)
        return again

    def _fault(self, again: Again) -> str | None:
        parts = [again.key, again.value, *(value for _, value in again.headers)]
        if any(isinstance(part, CutBytes) for part in parts) or len(again.headers) > MAX_KEPT_BYTES:
            return "it is larger than anything that is admitted, and isn't held as a whole"
        names = [
            (name.encode("utf-8", "surrogateescape").decode("latin-1"), value)
            for name, value in again.headers
        ]
        size = wire_size(again.key, again.value, names)
        if size > self.max_record_bytes:
            return f"it takes {size:,} bytes, the topic takes {self.max_record_bytes:,} (max.message.bytes)"
        return None


def _with(headers: Headers, name: str, value: str) -> Headers:
    return [*(header for header in headers if header[0] != name), (name, value.encode())]


def _envelope(record: Record) -> UpdateEnvelope | None:
    if not record.value or deeper_than(_MAX_DEPTH, record.value):
        return None
    try:
        return read_update(record.key, dict(record.headers), record.value)
    except (InvalidEnvelope, NotJson):
        return None


def time_text(ms: int) -> str:
    """As an option takes it."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
