"""What a replay would do, by the worker's own judgement of the records over the rows as they are. Nothing is written."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from aiokafka import TopicPartition

from worker.database import Connection, close, connect
from worker.decode import decode
from worker.measurement import PATCHABLE, Measurement, measurement_of, read_json, same_json
from worker.partitioner import partition_of
from worker.plan import Ground as PlanGround
from worker.plan import KnownIdentity, plan
from worker.record import DecodeLimits, Rejection, Update
from worker.replay.forecast import Change, Forecast
from worker.replay.ground import Ground, Says, Warn, answer_form, now_ms, rows_as_the_worker_reads_them
from worker.replay.lanes import Lane, arrival_before, decided_between, present_lanes
from worker.replay.ranges import fixed_ranges
from worker.replay.selection import Again, Selection, Selector, read_point
from worker.settings import Settings
from worker.sql import queries
from worker.verification.topics import broker

MAX_EVENTS = 1_000_000
MAX_ROW_BYTES = 256 * 1024**2
"""Of rows and of what has become of them, in memory."""
_ROW_OVERHEAD = 3_000
_AT_ONCE = 2_000


@dataclass(slots=True)
class PretendedRecord:
    """A record as it would stand in the log."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


async def dry_run(
    ground: Ground, selection: Selection, reapply: bool, says: Says, warn: Warn, examples: int = 5
) -> Forecast:
    """Read-only, at one moment. What the database itself would refuse isn't foreseen, nor what comes in between.

    Raises Fatal, SettingsError, DependencyAway, and what aiokafka and asyncpg raise.
    """
    settings = ground.settings
    now = now_ms()
    begin = read_point("--from", selection.begin, now)
    until = None if selection.until is None else read_point("--until", selection.until, now)
    connection = await connect(settings.dsn, application="measurement-updates replay")
    try:
        await rows_as_the_worker_reads_them(connection)
        async with (
            connection.transaction(isolation="repeatable_read", readonly=True),
            broker(settings) as kafka,
        ):
            lanes = await present_lanes(connection, settings, ground.cluster)
            topic = await kafka.topic(ground.input.name)
            ranges = await fixed_ranges(kafka, topic, selection.partition, begin, until, lanes)
            ends = await kafka.stable_ends(topic)
            judge = _Judge(
                ground, connection, lanes, {tp.partition: end for tp, end in ends.items()}, now, examples
            )
            selectors = {
                partition: Selector(
                    selection,
                    "dry-run" if reapply else None,
                    ground.input.max_message_bytes,
                    await arrival_before(connection, lanes.get(partition), one[0]),
                )
                for partition, one in ranges.items()
            }
            topic.partitions = [tp for tp in topic.partitions if tp.partition in ranges]
            topic.first = {tp: ranges[tp.partition][0] for tp in topic.partitions}
            untils = {tp: ranges[tp.partition][1] for tp in topic.partitions}
            total = sum(end - first for first, end in ranges.values())
            reached = dict(topic.first)
            value_bytes = max(settings.worker_max_event_bytes, ground.input.max_message_bytes)
            async with aclosing(kafka.read([topic], untils, value_bytes)) as pieces:
                async for tp, next_offset, records in pieces:
                    await _look_at(judge, selectors[tp.partition], tp, records, warn)
                    reached[tp] = next_offset
                    done = sum(offset - ranges[at.partition][0] for at, offset in reached.items())
                    says("looking at", done, total)
                    if judge.forecast.stopped:
                        break
    finally:
        await close(connection)
    judge.compare()
    return judge.forecast


async def _look_at(
    judge: "_Judge", selector: Selector, tp: TopicPartition, records: Sequence[Any], warn: Warn
) -> None:
    forecast, lane = judge.forecast, judge.lanes.get(tp.partition)
    for at in range(0, len(records), _AT_ONCE):
        piece = records[at : at + _AT_ONCE]
        decided = await decided_between(judge.connection, lane, piece[0].offset, piece[-1].offset + 1)
        chosen = selector.choose(piece, decided, lane.next_to_apply if lane else 0)
        forecast.read += len(piece)
        forecast.selected += len(chosen)
        for again in chosen:
            if again.fault is not None:
                forecast.unpublishable += 1
                warn(f"{again.place} can't be published again: {again.fault}")
        await judge.take([again for again in chosen if again.fault is None])
        if forecast.stopped:
            return


class _Judge:
    """Rows and identities as they would be, and what becomes of each event."""

    def __init__(
        self,
        ground: Ground,
        connection: Connection,
        lanes: Mapping[int, Lane],
        ends: Mapping[int, int],
        now: int,
        examples: int,
    ) -> None:
        self.connection = connection
        self.lanes = lanes
        self.forecast = Forecast()
        self._form = answer_form(ground)
        self._settings: Settings = ground.settings
        self._limits = DecodeLimits(max_event_bytes=self._settings.worker_max_event_bytes)
        self._arrival = max([now, *(lane.latest_arrival for lane in lanes.values())])
        self._ends = dict(ends)
        self._examples = examples
        self._rows: dict[str, Measurement | None] = {}
        self._before: dict[str, tuple[int, Mapping[str, bytes | None]]] = {}
        self._bytes = 0
        self._applied: defaultdict[bytes, list[KnownIdentity]] = defaultdict(list)

    async def take(self, records: Sequence[Again]) -> None:
        """Judge these, in order."""
        judged = [(again, self._decoded(again)) for again in records]
        updates = [event for _, event in judged if isinstance(event, Update)]
        await self._load({update.measurement_id for update in updates})
        identities = await self._identities(updates)
        for again, event in judged:
            self.forecast.not_decided += not again.decided
            if isinstance(event, Rejection):
                self._rejected(again, event.code)
            else:
                self._judge(again, event, identities)
        taken = self.forecast.selected
        if taken >= MAX_EVENTS:
            self.forecast.stopped = f"it looks at {MAX_EVENTS:,} records at most: choose a smaller range"
        elif self._bytes > MAX_ROW_BYTES:
            self.forecast.stopped = (
                f"the rows that it has looked at ({len(self._rows):,} after {taken:,} records) take more than"
                f" {MAX_ROW_BYTES // 1024**2} MiB of memory: choose a smaller range"
            )

    def _decoded(self, again: Again) -> Update | Rejection:
        partition = partition_of(again.key, len(self._ends), again.partition)
        offset = self._ends[partition]
        self._ends[partition] += 1
        headers = tuple(again.headers)
        record = PretendedRecord(
            again.topic, partition, offset, self._arrival, 1, again.key, again.value, headers
        )
        return decode(record, self._arrival, self._limits)

    async def _load(self, ids: set[str]) -> None:
        missing = ids - self._rows.keys()
        if not missing:
            return
        for row in await self.connection.fetch(queries("replay.sql")["rows_as_they_are"], list(missing)):
            measurement = measurement_of(row)
            self._rows[measurement.id] = measurement
            self._before[measurement.id] = measurement.revision, measurement.fields
            texts = [measurement.model_head, *measurement.fields.values()]
            self._bytes += _ROW_OVERHEAD + sum(len(text or b"") for text in texts)
        self._rows.update(dict.fromkeys(missing - self._rows.keys()))

    async def _identities(self, updates: Sequence[Update]) -> dict[bytes, list[KnownIdentity]]:
        wanted = {update.identity for update in updates}
        wanted |= {update.plain_identity for update in updates if update.plain_identity is not None}
        found = {identity: self._applied[identity] for identity in wanted & self._applied.keys()}
        for identity, content, arrival in await self.connection.fetch(
            queries()["find_identities"], list(wanted)
        ):
            found[identity] = [*found.get(identity, ()), KnownIdentity(content, arrival)]
        return found

    def _judge(self, again: Again, update: Update, identities: dict[bytes, list[KnownIdentity]]) -> None:
        """One at a time, so that each one's fate is seen."""
        measurement = self._rows[update.measurement_id]
        is_late = measurement is not None and _leaves_alone(update, measurement)
        retention = int(self._settings.worker_identity_retention.total_seconds() * 1000)
        partition = update.record.partition
        of_this = {update.identity, update.plain_identity} & identities.keys()
        result = plan(
            [update],
            {} if measurement is None else {measurement.id: measurement},
            {identity: identities[identity] for identity in of_this if identity is not None},
            PlanGround(0, partition, self._form, retention),
        )
        forecast = self.forecast
        forecast.duplicates += result.duplicates
        if result.duplicates:
            self._example("duplicates", f"{again.place} {update.measurement_id}")
        for rejection in result.rejected:
            self._rejected(again, rejection.code, update.measurement_id)
        for applied in result.applied:
            known = KnownIdentity(update.content, update.arrival)
            self._applied[update.identity].append(known)
            if identities.get(update.identity) is not self._applied[update.identity]:
                identities.setdefault(update.identity, []).append(known)
            forecast.applied += 1
            forecast.unchanged += not applied.changed
            forecast.late += is_late
            said = f"{again.place} {update.measurement_id} r{applied.revision} {applied.changed or 'nothing changed'}"
            self._example("applied", said)
            if is_late:
                self._example("late", said)

    def _rejected(self, again: Again, code: str, measurement: str = "") -> None:
        self.forecast.rejected[code] = self.forecast.rejected.get(code, 0) + 1
        self._example(code, f"{again.place} {measurement}".rstrip())

    def _example(self, of: str, said: str) -> None:
        listed = self.forecast.examples.setdefault(of, [])
        if len(listed) < self._examples:
            listed.append(said)

    def compare(self) -> None:
        """The rows that have become others."""
        for id, (revision, before) in self._before.items():
            measurement = self._rows[id]
            assert measurement is not None
            fields = {
                name: (before[name], measurement.fields[name])
                for name in PATCHABLE
                if not _same(before[name], measurement.fields[name])
            }
            if fields:
                self.forecast.rows += 1
                if len(self.forecast.changes) < self._examples:
                    self.forecast.changes.append(Change(id, (revision, measurement.revision), fields))


def _same(before: bytes | None, after: bytes | None) -> bool:
    """As JSON values: a field that was changed there and back is another text."""
    if before is None or after is None:
        return before == after
    return before == after or same_json(before, read_json(after))


def _leaves_alone(update: Update, measurement: Measurement) -> bool:
    """Has something newer written a field of it?"""
    return any(
        (at := measurement.positions[name]) is not None and update.position < at
        for name in PATCHABLE
        if name in update.patch and not (name == "name" and update.patch[name] is None)
    )
