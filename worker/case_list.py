"""Rejected cases as an operator asks for them: by id, by filter, and grouped by what is wrong."""

import re
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import orjson

from contracts import events
from contracts.cloudevents import UpdateRejected
from contracts.events import RejectionCode, Violation
from contracts.json_values import NotJson, deeper_than, read_json
from worker.database import Connection
from worker.errors import Fatal, SettingsError
from worker.record import DecodeLimits
from worker.sql import queries

CaseState = Literal["open", "requeued", "resolved", "discarded"]
CASE_STATES: tuple[CaseState, ...] = get_args(CaseState)
_ROWS_AT_ONCE = 50
"""Each may have a value, a key and headers of its own."""
_LATEST = 2**63 - 1


class Attributes(NamedTuple):
    """What an event says about itself, as far as that can be read: a rejected one may be wrong in any place."""

    measurement: str | None
    organization: str | None
    source: str | None


@dataclass(frozen=True, slots=True)
class Case:
    """A rejected record and what became of it; `code` and `message` are of its newest attempt."""

    lane: int
    topic: str
    partition: int
    offset: int
    arrival: int
    """With topic, partition and offset: where it was rejected first, in ms since 1970."""
    state: CaseState
    attempts: int
    last_arrival: int
    code: RejectionCode
    message: str
    value_bytes: int
    cut: bool
    """Key, headers or value aren't stored as a whole."""
    attributes: Attributes

    @property
    def id(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"

    @property
    def first_position(self) -> str:
        return f"{self.id}@{self.arrival}"


@dataclass(frozen=True, slots=True)
class CaseFilter:
    """Which cases. Times: arrivals of first records, in ms since 1970."""

    states: Sequence[CaseState] = ("open",)
    codes: Sequence[str] = ()
    measurement: str | None = None
    organization: str | None = None
    source: str | None = None
    since: int = 0
    until: int = _LATEST


@dataclass(slots=True)
class Group:
    """Cases with the same code and the same message, what is the event's own left out."""

    code: str
    message: str
    example: str
    """The message of the first one, as it is."""
    count: int = 0
    first_seen: int = _LATEST
    last_seen: int = 0
    states: dict[str, int] = field(default_factory=dict)


async def cases(connection: Connection, wanted: CaseFilter) -> AsyncGenerator[Case, None]:
    """In the order of their first arrivals. Raises what asyncpg raises."""
    async with connection.transaction(readonly=True):
        cursor = await connection.cursor(
            queries("rejected.sql")["list_cases"],
            list(wanted.states),
            wanted.since,
            wanted.until,
            list(wanted.codes) or None,
            wanted.measurement,
            wanted.organization is not None or wanted.source is not None,
        )
        while rows := await cursor.fetch(_ROWS_AT_ONCE):
            for row in rows:
                case = _case(row)
                if _is_of(case.attributes, wanted):
                    yield case


def _is_of(found: Attributes, wanted: CaseFilter) -> bool:
    return (
        wanted.measurement in (None, found.measurement)
        and wanted.organization in (None, found.organization)
        and wanted.source in (None, found.source)
    )


async def find_case(connection: Connection, id: str, topic: str) -> Case:
    """The case of this id; `topic` is the input's, where the id names none. Raises SettingsError where it isn't one, Fatal
    where there is no such case."""
    named, partition, offset, arrival = read_id(id, topic)
    sql = queries("rejected.sql")
    row = await connection.fetchrow(sql["find_case"], named, partition, offset, arrival)
    if row is not None:
        return _case(row)
    stands = await connection.fetchrow(sql["what_stands_there"], named, partition, offset)
    if stands is None:
        why = f"no worker has taken {named}/{partition} over in this database"
    elif offset >= stands["next_to_apply"]:
        why = f"it isn't decided yet, {named}/{partition} is applied up to {stands['next_to_apply']}"
    elif stands["measurement_id"] is not None:
        why = f"the record there was applied to measurement {stands['measurement_id']}"
    else:
        why = "the record there was a duplicate, or retention has removed its case"
    raise Fatal(
        f"{id}: expected a rejected record, as `measurement-updates rejected list --each` shows: {why}"
    )


_ID = re.compile(r"(?:([^/]+)/)?([0-9]{1,19})/([0-9]{1,19})(?:@([0-9]{1,19}))?")


def read_id(id: str, topic: str) -> tuple[str, int, int, int | None]:
    """Topic, partition, offset and arrival of `[TOPIC/]PARTITION/OFFSET[@ARRIVAL]`. Raises SettingsError."""
    found = _ID.fullmatch(id)
    numbers = [] if found is None else [int(number) for number in found.groups()[1:] if number is not None]
    if found is None or max(numbers) > _LATEST:
        raise SettingsError(f"expected PARTITION/OFFSET or TOPIC/PARTITION/OFFSET, found {id}")
    return found[1] or topic, numbers[0], numbers[1], numbers[2] if len(numbers) > 2 else None


def _case(row: Mapping[str, Any]) -> Case:
    headers = dict(zip(row["header_names"] or (), row["header_values"] or (), strict=True))
    return Case(
        lane=row["lane"],
        topic=row["topic"],
        partition=row["partition"],
        offset=row["log_offset"],
        arrival=row["arrival"],
        state=row["state"],
        attempts=row["attempts"],
        last_arrival=row["last_arrival"],
        code=row["code"],
        message=message_of(row["message"]),
        value_bytes=row["value_bytes"],
        cut=row["cut"],
        attributes=attributes_of(row["key"], headers, row["envelope"]),
    )


def message_of(text: str | None) -> str:
    """The message as it stands in `detail`: a JSON string."""
    return "" if text is None else str(orjson.loads(text))


def attributes_of(
    key: bytes | None, headers: Mapping[bytes, bytes | None], value: bytes | None
) -> Attributes:
    """Of the last header where a name is given twice. Never raises."""
    texts = {
        name.decode("utf-8", "replace"): (content or b"").decode("utf-8", "replace")
        for name, content in headers.items()
    }
    measurement = (key or b"").decode("utf-8", "backslashreplace") or None
    media_type = texts.get(events.CONTENT_TYPE, "").partition(";")[0].strip(" \t").lower()
    if media_type == events.STRUCTURED_MEDIA_TYPE:
        envelope = read_object(value)
        said = [envelope.get(name) for name in ("subject", "organizationid", "source")]
        subject, organization, source = (text if isinstance(text, str) else None for text in said)
        return Attributes(measurement or subject, organization, source)
    return Attributes(
        measurement or texts.get(events.CE_SUBJECT),
        texts.get(events.CE_ORGANIZATIONID),
        texts.get(events.CE_SOURCE),
    )


def read_object(value: bytes | None) -> dict[str, Any]:
    """An empty one where it isn't a JSON object."""
    try:
        if value and not deeper_than(DecodeLimits().max_depth, value):
            parsed = read_json(value)
            return parsed if isinstance(parsed, dict) else {}
    except NotJson:
        pass
    return {}


# Groups -----------------------------------------------------------------------------------------------------

_OWN = re.compile(
    r"(?P<kept>\S+: expected .*?, found ).*"  # path and expectation as they are
    r"|(?<!\w)'[^']*'(?!\w)"  # an id
    r"|(?<!SQLSTATE )\b\d[\d,]*",
    re.DOTALL,
)


def common(message: str) -> str:
    """A message without what is the event's own: ids, numbers and what was found are `…`."""
    message = message.replace(" in one place: ", " in 1 places, the first: ", 1)
    return _OWN.sub(lambda own: f"{own['kept'] or ''}…", message)


def add_to_groups(groups: dict[tuple[str, str], Group], case: Case) -> None:
    """`groups` is by code and common message."""
    key = (case.code, common(case.message))
    group = groups.get(key)
    if group is None:
        group = groups[key] = Group(*key, example=case.message)
    group.count += 1
    group.first_seen = min(group.first_seen, case.arrival)
    group.last_seen = max(group.last_seen, case.last_arrival)
    group.states[case.state] = group.states.get(case.state, 0) + 1


def largest_first(groups: Iterable[Group]) -> list[Group]:
    return sorted(groups, key=lambda group: (-group.count, group.code, group.message))


# One record, whole ------------------------------------------------------------------------------------------


async def newest_records(
    connection: Connection, cases: Sequence[Case]
) -> dict[tuple[int, int], Mapping[str, Any]]:
    """Rows of the newest attempts, by lane and offset of the case."""
    found = await connection.fetch(
        queries("rejected.sql")["newest_records"],
        [case.lane for case in cases],
        [case.offset for case in cases],
    )
    return {(row["case_lane"], row["case_offset"]): row for row in found}


def rejected_record(row: Mapping[str, Any]) -> UpdateRejected:
    """A row of `newest_records`, as who reads the rejected topic has it."""
    detail = orjson.loads(row["detail"])
    headers = zip(row["header_names"], row["header_values"], strict=True)
    named = [(name.decode("utf-8", "backslashreplace"), content) for name, content in headers]
    return UpdateRejected(
        code=row["code"],
        message=str(detail["message"]),
        violations=tuple(Violation(v["path"], v["expected"], v["found"]) for v in detail["violations"]),
        total=int(detail["total"]),
        topic=row["topic"],
        partition=row["partition"],
        offset=row["log_offset"],
        timestamp=row["arrival"],
        truncated=None if row["truncated"] is None else orjson.loads(row["truncated"]),
        key=row["key"],
        value=row["value"],
        headers=tuple(pair for pair in named if not pair[0].startswith(events.REJECTION_PREFIX)),
    )
