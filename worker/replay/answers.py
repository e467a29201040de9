"""What a resend sends: a range of stored answers, one measurement's, or the present state of every measurement."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from contracts.events import UPDATED_TYPE
from worker.answer import Answer, AnswerForm, Headers, PlainAnswer
from worker.database import Connection
from worker.errors import Fatal, SettingsError
from worker.measurement import iso8601, measurement_of
from worker.replay.ground import Ground, Warn, answer_form, now_ms
from worker.replay.selection import Point, read_point
from worker.sql import queries
from worker.stored import stored_answers

_ROWS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be sent: a range of time (or of offsets), one measurement's answers, or every measurement as it is."""

    begin: str | None = None
    until: str | None = None
    partition: int | None = None
    measurement: str | None = None
    current: bool = False
    rejected: bool = False
    """The rejections of the range, instead of the measurement updated events."""


@dataclass(slots=True)
class Resent:
    """What was sent."""

    topic: str
    sent: int = 0
    unreadable: list[str] = field(default_factory=list)
    """Measurements that the response model can't express."""

    def as_json(self) -> dict[str, Any]:
        return {"topic": self.topic, "sent": self.sent, "unreadable": self.unreadable}


Piece = tuple[int, Sequence[Answer], int, int]
"""The input partition it belongs to, answers, how much is done with them, and how much there is."""


async def wanted_answers(
    ground: Ground, connection: Connection, wanted: Wanted, resent: Resent, warn: Warn
) -> AsyncIterator[Piece]:
    form = answer_form(ground)
    if wanted.current:
        pieces = _present_states(connection, form, resent, warn)
    elif wanted.measurement is not None:
        pieces = _history(connection, form, wanted.measurement)
    else:
        pieces = _range(connection, form, wanted)
    async for piece in pieces:
        yield piece


async def _range(connection: Connection, form: AnswerForm, wanted: Wanted) -> AsyncIterator[Piece]:
    """Lane by lane; those of a log that operators have given up before those of its successor."""
    now = now_ms()
    begin = read_point("--from", wanted.begin or "earliest", now)
    until = None if wanted.until is None else read_point("--until", wanted.until, now)
    sql = queries("replay.sql")
    lanes = await connection.fetch(sql["lanes_ever"], form.updates_topic)
    numbers = {lane["partition"] for lane in lanes}
    if wanted.partition is not None and wanted.partition not in numbers:
        raise SettingsError(
            f"--partition: expected one that has been applied ({_listed(numbers)}), found {wanted.partition}"
        )
    by_offset = "offset" in (begin.kind, until and until.kind)
    if wanted.partition is None and len(numbers) > 1 and by_offset:
        raise SettingsError("an offset is one partition's: expected --partition beside it, or a time")
    ranges = []
    total = 0
    for lane in lanes:
        if wanted.partition in (None, lane["partition"]) and not (by_offset and lane["retired"]):
            first = await _offset(connection, lane, begin) or 0
            end = await _offset(connection, lane, until)
            end = lane["next_to_apply"] if end is None else min(end, lane["next_to_apply"])
            stored = await connection.fetchrow(sql["how_many_stored"], lane["lane"], first, end)
            total += stored["rejected" if wanted.rejected else "updated"]
            ranges.append((lane, first, end))
    topic = form.rejected_topic if wanted.rejected else form.updated_topic
    done = 0
    for lane, first, end in ranges:
        partition = lane["partition"]
        async for stored in stored_answers(connection, lane["lane"], form, partition, first, end):
            answers = [answer for answer in stored.answers if answer.topic == topic]
            done += len(answers)
            yield partition, answers, done, total


def _listed(numbers: set[int]) -> str:
    return ", ".join(map(str, sorted(numbers))) or "none yet"


async def _offset(connection: Connection, lane: Mapping[str, Any], point: Point | None) -> int | None:
    """The first offset that isn't from before the point; arrivals never go back. None: where it ends, or begins."""
    if point is None or point.kind == "earliest":
        return None
    if point.kind == "offset":
        return point.value
    query = queries("replay.sql")["next_decided"]
    low, high = 0, int(lane["next_to_apply"])
    while low < high:
        middle = (low + high) // 2
        row = await connection.fetchrow(query, lane["lane"], middle)
        if row is None or row["arrival"] >= point.value:
            high = middle
        else:
            low = row["log_offset"] + 1
    return low


async def _history(connection: Connection, form: AnswerForm, measurement: str) -> AsyncIterator[Piece]:
    """Each of its stored answers, the first one first."""
    chain = await connection.fetch(queries("replay.sql")["history_of"], measurement)
    if not chain:
        raise Fatal(
            f"no stored answer of measurement {measurement}: expected one that is there and was updated within"
            " WORKER_HISTORY_RETENTION (--current sends what was never updated, too)"
        )
    lanes = {
        row["lane"]: row["partition"]
        for row in await connection.fetch(
            "SELECT lane, partition FROM measurement_updates.lanes WHERE topic = $1", form.updates_topic
        )
    }
    for done, (lane, offset) in enumerate(chain, 1):
        if lane not in lanes:
            raise Fatal(
                f"measurement {measurement} was updated through another topic, too: expected {form.updates_topic}"
            )
        async for stored in stored_answers(connection, lane, form, lanes[lane], offset, offset + 1):
            yield lanes[lane], stored.answers, done, len(chain)


async def _present_states(
    connection: Connection, form: AnswerForm, resent: Resent, warn: Warn
) -> AsyncIterator[Piece]:
    sql = queries("replay.sql")
    total = await connection.fetchval(sql["how_many_rows"])
    cursor = await connection.cursor(sql["every_row"])
    done = 0
    while rows := await cursor.fetch(_ROWS_AT_ONCE):
        answers = []
        for row in rows:
            measurement = measurement_of(row)
            fault = measurement.unreadable(measurement.fields, measurement.updated_at)
            if fault is not None:
                resent.unreadable.append(measurement.id)
                warn(f"measurement {measurement.id} can't be expressed in the response model: {fault}")
                continue
            assert measurement.updated_at is not None
            model = measurement.model(measurement.fields, measurement.updated_at)
            answers.append(_state(form, measurement.id, measurement.revision, measurement.updated_at, model))
        done += len(rows)
        yield 0, answers, done, total


def _state(form: AnswerForm, id: str, revision: int, updated_at: int, model: bytes) -> Answer:
    """A measurement updated event that no event has caused: the same state has the same id."""
    key = id.encode()
    event = f"{form.updates_topic}/current/{blake2b(b'%d:' % revision + model, digest_size=16).hexdigest()}"
    headers: Headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", event.encode()),
        ("ce_source", form.source.encode()),
        ("ce_type", UPDATED_TYPE.encode()),
        ("ce_subject", key),
        ("ce_time", iso8601(updated_at).encode()),
        ("content-type", b"application/json"),
        ("ce_revision", b"%d" % revision),
        ("ce_changed", b""),
        ("ce_causationid", event.encode()),
        ("ce_causationsource", b"measurement-updates/resend"),
    ]
    arrival = (updated_at + 946_684_800_000_000) // 1000
    return PlainAnswer(0, form.updated_topic, key, model, arrival, None, headers)
