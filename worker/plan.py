"""plan: fold a batch's events, in log order, into new rows, answers and rejections. Pure: no clock, no I/O.

Everything comes in as values: the locked rows, what is known of the identities, the limits. Whoever folds the same
log over the same rows gets the same result, wherever the batches are cut.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from contracts.events import RejectionCode, Violation
from worker.answer import (
    Answer,
    AnswerForm,
    StoredRejection,
    UpdatedAnswer,
    rejected_answer,
    stored_rejection,
    wire_size,
)
from worker.measurement import (
    BIT,
    JSON_FIELDS,
    MOST_GROWTH,
    PATCHABLE,
    Measurement,
    as_json,
    iso8601,
    same_json,
    timestamp_of,
)
from worker.record import Json, Rejection, Update


class KnownIdentity(NamedTuple):
    """An event that was applied: digest of its content, arrival in ms."""

    content: bytes
    arrival: int


@dataclass(slots=True)
class Applied:
    """An event that was applied, as it is stored."""

    update: Update
    measurement: Measurement
    """What it was applied to, in its state after the whole batch."""
    revision: int
    changed: str
    previous: tuple[int, int] | None
    model: bytes


@dataclass(slots=True)
class Plan:
    """What one batch does. `answers` are in log order."""

    measurements: list[Measurement] = field(default_factory=list)
    """The rows to write: those to which an event was applied."""
    applied: list[Applied] = field(default_factory=list)
    rejected: list[StoredRejection] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    duplicates: int = 0


@dataclass(frozen=True, slots=True)
class Ground:
    """What the events are judged by, besides rows and identities."""

    lane: int
    partition: int
    form: AnswerForm
    identity_retention: int
    """Milliseconds."""
    max_batch_bytes: int = 16 * 1024**2
    """Of the rows that one batch loads, and of its answers: a small update of a large measurement has a large answer."""


class Measurements(Protocol):
    """By id, in the order in which their rows are locked."""

    def get(self, id: str, /) -> Measurement | None: ...
    def __iter__(self) -> Iterator[str]: ...


class TooMuchAtOnce(Exception):
    """The rows of one batch, or its answers, would take too much memory; about so many of its events fit."""

    def __init__(self, fitting: int) -> None:
        super().__init__(fitting)
        self.fitting = fitting


def plan(
    events: Iterable[Update | Rejection],
    measurements: Measurements,
    identities: Mapping[bytes, Sequence[KnownIdentity]],
    ground: Ground,
) -> Plan:
    """Judge each event once. `measurements` are changed in place: they are this batch's own.

    Raises TooMuchAtOnce; never for a single event.
    """
    result = Plan()
    size = 0
    known: dict[bytes, list[KnownIdentity | Update]] = {
        identity: list(found) for identity, found in identities.items()
    }
    for index, event in enumerate(events):
        outcome = event if isinstance(event, Rejection) else _judge(event, measurements, known, ground)
        if outcome is None:
            result.duplicates += 1
        elif isinstance(outcome, Rejection):
            stored = stored_rejection(outcome, ground.form)
            result.rejected.append(stored)
            result.answers.append(rejected_answer(stored, ground.form, ground.partition))
        else:
            applied, answer = outcome
            known.setdefault(applied.update.identity, []).append(applied.update)
            result.applied.append(applied)
            result.answers.append(answer)
            size += len(applied.model)
            if size > ground.max_batch_bytes and index > 0:
                raise TooMuchAtOnce(index)
    # in the order of their ids, as they are locked: an index or a trigger of the lab's may lock more with each row
    written = {one.update.measurement_id: one.measurement for one in result.applied}
    result.measurements = [written[id] for id in measurements if id in written]
    return result


def _judge(
    update: Update,
    measurements: Measurements,
    known: Mapping[bytes, Sequence[KnownIdentity | Update]],
    ground: Ground,
) -> tuple[Applied, Answer] | Rejection | None:
    """One event, in the contract's order of codes. None: a duplicate."""
    if update.organization_id is not None:
        measurement = measurements.get(update.measurement_id)
        if measurement is None or measurement.organization_id != update.organization_id:
            # before identities: nothing of another organization's events may show
            return _not_found(update)

    seen = _seen(update, update.identity, known, ground)
    if seen == "the same":
        return None
    plainly = None
    if update.plain_identity is not None:
        # what a replay applies again: what was rejected as the identity of another event is no event of its own now
        plainly = _seen(update, update.plain_identity, known, ground)
    if "another content" in (seen, plainly):
        return _reject(
            update,
            "event_id_reused",
            f"The event {update.id!r} of source {update.source!r} was applied to this measurement with another content:"
            " expected a new id for a new update.",
            path="ce_id",
            expected="an id that this source hasn't used for this measurement",
            found=update.id,
        )
    measurement = measurements.get(update.measurement_id)
    if measurement is None:
        return _not_found(update)
    if update.patch.get("properties") is not None and measurement.measurement_type != "properties":
        return _reject(
            update,
            "properties_not_allowed",
            "Properties are only for a measurement whose measurement_type is 'properties'; this one's is"
            f" {measurement.measurement_type!r}.",
            path="$.properties",
            expected="no properties: the measurement's measurement_type isn't 'properties'",
            found=update.patch["properties"],
        )
    if update.expected_revision is not None and update.expected_revision != measurement.revision:
        return _reject(
            update,
            "revision_conflict",
            f"The expected revision is {update.expected_revision}, the measurement is at {measurement.revision}:"
            " read it again and decide on the present state.",
            path="ce_expectedrevision",
            expected=str(measurement.revision),
            found=update.expected_revision,
        )
    return _apply(update, measurement, ground, again=plainly is not None)


def _seen(
    update: Update, identity: bytes, known: Mapping[bytes, Sequence[KnownIdentity | Update]], ground: Ground
) -> Literal["the same", "another content"] | None:
    """Was this event applied before, near enough in time?"""
    before = known.get(identity)
    if before is None:
        return None
    near = [seen.content for seen in before if abs(update.arrival - seen.arrival) < ground.identity_retention]
    if not near:
        return None
    return "the same" if update.content in near else "another content"


def _apply(
    update: Update, measurement: Measurement, ground: Ground, *, again: bool
) -> tuple[Applied, Answer] | Rejection | None:
    """Fold one event into its row, unless the result can't be expressed or sent.

    again: it was applied before, and a replay applies it again: a duplicate (None), where that changes nothing.
    """
    fields = dict(measurement.fields)
    stamped = []
    changed = []
    for name in PATCHABLE:
        if name not in update.patch:
            continue
        value = update.patch[name]
        if name == "name" and value is None:
            continue  # a measurement always has a name
        written_at = measurement.positions[name]
        if written_at is not None and update.position < written_at:
            continue  # late: something newer has written this field
        stamped.append(name)
        before = fields[name]
        after = None if value is None else as_json(value)
        # a string's text is one and the same; equal values of JSON may be written in many ways
        if before == after or (
            name in JSON_FIELDS and before and value is not None and same_json(before, value)
        ):
            continue  # equal values stay as they stand, to the letter
        fields[name] = after
        changed.append(name)
    if again and not changed:
        return None

    revision = measurement.revision
    updated_at = measurement.updated_at
    if changed:
        revision += 1
        arrived = timestamp_of(update.arrival)
        updated_at = arrived if updated_at is None else max(updated_at, arrived)
    fault = measurement.unreadable(fields, updated_at)
    if fault is not None or updated_at is None:
        return _reject(
            update,
            "measurement_unreadable",
            f"The measurement, as this event would leave it, can't be expressed in the response model: {fault}."
            " Something else wrote it so: mend the row, then send this event again.",
            path=f"$.{fault.partition(':')[0]}" if fault else "$.updated_at",
            expected="what the response model can express",
        )

    record, form = update.record, ground.form
    names = ",".join(changed)
    model = measurement.model(fields, updated_at)
    previous = measurement.last_answer
    answer = UpdatedAnswer(
        record.offset, form.updated_topic, measurement.id.encode(), model, update.arrival, previous,
        record.topic, record.partition, update.source, update.id, update.traceparent,
        iso8601(updated_at), revision, names, form.source,
    )  # fmt: skip
    size = answer.most_wire_size() * MOST_GROWTH
    if size > form.max_updated_bytes:  # it may be: only then is it counted
        size = wire_size(answer.key, answer.value, answer.headers)
        size += measurement.growth(fields, changed, form.max_updated_bytes - size)
    if size > form.max_updated_bytes:
        return _reject(
            update,
            "answer_too_large",
            f"The updated model would take {size} bytes, topic {form.updated_topic} takes"
            f" {form.max_updated_bytes}: send less, or raise the topic's max.message.bytes.",
            path="$",
            expected=f"a measurement of at most {form.max_updated_bytes} bytes",
            found=size,
        )

    applied = Applied(update, measurement, revision, names, previous, model)
    measurement.fields = fields
    for name in stamped:
        measurement.positions[name] = update.position
        measurement.stamped |= BIT[name]
    for name in changed:
        measurement.written |= BIT[name]
    measurement.revision = revision
    measurement.updated_at = updated_at
    measurement.last_answer = (ground.lane, record.offset)
    return applied, answer


def _not_found(update: Update) -> Rejection:
    of = "" if update.organization_id is None else f" of organization {update.organization_id!r}"
    return _reject(
        update,
        "measurement_not_found",
        f"There is no measurement {update.measurement_id!r}{of}.",
        path="key",
        expected="the id of a measurement",
        found=update.measurement_id,
    )


def _reject(
    update: Update,
    code: RejectionCode,
    message: str,
    *,
    path: str,
    expected: str,
    found: Json = None,
) -> Rejection:
    violation = Violation(path, expected, found)
    return Rejection(update.record, update.arrival, code, message, (violation,), 1)
