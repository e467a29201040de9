"""`plan` against the naive model: the same histories, cut into batches anywhere."""

from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.events import Violation
from tests import model
from worker.answer import AnswerForm
from worker.measurement import Measurement, json_equal, measurement_of, timestamp_of
from worker.plan import Ground, KnownIdentity, Plan, TooMuchAtOnce, plan
from worker.record import Rejection, Update, position

RETENTION = 50
GROUND = Ground(
    lane=1,
    partition=0,
    form=AnswerForm("updates", "updated", "rejected", "worker"),
    identity_retention=RETENTION,
)
IDS = ("m-1", "m-2", "gone")


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


@st.composite
def histories(draw: st.DrawFn) -> list[model.Event]:
    """Events in log order; arrivals stand or rise; some come late, some again, some with another's identity."""
    events: list[model.Event] = []
    arrival = 100
    for offset in range(draw(st.integers(1, 12))):
        arrival += draw(st.integers(0, 30))
        own = (arrival, 0, offset)
        first = draw(st.sampled_from([own, *(earlier.own for earlier in events)]))
        if events and draw(st.sampled_from([True, False])):
            again = draw(st.sampled_from(events))
            events.append(
                model.Event(
                    own,
                    first,
                    again.measurement_id,
                    again.source,
                    again.id,
                    draw(st.sampled_from([again.patch, draw(patches)])),
                    again.expected_revision,
                    again.organization_id,
                )
            )
            continue
        events.append(
            model.Event(
                own,
                first,
                draw(st.sampled_from(IDS)),
                "cycler",
                f"e-{draw(st.integers(0, 5))}",
                draw(patches),
                draw(st.sampled_from([None, None, 0, 1, 2])),
                draw(st.sampled_from([None, None, "org-1", "org-2"])),
            )
        )
    return events


def update_of(event: model.Event) -> Update:
    arrival, partition, offset = event.own
    record = LogRecord("updates", partition, offset, arrival, 1, event.measurement_id.encode(), b"{}", ())
    return Update(
        record=record,
        arrival=arrival,
        measurement_id=event.measurement_id,
        source=event.source,
        id=event.id,
        identity=repr((event.measurement_id, event.source, event.id)).encode(),
        content=model.canonical([event.patch, event.expected_revision]).encode(),
        patch=event.patch,
        position=position(*event.first),
        expected_revision=event.expected_revision,
        organization_id=event.organization_id,
        traceparent=None,
    )


class Store:
    """Rows and identities between batches, as the database keeps them."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = {row["id"]: row for row in rows}
        self.identities: dict[bytes, list[KnownIdentity]] = {}

    def judge(self, events: list[Update | Rejection]) -> Plan:
        result = plan(
            events,
            {row_id: measurement_of(row) for row_id, row in self.rows.items()},
            self.identities,
            GROUND,
        )
        for measurement in result.measurements:
            self.rows[measurement.id] = self._written(measurement)
        for applied in result.applied:
            self.identities.setdefault(applied.update.identity, []).append(
                KnownIdentity(applied.update.content, applied.update.arrival)
            )
        return result

    def _written(self, measurement: Measurement) -> dict[str, Any]:
        row = dict(self.rows[measurement.id])
        for name in measurement.written:
            text = measurement.fields[name]
            value = None if text is None else orjson.loads(text)
            row[name] = value if name in ("name", "notes") or value is None else orjson.dumps(value).decode()
        for name, at in measurement.positions.items():
            row[f"{name}_position"] = at
        row["revision"], row["updated_at"] = measurement.revision, measurement.updated_at
        assert measurement.last_answer is not None
        row["answer_lane"], row["answer_offset"] = measurement.last_answer
        return row


def fresh_rows() -> list[dict[str, Any]]:
    return [
        database_row("m-1", "time_series", "one", {"a": 1}),
        database_row("m-2", "properties", None, None),
    ]


def outcomes(result: Plan) -> list[tuple[Any, ...]]:
    """In log order: what the model says of the same records, duplicates aside."""
    applied = {row.update.record.offset: row for row in result.applied}
    said: list[tuple[Any, ...]] = []
    for answer in result.answers:
        if (row := applied.get(answer.offset)) is not None:
            body = orjson.loads(row.model)
            said.append((answer.offset, "applied", row.revision, row.changed, body))
        else:
            code = dict(answer.headers)["rejection-code"] or b""
            said.append((answer.offset, "rejected", code.decode()))
    return said


def expected(events: list[model.Event]) -> tuple[list[tuple[Any, ...]], model.Model]:
    rows = {
        row["id"]: model.Row(
            {
                "name": row["name"],
                "protocol": None if row["protocol"] is None else orjson.loads(row["protocol"]),
                "test_setup": None,
                "notes": None,
                "properties": None,
                "file_metadata": None,
                "measurement_type": row["measurement_type"],
                "organization_id": row["organization_id"],
                "updated_at": 105,
            }
        )
        for row in fresh_rows()
    }
    naive = model.Model(rows, RETENTION)
    said: list[tuple[Any, ...]] = []
    for event in events:
        outcome = naive.fold(event)
        offset = event.own[2]
        if outcome.kind == "rejected":
            said.append((offset, "rejected", outcome.code))
        elif outcome.kind == "applied":
            said.append((offset, "applied", outcome.revision, ",".join(outcome.changed), outcome.body))
    return said, naive


@settings(max_examples=300, deadline=None)
@given(histories(), st.data())
def test_plan_decides_as_the_naive_model_wherever_the_batches_are_cut(
    events: list[model.Event], data: st.DataObject
) -> None:
    store = Store(fresh_rows())
    said: list[tuple[Any, ...]] = []
    rest: list[Update | Rejection] = [update_of(event) for event in events]
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        said += outcomes(store.judge(rest[:size]))
        rest = rest[size:]
    wanted, naive = expected(events)
    assert [one[:4] for one in said] == [one[:4] for one in wanted]
    for ours, theirs in zip(said, wanted, strict=True):
        if ours[1] == "applied":
            columns = orjson.loads(theirs[4])
            for name in model.FIELDS:
                assert model.canonical(ours[4][name]) == model.canonical(columns[name])
    for measurement_id, row in naive.rows.items():
        assert store.rows[measurement_id]["revision"] == row.revision
        assert store.rows[measurement_id]["updated_at"] == timestamp_of(row.columns["updated_at"])


@settings(max_examples=100, deadline=None)
@given(histories(), st.data())
def test_answers_are_the_same_bytes_wherever_the_batches_are_cut(
    events: list[model.Event], data: st.DataObject
) -> None:
    whole, cut = Store(fresh_rows()), Store(fresh_rows())
    updates: list[Update | Rejection] = [update_of(event) for event in events]
    at_once = whole.judge(updates).answers
    at = data.draw(st.integers(0, len(updates)))
    in_two = cut.judge(updates[:at]).answers + cut.judge(updates[at:]).answers
    assert [(answer.key, answer.headers, answer.previous) for answer in at_once] == [
        (answer.key, answer.headers, answer.previous) for answer in in_two
    ]
    assert [orjson.loads(answer.value or b"") for answer in at_once] == [
        orjson.loads(answer.value or b"") for answer in in_two
    ]


def test_a_rejected_record_keeps_its_place_among_the_answers() -> None:
    record = LogRecord("updates", 0, 1, 100, 1, b"m-1", b"{", ())
    bad = Rejection(record, 100, "invalid_json", "no", (Violation("$", "JSON", "{"),), 1)
    good = [
        update_of(
            model.Event((100, 0, offset), (100, 0, offset), "m-1", "s", f"{offset}", {"notes": str(offset)})
        )
        for offset in (0, 2)
    ]
    result = Store(fresh_rows()).judge([good[0], bad, good[1]])
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
    store = Store([row])
    [answer] = store.judge(
        [update_of(model.Event((110, 0, 0), (110, 0, 0), "m-2", "s", "1", {"notes": "x"}))]
    ).answers
    assert row["file_metadata"].encode() in (answer.value or b"")


def test_a_batch_whose_answers_take_too_much_memory_says_how_many_events_fit() -> None:
    small = Ground(1, 0, GROUND.form, RETENTION, max_answer_bytes=3_000)
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
    alone = Ground(1, 0, GROUND.form, RETENTION, max_answer_bytes=1)
    assert len(plan(events[:1], {"m-1": measurement_of(fresh_rows()[0])}, {}, alone).applied) == 1
