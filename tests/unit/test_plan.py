"""`plan` against the naive model: the same histories, cut into batches anywhere."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypeAlias

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.events import Violation
from tests import model
from worker.answer import Answer, AnswerForm
from worker.decode import decode
from worker.measurement import (
    BIT,
    Measurement,
    MeasurementRows,
    iso8601,
    json_equal,
    measurement_of,
    timestamp_of,
)
from worker.plan import Ground, KnownIdentity, Plan, TooMuchAtOnce, plan
from worker.record import DecodeLimits, Rejection, Update, position

RETENTION = 30
FORM = AnswerForm("updates", "updated", "rejected", "worker")
GROUND = Ground(lane=1, partition=0, form=FORM, identity_retention=RETENTION)


@dataclass(frozen=True, slots=True)
class LogRecord:
    """What `Record` asks for."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


def database_row(measurement_id: str, kind: str, name: str | None, protocol: Any) -> dict[str, Any]:
    """As `lock_measurements` reads it."""
    return {
        "id": measurement_id,
        "cell_instance_id": "cell-1",
        "name": name,
        "protocol": None if protocol is None else orjson.dumps(protocol).decode(),
        "start_time": None,
        "test_setup": None,
        "step_labels_validated": False,
        "notes": None,
        "measurement_type": kind,
        "properties": None,
        "file_metadata": None,
        "organization_id": "org-1",
        "created_by": None,
        "created_by_email": None,
        "created_at": 0,
        "updated_at": timestamp_of(105),
        "revision": 0,
        "name_position": None,
        "protocol_position": None,
        "test_setup_position": None,
        "notes_position": None,
        "properties_position": None,
        "answer_lane": None,
        "answer_offset": None,
    }


def fresh_rows() -> list[dict[str, Any]]:
    """m-3 isn't there yet."""
    return [
        database_row("m-1", "time_series", "one", {"a": 1}),
        database_row("m-2", "properties", None, None),
    ]


def new_row() -> dict[str, Any]:
    """What another writer inserts as m-3."""
    return database_row("m-3", "properties", "three", {"a": 0.1})


def model_row(row: Mapping[str, Any]) -> model.Row:
    """The same for the model, which knows times as text."""
    times = {name: iso8601(row[name]) for name in ("created_at", "updated_at")}
    dated = {**row, **dict.fromkeys(model.TIMES)}
    built = model.row_of(dated)
    built.columns.update(times)
    return built


# Histories --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Edit:
    """Another writer's UPDATE, `at` that many ms since 1970."""

    measurement_id: str
    changes: dict[str, Any]
    at: int


@dataclass(frozen=True, slots=True)
class Delete:
    measurement_id: str


@dataclass(frozen=True, slots=True)
class Insert:
    """m-3 by another writer."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A batch ends here. It ends as well before a record of another partition, and before what others write."""


Step: TypeAlias = model.Event | Edit | Delete | Insert | Cut

values = st.sampled_from(
    [None, {}, {"a": 1}, {"a": 1.0}, {"a": True}, {"a": 0.1, "b": [1]}, {"b": [1], "a": 0.1}]
)
patches = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from([None, "a", "b", "x" * 255]),
        "protocol": values,
        "test_setup": values,
        "notes": st.sampled_from([None, "", "at 45 °C", "x"]),
        "properties": values,
    },
)
edits = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from([None, "", "a", "b", "x" * 256]),
        "protocol": st.sampled_from([None, {"a": 1}, {"a": 2}, [1], 3, "text"]),
        "notes": st.sampled_from([None, "x", "by hand"]),
        "properties": values,
        "measurement_type": st.sampled_from(["properties", "properties", "time_series", "other"]),
        "organization_id": st.sampled_from(["org-1", "org-1", "org-2", None]),
    },
)


@st.composite
def histories(draw: st.DrawFn) -> list[Step]:
    """What happens, in order of application, through two partitions. A model runs along, so that an expected revision
    is often the right one and often just another."""
    naive = model.Model({row["id"]: model_row(row) for row in fresh_rows()}, RETENTION)
    steps: list[Step] = []
    sent: list[model.Event] = []
    arrivals, offsets = [100, 100], [0, 0]
    for _ in range(draw(st.integers(1, 16))):
        step: Step
        match draw(st.sampled_from(["event"] * 9 + ["edit", "edit", "row", "cut", "cut", "cut"])):
            case "event":
                partition = draw(st.sampled_from([0, 0, 1]))
                arrivals[partition] += draw(st.sampled_from([0, 0, 1, RETENTION // 2, RETENTION]))
                own = (arrivals[partition], partition, offsets[partition])
                offsets[partition] += 1
                step = draw(events(own, sent, naive))
                sent.append(step)
            case "edit":
                if not naive.rows:
                    continue
                measurement_id = draw(st.sampled_from(sorted(naive.rows)))
                step = Edit(
                    measurement_id, draw(edits), max(arrivals) + draw(st.sampled_from([-30, 0, 1, 20]))
                )
            case "row":
                step = Delete(draw(st.sampled_from(sorted(naive.rows)))) if "m-3" in naive.rows else Insert()
            case _:
                step = Cut()
        told(naive, step)
        steps.append(step)
    return steps


@st.composite
def events(
    draw: st.DrawFn, own: model.Position, sent: Sequence[model.Event], naive: model.Model
) -> model.Event:
    """A new event, or one that was sent before: as it was, or its identity with another content."""
    # requeued from an earlier position, or from one that the log has forgotten
    earlier = [event.first for event in sent if event.first < own]
    first = draw(st.sampled_from([own, own, own, *earlier, (own[0] - 20, 0, 7)]))
    if sent and draw(st.sampled_from([True, False, False])):
        again = draw(st.sampled_from(sent))
        return model.Event(
            own,
            first,
            again.measurement_id,
            again.source,
            again.id,
            draw(st.sampled_from([again.patch, again.patch, draw(patches)])),
            again.expected_revision,
            again.organization_id,
            draw(st.sampled_from([again.reapply, again.reapply, "run-1"])),
        )
    measurement_id = draw(st.sampled_from(["m-1", "m-1", "m-2", "m-2", "m-3"]))
    row = naive.rows.get(measurement_id)
    revision = row.revision if row else 0
    return model.Event(
        own,
        first,
        measurement_id,
        "cycler",
        f"e-{draw(st.integers(0, 9))}",
        draw(patches),
        draw(st.sampled_from([None, None, None, revision, revision, revision + 1, 0])),
        draw(st.sampled_from([None] * 5 + ["org-1", "org-1", "org-2"])),
        draw(st.sampled_from([None, None, None, "run-1", ""])),
        draw(st.sampled_from([None, "00-4bf9-01"])),
    )


def told(naive: model.Model, step: Step) -> model.Outcome | None:
    """The model is told what happens."""
    match step:
        case model.Event():
            return naive.fold(step)
        case Edit(measurement_id, changes, at):
            naive.edit(measurement_id, changes, at)
        case Delete(measurement_id):
            naive.delete(measurement_id)
        case Insert():
            naive.insert(model_row(new_row()).columns)
    return None


def batches(steps: Iterable[Step]) -> Iterator[list[Step]]:
    """Events that one transaction decides, or one thing that somebody else does."""
    for (kind, _), group in groupby(steps, lambda step: (type(step), getattr(step, "own", (0, 0))[1])):
        if kind is model.Event:
            yield list(group)
        elif kind is not Cut:
            yield from ([step] for step in group)


# The planner in place of the database -----------------------------------------------------------------------


def update_of(event: model.Event) -> Update:
    arrival, partition, offset = event.own
    record = LogRecord("updates", partition, offset, arrival, 1, event.measurement_id.encode(), b"{}", ())
    return Update(
        record=record,
        arrival=arrival,
        measurement_id=event.measurement_id,
        source=event.source,
        id=event.id,
        identity=repr((event.measurement_id, event.source, event.id, event.reapply)).encode(),
        plain_identity=None
        if event.reapply is None
        else repr((event.measurement_id, event.source, event.id, None)).encode(),
        content=model.canonical([event.patch, event.expected_revision]).encode(),
        patch=event.patch,
        position=position(*event.first),
        expected_revision=event.expected_revision,
        organization_id=event.organization_id,
        traceparent=event.traceparent,
    )


@dataclass(slots=True)
class Store:
    """Rows and identities between batches, as the database keeps them."""

    rows: dict[str, dict[str, Any]] = field(default_factory=lambda: {row["id"]: row for row in fresh_rows()})
    identities: dict[bytes, list[KnownIdentity]] = field(default_factory=dict)

    def judge(self, events: list[Update | Rejection]) -> Plan:
        """One batch, of one partition."""
        partition = events[0].record.partition
        result = plan(
            events,
            {row_id: measurement_of(row) for row_id, row in self.rows.items()},
            self.identities,
            Ground(partition + 1, partition, FORM, RETENTION),
        )
        for measurement in result.measurements:
            self.rows[measurement.id] = self._written(measurement)
        for applied in result.applied:
            self.identities.setdefault(applied.update.identity, []).append(
                KnownIdentity(applied.update.content, applied.update.arrival)
            )
        return result

    def others_write(self, step: Step) -> None:
        match step:
            case Edit(measurement_id, changes, at):
                self._edited(self.rows[measurement_id], changes, at)
            case Delete(measurement_id):
                del self.rows[measurement_id]
            case Insert():
                row = new_row()
                self.rows[row["id"]] = row

    def _edited(self, row: dict[str, Any], changes: dict[str, Any], at: int) -> None:
        """As the trigger has it."""
        changed = False
        for name, value in changes.items():
            before = self._value(row, name)
            row[name] = orjson.dumps(value).decode() if name in model.OBJECTS and value is not None else value
            if name in model.FIELDS and not json_equal(before, value):
                stamp = position(at, 2**63 - 1, 2**63 - 1)
                row[f"{name}_position"] = max(row[f"{name}_position"] or b"", stamp)
                changed = True
        row["revision"] += changed

    def _written(self, measurement: Measurement) -> dict[str, Any]:
        row = dict(self.rows[measurement.id])
        for name in (name for name, bit in BIT.items() if bit & measurement.written):
            text = measurement.fields[name]
            value = None if text is None else orjson.loads(text)
            row[name] = value if name in ("name", "notes") or value is None else orjson.dumps(value).decode()
        for name in (name for name, bit in BIT.items() if bit & measurement.stamped):
            row[f"{name}_position"] = measurement.positions[name]
        row["revision"], row["updated_at"] = measurement.revision, measurement.updated_at
        assert measurement.last_answer is not None
        row["answer_lane"], row["answer_offset"] = measurement.last_answer
        return row

    @staticmethod
    def _value(row: dict[str, Any], name: str) -> Any:
        stands = row[name]
        return orjson.loads(stands) if name in model.OBJECTS and stands is not None else stands


# Does the planner say what the model says? ------------------------------------------------------------------


def agree(steps: Sequence[Step]) -> Iterator[str]:
    """Run both; names what happened, for counting. Raises AssertionError where they differ."""
    store = Store()
    naive = model.Model({row["id"]: model_row(row) for row in fresh_rows()}, RETENTION)
    answered: dict[str, tuple[int, int] | None] = {}
    for batch in batches(steps):
        if not isinstance(batch[0], model.Event):
            told(naive, batch[0])
            store.others_write(batch[0])
            if isinstance(batch[0], Delete):
                answered.pop(batch[0].measurement_id, None)
            continue
        events = [step for step in batch if isinstance(step, model.Event)]
        result = store.judge([update_of(event) for event in events])
        answers = {answer.offset: answer for answer in result.answers}
        assert list(answers) == sorted(answers)
        silent = 0
        for event in events:
            yield from late_fields(naive, event)
            outcome = naive.fold(event)
            unchanged = outcome.kind == "applied" and event.patch and not outcome.changed
            if event.reapply is not None and event.first < event.own:
                yield f"reapplied: {outcome.kind}"
            yield "applied without a change" if unchanged else outcome.code or outcome.kind
            if outcome.kind == "duplicate":
                assert event.own[2] not in answers
                silent += 1
                continue
            answer = answers.pop(event.own[2])
            same(answer, outcome)
            if outcome.kind == "applied":
                assert answer.previous == answered.get(event.measurement_id)
                answered[event.measurement_id] = (event.own[1] + 1, event.own[2])
        assert not answers
        assert result.duplicates == silent
    for measurement_id, row in naive.rows.items():
        stands = model_row(store.rows[measurement_id])
        assert model.canonical(stands.columns) == model.canonical(row.columns)
        assert (stands.revision, stands.written) == (row.revision, row.written)
    assert store.rows.keys() == naive.rows.keys()


def as_sent(answer: Answer) -> tuple[object, ...]:
    """To compare: what goes out, and what it waits for."""
    content = answer.key, answer.value, answer.headers
    return answer.offset, answer.topic, *content, answer.arrival, answer.previous


def same(answer: Answer, outcome: model.Outcome) -> None:
    """The answer is the one that the model expects."""
    headers = {name: (value or b"").decode() for name, value in answer.headers}
    if outcome.kind == "rejected":
        assert (answer.topic, headers["rejection-code"]) == ("rejected", outcome.code)
    else:
        assert answer.topic == "updated"
        assert headers.items() >= outcome.headers.items()
        assert model.canonical(orjson.loads(answer.value or b"")) == model.canonical(outcome.body)


def late_fields(naive: model.Model, event: model.Event) -> Iterator[str]:
    """Which fields of it something newer has written: another event, or another writer."""
    row = naive.rows.get(event.measurement_id)
    for name in event.patch if row else ():
        assert row is not None
        if event.first < (newer := row.written.get(name, model.OLDER_THAN_ALL)):
            yield "later than another writer" if newer[1] == model.LAST else "later than another event"


INTERESTING = {
    "applied",
    "applied without a change",
    "duplicate",
    "event_id_reused",
    "measurement_not_found",
    "properties_not_allowed",
    "revision_conflict",
    "measurement_unreadable",
    "later than another writer",
    "later than another event",
    "reapplied: applied",
    "reapplied: duplicate",
}


def test_plan_decides_as_the_naive_model_wherever_the_batches_are_cut() -> None:
    happened: Counter[str] = Counter()

    @settings(max_examples=400, deadline=None)
    @given(histories())
    def run(steps: list[Step]) -> None:
        happened.update(agree(steps))

    for _ in range(5):  # what is rarest comes eight times in a round, or four
        run()
        if min(happened[name] for name in INTERESTING) >= 5:
            break
    assert min(happened[name] for name in INTERESTING) >= 5, happened


def test_an_identity_that_was_applied_twice_is_a_duplicate_of_either() -> None:
    """With two contents, further apart than identities count; through another partition something comes in between."""

    def event(arrival: int, partition: int, offset: int, notes: str) -> model.Event:
        own = (arrival, partition, offset)
        return model.Event(own, own, "m-1", "cycler", "e-1", {"notes": notes})

    between = 100 + RETENTION // 2
    steps = [
        event(100, 0, 0, "first"),
        event(100 + RETENTION, 0, 1, "second"),
        *(event(between, 1, offset, notes) for offset, notes in enumerate(["first", "second", "third"])),
    ]
    outcomes = [name for name in agree(steps) if not name.startswith("later")]
    assert outcomes == ["applied", "applied", "duplicate", "duplicate", "event_id_reused"]


def test_a_replay_applies_an_event_again_where_that_changes_something() -> None:
    def event(offset: int, notes: str, id: str, reapply: str | None = None, first: int = -1) -> model.Event:
        own = (100 + offset, 0, offset)
        return model.Event(
            own,
            (100 + first, 0, first) if first >= 0 else own,
            "m-1",
            "cycler",
            id,
            {"notes": notes},
            reapply=reapply,
        )

    steps: list[Step] = [
        event(0, "a", "e-1"),
        event(1, "c", "e-1"),
        event(2, "a", "e-1", "run-1", first=0),
        event(3, "c", "e-1", "run-1", first=1),
        Edit("m-1", {"notes": "a defect's"}, 90),
        event(4, "a", "e-1", "run-2", first=0),
        event(5, "a", "e-1", "run-2", first=0),
        event(6, "b", "e-2"),
        event(7, "a", "e-1", "run-3", first=0),
        event(8, "n", "e-3", "run-3"),
        event(9, "n", "e-3", "run-3"),
    ]
    assert [name for name in agree(steps) if not name.startswith(("later", "reapplied"))] == [
        *("applied", "event_id_reused", "duplicate", "event_id_reused"),
        *("applied", "duplicate", "applied", "duplicate", "applied", "duplicate"),
    ]


@settings(max_examples=100, deadline=None)
@given(histories())
def test_answers_are_the_same_bytes_wherever_the_batches_are_cut(steps: list[Step]) -> None:
    def answers(steps: Iterable[Step]) -> list[tuple[object, ...]]:
        store, said = Store(), []
        for batch in batches(steps):
            if events := [step for step in batch if isinstance(step, model.Event)]:
                said += store.judge([update_of(event) for event in events]).answers
            else:
                store.others_write(batch[0])
        return [
            (one.offset, one.topic, one.key, one.value, one.headers, one.arrival, one.previous)
            for one in said
        ]

    as_cut = answers(steps)
    whole = answers(step for step in steps if not isinstance(step, Cut))
    one_by_one = answers(piece for step in steps for piece in (step, Cut()))
    assert as_cut == whole == one_by_one


def test_a_rejected_record_keeps_its_place_among_the_answers() -> None:
    record = LogRecord("updates", 0, 1, 100, 1, b"m-1", b"{", ())
    bad = Rejection(record, 100, "invalid_json", "no", (Violation("$", "JSON", "{"),), 1)
    good = [
        update_of(
            model.Event((100, 0, offset), (100, 0, offset), "m-1", "s", f"{offset}", {"notes": str(offset)})
        )
        for offset in (0, 2)
    ]
    result = Store().judge([good[0], bad, good[1]])
    assert [answer.offset for answer in result.answers] == [0, 1, 2]


def test_values_are_compared_as_json_values() -> None:
    assert json_equal({"a": 3, "b": [1.0]}, {"b": [1], "a": 3.0})
    assert not json_equal({"a": True}, {"a": 1})
    assert not json_equal({"a": 0}, {"a": False})
    assert not json_equal({"a": None}, {})
    assert not json_equal([1], [1, 2])
    assert not json_equal("1", 1)


def test_what_no_event_touches_is_passed_on_digit_by_digit() -> None:
    row = database_row("m-2", "properties", "two", None)
    row["file_metadata"] = '{"rows": 12345678901234567890123, "huge": 1' + "0" * 400 + "}"
    store = Store({row["id"]: row})
    [answer] = store.judge(
        [update_of(model.Event((110, 0, 0), (110, 0, 0), "m-2", "s", "1", {"notes": "x"}))]
    ).answers
    assert row["file_metadata"].encode() in (answer.value or b"")


def test_a_batch_whose_answers_take_too_much_memory_says_how_many_events_fit() -> None:
    small = Ground(1, 0, GROUND.form, RETENTION, max_batch_bytes=3_000)
    events = [
        update_of(
            model.Event((100, 0, offset), (100, 0, offset), "m-1", "s", f"{offset}", {"notes": "x" * 900})
        )
        for offset in range(5)
    ]
    row = measurement_of(fresh_rows()[0])
    with pytest.raises(TooMuchAtOnce) as raised:
        plan(events, {"m-1": row}, {}, small)
    assert raised.value.fitting == 2
    alone = Ground(1, 0, GROUND.form, RETENTION, max_batch_bytes=1)
    assert len(plan(events[:1], {"m-1": measurement_of(fresh_rows()[0])}, {}, alone).applied) == 1


def test_no_measurement_is_made_of_a_row_that_only_duplicates_name() -> None:
    rows = MeasurementRows()
    rows.add([{"id": "m-1"}])  # nothing more can be made of it
    headers = (
        ("ce_specversion", b"1.0"),
        ("ce_type", b"cell_measurement.update.v1"),
        ("ce_id", b"e-1"),
        ("ce_source", b"c"),
    )
    record = LogRecord("updates", 0, 0, 100, 1, b"m-1", b'{"notes":"n"}', headers)
    event = decode(record, 100, DecodeLimits())
    assert isinstance(event, Update)
    known = {event.identity: [KnownIdentity(event.content, 100)]}
    assert plan([event], rows, known, GROUND).duplicates == 1
