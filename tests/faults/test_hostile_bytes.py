"""Hostile bytes end to end: each record answered as the contract says, their neighbours unharmed, nothing stalls."""

from collections import Counter
from random import Random

from aiokafka.structs import RecordMetadata

from tests import model
from tests.faults.states import Log
from tests.fuzz import Fuzzer, Record
from tests.naive_decode import RawRecord, decode
from tests.system import Answer, System, until

SEED = "hostile bytes, end to end, 1"
HOSTILE = 10_000
CALM = HOSTILE // 4
BATCH = 125
MAX_EVENT_BYTES = 4_096
SIDES = ("left", "right")
"""Of the two partitions: no measurement's updates come through both."""


async def test_ten_thousand_hostile_records_are_answered_as_the_contract_says(lab: System, log: Log) -> None:
    await _seed(lab)
    seeded = await _rows(lab)
    sent: list[tuple[RecordMetadata, Record]] = []
    environment = {"WORKER_MAX_EVENT_BYTES": str(MAX_EVENT_BYTES)}

    async def both_lanes_run() -> bool:
        return log.said("lane running") == 2

    with lab.process(log.file, **environment) as worker:
        await until(both_lanes_run, "both partitions are taken over")
        before = len(log.events())
        for partition, side in enumerate(SIDES):
            records = _mixed(side, lab.updates)
            for number, at in enumerate(range(0, len(records), BATCH)):
                batch = records[at : at + BATCH]
                places = await lab.publish_raw(*batch, partition=partition, compression=number % 5)
                sent += zip(places, batch, strict=True)
        answers = {answer.place: answer for answer in await lab.answers(timeout=60)}
        assert worker.poll() is None
    # that Kafka is slow to take answers is no error
    assert [event for event in log.events()[before:] if event["level"] not in ("info", "warning")] == []
    epochs = await lab.database.fetch("SELECT epoch FROM measurement_updates.lanes")
    assert [row["epoch"] for row in epochs] == [1, 1], "no lane was taken over a second time"

    naive = model.Model(seeded, 90 * 24 * 3600 * 1000)
    seen: Counter[str] = Counter()
    for place, record in sent:
        answer = answers.pop((place.partition, place.offset), None)
        seen[_judged(naive, place, record, answer)] += 1
        if answer is not None and answer.rejected:
            _comes_as_received(record, answer)
    assert not answers, "no answer is to a record that wasn't sent"
    assert await _rows(lab) == naive.rows

    assert sum(seen.values()) >= HOSTILE + CALM
    for outcome, share in {
        "applied": 0.2,
        "duplicate": 0.001,
        "empty_event": 0.01,
        "too_large": 0.02,
        "invalid_event": 0.1,
        "invalid_json": 0.1,
        "invalid_patch": 0.05,
        "event_id_reused": 0.001,
        "measurement_not_found": 0.01,
        "properties_not_allowed": 0.005,
        "revision_conflict": 0.002,
        "measurement_unreadable": 0.005,
    }.items():
        assert seen[outcome] >= share * HOSTILE, f"{outcome} comes up too seldom to say much: {seen}"


async def _seed(lab: System) -> None:
    for side in SIDES:
        await lab.seed(f"{side}-1")
        await lab.seed(f"{side}-2", measurement_type="properties", organization_id="org-1")
        await lab.seed(f"{side}-3", measurement_type="file", notes="as it was", organization_id="org-2")
        await lab.seed(f"{side}-4", measurement_type="odd")  # no event can mend it
        for number in range(20):
            await lab.seed(f"{side}-calm-{number}", measurement_type="properties")


async def _rows(lab: System) -> dict[str, model.Row]:
    return {
        row["id"]: model.row_of(row) for row in await lab.database.fetch("SELECT * FROM cell_measurements")
    }


def _mixed(side: str, topic: str) -> list[Record]:
    """A partition's records: hostile ones, some of them sent again, and a calm one after every fourth."""
    seed = f"{SEED}, {side}"
    fuzzer = Fuzzer(seed, topic, [f"{side}-{number}" for number in range(1, 6)], MAX_EVENT_BYTES)
    random = Random(seed)
    records: list[Record] = []
    for number in range(HOSTILE // len(SIDES)):
        again = records and random.random() < 0.02
        records.append(random.choice(records) if again else fuzzer.record())
        if number % 4 == 3:
            key = f"{side}-calm-{random.randrange(20)}".encode()
            value = b'{"notes":"calm %d","properties":{"n":{"value":%d,"unit":""}}}' % (number, number)
            records.append(Record(key, value, []))
    return records


def _judged(naive: model.Model, place: RecordMetadata, record: Record, answer: Answer | None) -> str:
    """What became of a record, which is what the contract says. In log order."""
    shown = f"seed {SEED!r}, {place}: {record!r:.3000}\nanswer: {answer!r:.3000}"
    raw = RawRecord(place.topic, place.partition, place.offset, place.timestamp, *record)
    event = decode(raw, MAX_EVENT_BYTES)
    if isinstance(event, frozenset):
        assert answer is not None, shown
        assert answer.code in event, f"expected {event}, {shown}"
        return answer.code
    outcome = naive.fold(event)
    if outcome.kind == "duplicate":
        assert answer is None, shown
        return "duplicate"
    assert answer is not None, shown
    if outcome.kind == "rejected":
        assert answer.code == outcome.code, f"expected {outcome.code}, {shown}"
        return answer.code
    assert not answer.rejected, f"expected {outcome}, {shown}"
    found = (answer.revision, tuple(answer.changed), model.canonical(answer.model))
    assert found == (outcome.revision, outcome.changed, model.canonical(outcome.body)), shown
    return "applied"


def _comes_as_received(record: Record, answer: Answer) -> None:
    """Key, value and headers of a rejected record, but for what is too large to be kept."""
    key, value, headers = record
    assert answer.value == value
    assert answer.key == (key if len(key or b"") <= 64 * 1024 else None)
    if sum(len(name) + len(content or b"") for name, content in headers) <= 64 * 1024:
        received = tuple((name.decode("utf-8", "backslashreplace"), content) for name, content in headers)
        assert answer.raw_headers[: len(received)] == received
