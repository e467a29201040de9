"""The day, published and watched: what was sent, what became of it, and whether that is what had to."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord

from contracts.cloudevents import MeasurementUpdated, UpdateRejected, read_rejected, read_updated
from contracts.events import REQUEUED_FROM
from worker.errors import DependencyAway
from worker.lab.updates import LabUpdate
from worker.settings import Settings

_SILENT_FOR = 30.0
"""Seconds without anything new, after which waiting is given up; what is missing then is said."""

Place = tuple[int, int]
"""Partition and offset in the input topic."""


class Audience(Protocol):
    """Who watches the day."""

    def answered(self, update: LabUpdate | None, answer: MeasurementUpdated | UpdateRejected) -> None:
        """An answer has become visible. None: to nothing that we know of."""

    def moved(self, day: "Day") -> None:
        """Something has changed; called often."""


@dataclass(slots=True)
class Seen:
    """An answer, and when a read_committed subscriber saw it (seconds since 1970)."""

    answer: MeasurementUpdated | UpdateRejected
    at: float


@dataclass(slots=True)
class Judged:
    """How many records the database has decided, and how."""

    applied: int = 0
    duplicates: int = 0
    rejected: int = 0

    @property
    def total(self) -> int:
        return self.applied + self.duplicates + self.rejected


@dataclass(slots=True)
class Day:
    """One stretch of updates. `run` fills it in."""

    updates: Sequence[LabUpdate]
    published: dict[Place, tuple[LabUpdate, float]] = field(default_factory=dict)
    """Where each one came to stand, and when (the broker's time, seconds since 1970)."""
    seen: list[Seen] = field(default_factory=list)
    judged: Judged = field(default_factory=Judged)
    began: float = 0.0
    ended: float = 0.0
    _applied: dict[tuple[str, str], LabUpdate] = field(default_factory=dict)
    """By identity: those that are to be applied. Others may have the same one."""

    def __post_init__(self) -> None:
        for update in self.updates:
            if update.identity is not None and update.outcome == "applied":
                self._applied[update.identity] = update

    @property
    def expected(self) -> Counter[str]:
        return Counter(update.outcome for update in self.updates)

    @property
    def outcomes(self) -> Counter[str]:
        """As it was seen: answers from the topics, duplicates (which have none) from the database."""
        found = Counter(
            one.answer.code if isinstance(one.answer, UpdateRejected) else "applied" for one in self.seen
        )
        if self.judged.duplicates:
            found["duplicate"] = self.judged.duplicates
        return found

    @property
    def answers_expected(self) -> int:
        return sum(update.outcome != "duplicate" for update in self.updates)

    def latencies(self) -> list[float]:
        """From the append in the input to the visible answer, in ms, in ascending order."""
        appended = {update.number: at for update, at in self.published.values()}
        found = []
        for one in self.seen:
            update = self.find(one.answer)
            if update is not None and update.number in appended:
                found.append((one.at - appended[update.number]) * 1000)
        return sorted(found)

    def mismatches(self) -> list[str]:
        """What isn't as it had to be, one sentence each."""
        seen, expected = self.outcomes, self.expected
        found = [
            f"{outcome}: expected {expected[outcome]}, found {seen[outcome]}"
            for outcome in sorted(seen.keys() | expected.keys())
            if seen[outcome] != expected[outcome]
        ]
        answers: dict[int | None, list[MeasurementUpdated | UpdateRejected]] = {}
        for one in self.seen:
            update = self.find(one.answer)
            answers.setdefault(None if update is None else update.number, []).append(one.answer)
        for update in self.updates:
            found += _differences(update, answers.get(update.number, []))
        found += [f"an answer to nothing that was published: {stray}" for stray in answers.get(None, [])]
        return found

    def find(self, answer: MeasurementUpdated | UpdateRejected) -> LabUpdate | None:
        """The update that an answer answers, as far as it is known already."""
        if isinstance(answer, UpdateRejected):
            place = answer.partition, answer.offset
        elif answer.causation_source.startswith("kafka:"):  # a bare event's identity is its position
            partition, _, offset = answer.causation_id.partition("@")[0].partition("/")
            place = int(partition), int(offset)
        else:
            return self._applied.get((answer.causation_source, answer.causation_id))
        return self.published[place][0] if place in self.published else None


def _differences(update: LabUpdate, answers: list[MeasurementUpdated | UpdateRejected]) -> list[str]:
    what = f"update {update.number} ({update.integration}: {update.about})"
    wanted = 0 if update.outcome == "duplicate" else 1
    if len(answers) != wanted:
        return [f"{what}: expected {wanted} answers, found {len(answers)}"]
    for answer in answers:
        code = answer.code if isinstance(answer, UpdateRejected) else "applied"
        if code != update.outcome:
            return [f"{what}: expected {update.outcome}, found {code}"]
        if isinstance(answer, MeasurementUpdated) and set(answer.changed) != set(update.changed):
            return [f"{what}: expected changed {update.changed}, found {answer.changed}"]
    return []


async def run_day(
    updates: Sequence[LabUpdate],
    settings: Settings,
    producer: AIOKafkaProducer,
    consumer: AIOKafkaConsumer,
    database: "asyncpg.Connection[asyncpg.Record]",
    audience: Audience,
    check: Callable[[], None],
    *,
    per_second: float | None,
) -> Day:
    """Publish all of them, wait until all are decided and answered. `consumer`: of both answer topics, from now on.

    check: called often; it raises where there is nothing to wait for. per_second: None is as fast as it goes.
    Raises DependencyAway.
    """
    day = Day(updates)
    before = await _judged(database, settings)
    day.began = time.time()
    watching = asyncio.create_task(_watch(day, settings, consumer, audience))
    publishing = asyncio.create_task(_publish(day, settings, producer, audience, per_second))
    try:
        state, since = None, time.monotonic()
        while True:
            check()
            now = await _judged(database, settings)
            day.judged = Judged(
                now.applied - before.applied,
                now.duplicates - before.duplicates,
                now.rejected - before.rejected,
            )
            audience.moved(day)
            done = publishing.done() and day.judged.total >= len(updates)
            if done and len(day.seen) >= day.answers_expected:
                break
            for task in (watching, publishing):
                if task.done() and (error := task.exception()) is not None:
                    raise error
            if (present := (len(day.published), len(day.seen), day.judged.total)) != state:
                state, since = present, time.monotonic()
            elif time.monotonic() - since > _SILENT_FOR:
                break  # the mismatches say what is missing
            await asyncio.sleep(0.1)
        day.ended = max((one.at for one in day.seen), default=time.time())
    finally:
        for task in (publishing, watching):
            task.cancel()
        await asyncio.wait([publishing, watching], timeout=5)
    return day


async def _judged(database: "asyncpg.Connection[asyncpg.Record]", settings: Settings) -> Judged:
    row = await database.fetchrow(
        """WITH ours AS (SELECT lane, duplicates FROM measurement_updates.lanes WHERE topic = $1)
           SELECT (SELECT count(*) FROM measurement_updates.applied_updates JOIN ours USING (lane)) AS applied,
                  (SELECT count(*) FROM measurement_updates.rejected_updates JOIN ours USING (lane)) AS rejected,
                  (SELECT coalesce(sum(duplicates), 0) FROM ours)::bigint AS duplicates""",
        settings.worker_updates_topic,
    )
    assert row is not None
    return Judged(row["applied"], row["duplicates"], row["rejected"])


async def _publish(
    day: Day, settings: Settings, producer: AIOKafkaProducer, audience: Audience, per_second: float | None
) -> None:
    began = time.monotonic()
    waiting: list[tuple[LabUpdate, asyncio.Future[object]]] = []
    for update in day.updates:
        if per_second is not None:
            await asyncio.sleep(max(0.0, began + update.number / per_second - time.monotonic()))
        headers = list(update.message.headers)
        if update.repairs is not None:
            await _acknowledge(day, waiting)
            rejected = await _rejection_of(day, update.repairs)
            headers.append((REQUEUED_FROM, rejected.first_position.encode()))
        sent = await producer.send(
            settings.worker_updates_topic,
            key=update.message.key,
            value=update.message.value,
            headers=headers,
        )
        waiting.append((update, sent))
        if per_second is not None or len(waiting) >= 1_000:
            await _acknowledge(day, waiting)
            audience.moved(day)
    await _acknowledge(day, waiting)


async def _acknowledge(day: Day, waiting: list[tuple[LabUpdate, "asyncio.Future[object]"]]) -> None:
    for update, sent in waiting:
        placed: object = await asyncio.wait_for(sent, _SILENT_FOR)
        partition, offset, timestamp = placed.partition, placed.offset, placed.timestamp  # type: ignore[attr-defined]  # aiokafka's RecordMetadata
        day.published[partition, offset] = (update, timestamp / 1000)
    waiting.clear()


async def _rejection_of(day: Day, number: int) -> UpdateRejected:
    """The rejected record of an earlier update: an operator has it in front of him."""
    place = next(place for place, (update, _) in day.published.items() if update.number == number)
    async for answer in _answers(day):
        if isinstance(answer, UpdateRejected) and (answer.partition, answer.offset) == place:
            return answer
    raise DependencyAway(f"update {number} wasn't rejected within {_SILENT_FOR:.0f} s")


async def _answers(day: Day) -> AsyncIterator[MeasurementUpdated | UpdateRejected]:
    """Those that were seen and those to come, until they stop coming."""
    at, since = 0, time.monotonic()
    while time.monotonic() - since < _SILENT_FOR:
        while at < len(day.seen):
            at, since = at + 1, time.monotonic()
            yield day.seen[at - 1].answer
        await asyncio.sleep(0.02)


async def _watch(day: Day, settings: Settings, consumer: AIOKafkaConsumer, audience: Audience) -> None:
    while True:
        fetched = await consumer.getmany(timeout_ms=200)
        now = time.time()
        for records in fetched.values():
            for record in records:
                answer = _read(record, settings)
                day.seen.append(Seen(answer, now))
                audience.answered(day.find(answer), answer)


def _read(record: "ConsumerRecord[bytes, bytes]", settings: Settings) -> MeasurementUpdated | UpdateRejected:
    read = read_updated if record.topic == settings.worker_updated_topic else read_rejected
    return read(record.key, record.value, record.headers)
