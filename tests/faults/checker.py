"""Did every record of the input get exactly one answer, in order, and do the rows say the same?

Naive on purpose, and independent of worker/: it reads the whole input log, both answer topics (read_committed) and the
tables, and folds the events one by one. It knows the two forms of event that `load` sends: binary CloudEvents and bare.
"""

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer, ConsumerRecord

from tests.system import Answer, System

Place = tuple[int, int]
"""(partition, offset) in the input log."""
Position = tuple[int, int, int]
"""(arrival, partition, offset)"""
_NEVER: Position = (0, 0, 0)

PATCHABLE = ("name", "protocol", "test_setup", "notes", "properties")


@dataclass(slots=True)
class Verdicts:
    """How the records of the input were answered."""

    updated: int = 0
    rejected: int = 0
    duplicates: int = 0

    @property
    def total(self) -> int:
        return self.updated + self.rejected + self.duplicates


async def check(system: System, timeout: float = 30) -> Verdicts:
    """Wait until everything is answered, then look at everything. Raises AssertionError."""
    answers = await system.answers(timeout=timeout)
    log = {(record.partition, record.offset): record for record in await input_log(system)}
    by_place: dict[Place, Answer] = {}
    for answer in answers:
        place = place_of(answer)
        assert place in log, f"an answer to a record that isn't there: {place}"
        assert place not in by_place, f"record {place} was answered twice"
        by_place[place] = answer

    _check_duplicates(log, by_place)
    _check_rejections(log, by_place)
    await _check_fold(system, log, [answer for answer in answers if not answer.rejected])
    await _check_stored(system, by_place)
    rejected = sum(answer.rejected for answer in answers)
    return Verdicts(len(answers) - rejected, rejected, len(log) - len(answers))


async def input_log(system: System) -> list[ConsumerRecord[bytes, bytes]]:
    """Every record that is still in the input topic."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=system.settings.bootstrap_servers,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    await consumer.start()
    try:
        partitions = system.partitions()
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        await consumer.seek_to_beginning(*partitions)
        found: list[ConsumerRecord[bytes, bytes]] = []
        while any([await consumer.position(tp) < ends[tp] for tp in partitions]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += records
        return found
    finally:
        await consumer.stop()


def place_of(answer: Answer) -> Place:
    """Where the record stands that this answers."""
    if answer.rejected:
        return int(answer.text("rejection-partition")), int(answer.text("rejection-offset"))
    _, partition, offset = answer.text("ce_id").split("@")[0].rsplit("/", 2)
    return int(partition), int(offset)


def _time(model: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(model["updated_at"])


def _identity(record: ConsumerRecord[bytes, bytes]) -> tuple[bytes | None, bytes | None, bytes | None] | None:
    headers = dict(record.headers)
    return (record.key, headers.get("ce_source"), headers.get("ce_id")) if "ce_id" in headers else None


def _check_duplicates(log: dict[Place, ConsumerRecord[bytes, bytes]], answers: dict[Place, Answer]) -> None:
    """What has no answer is an event that another record has brought, with the same content."""
    applied: defaultdict[object, list[bytes | None]] = defaultdict(list)
    for place, answer in answers.items():
        if not answer.rejected and (identity := _identity(log[place])):
            applied[identity].append(log[place].value)
    for event, contents in applied.items():
        assert len(contents) == 1, f"event {event} was applied {len(contents)} times"
    for place in log.keys() - answers.keys():
        identity = _identity(log[place])
        assert identity in applied, f"record {place} was lost: no answer, and no duplicate of another one"
        assert applied[identity] == [log[place].value], f"record {place} is no duplicate: another content"


def _check_rejections(log: dict[Place, ConsumerRecord[bytes, bytes]], answers: dict[Place, Answer]) -> None:
    for place, answer in answers.items():
        record = log[place]
        wrong = _is_wrong_in_itself(record)
        if answer.rejected:
            assert wrong or answer.code == "measurement_not_found", (
                f"record {place} was rejected: {answer.detail}"
            )
            assert (answer.key, answer.value) == (record.key, record.value)
            assert list(answer.raw_headers[: len(record.headers)]) == list(record.headers)
        else:
            assert not wrong, f"record {place} was applied, though it is wrong in itself"
            assert answer.key == record.key


def _is_wrong_in_itself(record: ConsumerRecord[bytes, bytes]) -> bool:
    try:
        return not isinstance(orjson.loads(record.value or b""), dict)
    except orjson.JSONDecodeError:
        return True


async def _check_fold(
    system: System, log: dict[Place, ConsumerRecord[bytes, bytes]], updated: list[Answer]
) -> None:
    """Each answer is the one before it with its own patch; the last one is the row."""
    models: dict[bytes | None, dict[str, Any]] = {}
    revisions: dict[bytes | None, int] = {}
    arrivals: dict[int, int] = {}
    written: dict[tuple[bytes | None, str], Position] = {}
    positions: dict[Place, Position] = {}
    for place in sorted(log):  # an arrival is never less than the one before it
        arrivals[place[0]] = max(log[place].timestamp, arrivals.get(place[0], 0))
        positions[place] = (arrivals[place[0]], *place)
    for answer in updated:
        record, position = log[place_of(answer)], positions[place_of(answer)]
        patch = orjson.loads(record.value or b"")
        model, before = answer.model, models.get(answer.key)
        if before is None:
            assert {name: model[name] for name in patch} == patch
        else:
            changed = []
            expected = dict(before)
            for name, value in patch.items():
                if written.get((answer.key, name), _NEVER) > position:
                    continue  # late
                if value != before[name]:
                    changed.append(name)
                    expected[name] = value
            if changed:
                expected["updated_at"] = model["updated_at"]
                assert _time(model) >= _time(before)
            assert model == expected, f"{place_of(answer)}: not the answer before it with its patch"
            assert answer.changed == [name for name in PATCHABLE if name in changed]
            assert answer.revision == revisions[answer.key] + bool(changed)
        for name in patch:
            written[answer.key, name] = max(written.get((answer.key, name), _NEVER), position)
        models[answer.key], revisions[answer.key] = model, answer.revision
    for key, model in models.items():
        row = await system.row((key or b"").decode())
        assert {name: row[name] for name in PATCHABLE} == {name: model[name] for name in PATCHABLE}
        assert row["revision"] == revisions[key]
    unanswered = await system.database.fetch(
        "SELECT id FROM cell_measurements WHERE revision > 0 AND id <> ALL($1)",
        [(key or b"").decode() for key in models],
    )
    assert not unanswered


async def _check_stored(system: System, answers: dict[Place, Answer]) -> None:
    """What was sent is what is stored, byte for byte."""
    lanes = {
        row["lane"]: row["partition"]
        for row in await system.database.fetch(
            "SELECT lane, partition FROM measurement_updates.lanes WHERE topic = $1 AND retired_at IS NULL",
            system.updates,
        )
    }
    stored: dict[Place, bytes | None] = {}
    for row in await system.database.fetch("SELECT * FROM measurement_updates.applied_updates"):
        if row["lane"] in lanes:
            stored[lanes[row["lane"]], row["log_offset"]] = row["answer"].encode()
    for row in await system.database.fetch("SELECT * FROM measurement_updates.rejected_updates"):
        if row["lane"] in lanes:
            place = lanes[row["lane"]], row["log_offset"]
            assert place not in stored, f"record {place} is both applied and rejected"
            stored[place] = row["value"]
            assert row["detail"].encode() == answers[place].headers["rejection-detail"]
    assert stored == {place: answer.value for place, answer in answers.items()}
