"""A replay, from its options to what became of its records.

1. fix the range: offsets of each partition, no further than the log reaches now
2. keep it in the database: from here on it has an id, and can be gone on with, or cancelled
3. start the producer: fences whoever had this replay, and settles the last transaction
4. only now ask how far it is: its group's offsets can't move any more
5. read, choose, publish; how far it is moves in the transaction that publishes
6. wait until the workers have decided what was published
"""

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from worker.errors import Fatal
from worker.replay import runs
from worker.replay.ground import Ground, Says, Warn, now_ms
from worker.replay.groups import delete_group, group_offsets
from worker.replay.lanes import arrival_before, decided_between, present_lanes
from worker.replay.publishing import ReplayProducer
from worker.replay.ranges import fixed_ranges
from worker.replay.runs import Counts, Run
from worker.replay.selection import Again, Selection, Selector, read_point
from worker.settings import Settings
from worker.verification.topics import Broker, Topic, broker

_NOTE_EVERY = 1.0
_POLL_EVERY = 0.3
_QUIET_SECONDS = 30.0
"""Without progress: then it is said, once."""


async def begin(ground: Ground, selection: Selection, reapply: bool, by: str, why: str) -> Run:
    """A new replay, kept but not begun to publish. Raises Fatal, SettingsError, DependencyAway."""
    settings, topic_name = ground.settings, ground.input.name
    now = now_ms()
    begins = read_point("--from", selection.begin, now)
    until = None if selection.until is None else read_point("--until", selection.until, now)
    lanes = await present_lanes(ground.connection, settings, ground.cluster)
    async with broker(settings) as kafka:
        topic = await kafka.topic(topic_name)
        ranges = await fixed_ranges(kafka, topic, selection.partition, begins, until, lanes)  # 1
    id = f"{datetime.now(UTC):%Y-%m-%dT%H%M}-{secrets.token_hex(2)}"
    run = Run(id, by, why, selection, reapply, topic_name, ranges)
    await runs.begin(ground.connection, run)  # 2
    return run


def group_of(settings: Settings, id: str) -> str:
    """Name of the replay's consumer group, and its transactional id."""
    return f"{settings.worker_group}.replay.{id}"


async def publish(ground: Ground, id: str, says: Says, warn: Warn) -> Run:
    """Go on with a replay until everything is published. Raises Superseded, Fatal, and what aiokafka and asyncpg raise."""
    settings = ground.settings
    run = await runs.find(ground.connection, id)
    _refuse_foreign(run, settings)
    if run.state in ("published", "done"):
        return run
    producer = ReplayProducer(
        settings.bootstrap_servers, group_of(settings, id), run.topic, ground.input.max_message_bytes
    )
    try:
        await producer.start()  # 3
        run = await runs.find(ground.connection, id)
        if run.state == "cancelled":
            raise runs.cancelled(run)
        if run.state == "running":
            publishing = _Publishing(ground, run, producer, says, warn)
            await publishing.run()
            run = await runs.all_published(ground.connection, run)
    except (KafkaError, TimeoutError) as error:
        # who was stopped for a while may hear of its time-outs before it hears that it was fenced
        now = await runs.find(ground.connection, id)
        if now.state == "running":
            raise
        raise runs.ended_elsewhere(now) from error
    finally:
        await producer.stop()
    return run


async def wait_until_decided(ground: Ground, run: Run, says: Says, warn: Warn) -> Run:
    """Until the workers have decided everything that was published; the outcome is kept then."""  # 6
    moved, done = time.monotonic(), -1
    while run.state == "published":
        progress = await runs.progress(ground.connection, run)
        says("deciding", progress.done, progress.total)
        if progress.done > done:
            moved, done = time.monotonic(), progress.done
        elif time.monotonic() > moved + _QUIET_SECONDS:
            moved = float("inf")
            warn(
                "the workers decide nothing: do they run? `measurement-updates lanes list` shows how far they are"
            )
        if progress.waiting_for:
            await asyncio.sleep(_POLL_EVERY)
            continue
        result = await runs.outcome(ground.connection, run, pending=0)
        run = await runs.finish(ground.connection, run, result)
    if run.state == "done":
        await delete_group(ground.settings, group_of(ground.settings, run.id))
    return run


async def cancel(ground: Ground, id: str, by: str) -> Run:
    """Nothing more is published once this returns. Raises Fatal where there is nothing to cancel."""
    settings = ground.settings
    run = await runs.cancel(ground.connection, id, by)
    name = group_of(settings, id)
    producer = ReplayProducer(settings.bootstrap_servers, name, run.topic, ground.input.max_message_bytes)
    try:
        await producer.start()  # fences the process that publishes, if one does
        counts = Counts()
        for at in (await group_offsets(settings, name, _partitions(run))).values():
            counts = _sum(counts, _read_metadata(at[1])[0])
        run.counts = counts
        await runs.keep_counts(ground.connection, run)
    finally:
        await producer.stop()
    return run


def _refuse_foreign(run: Run, settings: Settings) -> None:
    if run.topic != settings.worker_updates_topic:
        raise Fatal(
            f"replay {run.id} is one of topic {run.topic}; WORKER_UPDATES_TOPIC says {settings.worker_updates_topic}"
        )


def _partitions(run: Run) -> list[TopicPartition]:
    return [TopicPartition(run.topic, partition) for partition in sorted(run.ranges)]


@dataclass(slots=True)
class _Position:
    """How far one partition of the range is."""

    next_offset: int
    counts: Counts
    selector: Selector

    @property
    def committed(self) -> tuple[int, str]:
        metadata = {**asdict(self.counts), "latest_arrival": self.selector.latest_arrival}
        return self.next_offset, orjson.dumps(metadata).decode()


class _Publishing:
    """Steps 4 and 5 of one run."""

    def __init__(self, ground: Ground, run: Run, producer: ReplayProducer, says: Says, warn: Warn) -> None:
        self._ground = ground
        self._run = run
        self._producer = producer
        self._says = says
        self._warn = warn
        self._noted_at = 0.0

    async def run(self) -> None:
        run, ground = self._run, self._ground
        self._lanes = await present_lanes(ground.connection, ground.settings, ground.cluster)
        self._positions = await self._where_it_is()  # 4
        self._moved: set[TopicPartition] = set()
        async with broker(ground.settings) as kafka:
            topic = await self._topic(kafka)
            ends = {tp: run.ranges[tp.partition][1] for tp in topic.partitions}
            value_bytes = max(ground.settings.worker_max_event_bytes, ground.input.max_message_bytes)
            self._tell()
            async with aclosing(kafka.read([topic], ends, value_bytes)) as pieces:
                async for tp, next_offset, records in pieces:
                    self._note_missed(tp, topic.first[tp])
                    await self._take(tp, next_offset, records)  # 5
            for tp in topic.partitions:  # where nothing came any more
                self._note_missed(tp, topic.first[tp])
        await self._note(self._total())

    async def _topic(self, kafka: Broker) -> Topic:
        """What is left to read of it."""
        topic = await kafka.topic(self._run.topic)
        there, log_ends = topic.first, await kafka.stable_ends(topic)
        for tp, position in self._positions.items():
            if max(position.next_offset, self._run.ranges[tp.partition][1]) > log_ends.get(tp, 0):
                raise Fatal(
                    f"{tp.topic}/{tp.partition} ends at {log_ends.get(tp, 0)}, before the end of the range that replay"
                    f" {self._run.id} has fixed: it can't be the same log. Give it up: measurement-updates replay"
                    f" cancel {self._run.id}"
                )
        topic.partitions = [tp for tp in topic.partitions if tp in self._positions]
        topic.first = {tp: self._positions[tp].next_offset for tp in topic.partitions}
        for tp in topic.partitions:
            first = min(there[tp], self._run.ranges[tp.partition][1])
            if first > topic.first[tp]:  # retention was quicker than whoever goes on with this
                self._note_missed(tp, first)
                topic.first[tp] = first
        return topic

    async def _where_it_is(self) -> dict[TopicPartition, _Position]:
        run, ground = self._run, self._ground
        committed = await group_offsets(ground.settings, group_of(ground.settings, run.id), _partitions(run))
        if not committed and run.counts.published:
            raise Fatal(
                f"how far replay {run.id} is isn't known any more: Kafka has let its group's offsets expire"
                f" (offsets.retention.minutes). Give it up (measurement-updates replay cancel {run.id}) and begin"
                " another one: what was applied meanwhile is a duplicate"
            )
        positions = {}
        for tp in _partitions(run):
            next_offset, counts, arrival = run.ranges[tp.partition][0], Counts(), 0
            if tp in committed:
                next_offset, metadata = committed[tp]
                counts, arrival = _read_metadata(metadata)
            selector = Selector(
                run.selection,
                run.id if run.reapply else None,
                ground.input.max_message_bytes,
                max(
                    arrival,
                    await arrival_before(ground.connection, self._lanes.get(tp.partition), next_offset),
                ),
            )
            positions[tp] = _Position(next_offset, counts, selector)
        return positions

    def _note_missed(self, tp: TopicPartition, first: int) -> None:
        position = self._positions[tp]
        first = min(first, self._run.ranges[tp.partition][1])
        if first > position.next_offset:
            missed = first - position.next_offset
            self._warn(
                f"{tp.topic}/{tp.partition}: retention has taken the records {position.next_offset} to {first - 1}"
                " before they were read"
            )
            position.counts.missed += missed
            position.next_offset = first

    async def _take(self, tp: TopicPartition, next_offset: int, records: Sequence[Any]) -> None:
        """Records of one partition, in transactions of at most WORKER_BATCH_RECORDS."""
        position = self._positions[tp]
        at_once = self._ground.settings.worker_batch_records
        pieces = [records[at : at + at_once] for at in range(0, len(records), at_once)] or [[]]
        for number, piece in enumerate(pieces, 1):
            end = next_offset if number == len(pieces) else piece[-1].offset + 1
            chosen = await self._choose(tp, position, piece)
            publishable = [record for record in chosen if record.fault is None]
            for record in chosen:
                if record.fault is not None:
                    self._warn(f"{record.place} can't be published again: {record.fault}")
            position.next_offset = end
            position.counts.read += len(piece)
            position.counts.selected += len(chosen)
            position.counts.published += len(publishable)
            position.counts.unpublishable += len(chosen) - len(publishable)
            self._moved.add(tp)
            if publishable:
                await self._commit(publishable)
            if time.monotonic() - self._noted_at > _NOTE_EVERY:
                await self._note(self._total())
            self._tell()

    async def _choose(self, tp: TopicPartition, position: _Position, records: Sequence[Any]) -> list[Again]:
        if not records:
            return []
        lane = self._lanes.get(tp.partition)
        decided = await decided_between(
            self._ground.connection, lane, records[0].offset, records[-1].offset + 1
        )
        return position.selector.choose(records, decided, lane.next_to_apply if lane else 0)

    async def _commit(self, records: Sequence[Again]) -> None:
        async def keep(written: Sequence[runs.Written]) -> None:
            await runs.note_written(self._ground.connection, self._run, written)

        await self._producer.publish(records, {tp: self._positions[tp].committed for tp in self._moved}, keep)
        self._moved.clear()

    async def _note(self, counts: Counts) -> None:
        self._run.counts = counts
        await runs.note(self._ground.connection, self._run)
        self._noted_at = time.monotonic()

    def _total(self) -> Counts:
        counts = Counts()
        for position in self._positions.values():
            counts = _sum(counts, position.counts)
        return counts

    def _tell(self) -> None:
        done = sum(
            position.next_offset - self._run.ranges[tp.partition][0]
            for tp, position in self._positions.items()
        )
        self._says("publishing", done, self._run.total)


def _sum(left: Counts, right: Counts) -> Counts:
    return Counts(*(getattr(left, name) + getattr(right, name) for name in asdict(left)))


def _read_metadata(metadata: str) -> tuple[Counts, int]:
    stated: Mapping[str, int] = orjson.loads(metadata or "{}")
    return Counts(**{name: stated.get(name, 0) for name in asdict(Counts())}), stated.get("latest_arrival", 0)
