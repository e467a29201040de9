"""The verification itself.

1. fix the point up to which everything is compared: the input's ends; wait until they are answered, where that is wanted
2. take a snapshot of the database
3. *then* ask how far the group is: what is answered by that is decided in the snapshot, and its answers are in the topics
4. keep what is stored, and compare the rows with their last answers
5. fix the ends of the answers' topics; read the input up to the point, and the answers up to those ends
6. look for what is missing
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import Any

from aiokafka import TopicPartition

from worker.errors import Fatal
from worker.settings import Settings
from worker.verification.answers import AnswerChecks
from worker.verification.context import Context
from worker.verification.input_log import InputLog
from worker.verification.ledger import Known, Ledger
from worker.verification.missing import look_for_what_is_missing
from worker.verification.received import received
from worker.verification.remaining import Remaining
from worker.verification.report import Report
from worker.verification.snapshot import Lane, Snapshot, compare, snapshot
from worker.verification.topics import Broker, Topic, broker

Progress = Callable[[str, int, int], None]
"""Hears what is being done, how much of it is done, and how much there is."""
Ends = Mapping[TopicPartition, int]

_WAIT_STEP = 0.5


async def verify(
    settings: Settings,
    *,
    allow_repeats: bool = False,
    wait: timedelta | None = None,
    examples: int = 5,
    progress: Progress | None = None,
) -> Report:
    """Compare the input log, the answers and the database, as they are now. Nothing is written, no group joined.

    allow_repeats: the same answer once more is no finding (the group was rewound, or the database put back).
    wait: until everything that is in the input now is answered; what still isn't then makes the report not ok.

    Raises DependencyAway, Fatal, SettingsError, and what aiokafka and asyncpg raise. Memory stays bounded: it needs about
    400 bytes a record in a temporary file.
    """
    says = progress or _silent
    report = Report(max_examples=examples)
    async with broker(settings) as kafka:
        topic = await kafka.topic(settings.worker_updates_topic)
        updated = await kafka.topic(settings.worker_updated_topic)
        rejected = await kafka.topic(settings.worker_rejected_topic)
        cluster = await kafka.cluster_and_compacted(updated, rejected)
        upto = await kafka.stable_ends(topic)  # 1
        if wait is not None:
            report.waited_in_vain = not await _answered_in_time(settings, kafka, topic, upto, wait, says)
        with Ledger() as ledger:
            async with snapshot(settings.dsn) as shot:  # 2
                _refuse_foreign(shot.lanes, topic.name, cluster, settings.worker_group)
                log = InputLog(topic, upto, shot.lanes, await kafka.committed(topic))  # 3
                context = _context(settings, report, ledger, log, Remaining(updated, rejected), allow_repeats)
                await _read_database(context, shot, says)  # 4
            ends = await kafka.latest_ends(updated, rejected)  # 5
            log.ended(await kafka.latest_ends(topic))
            await _read_input(context, kafka, upto, says)
            await _read_answers(context, kafka, updated, rejected, ends, says)
            ledger.all_answers()
            look_for_what_is_missing(context)  # 6
    return report


def _silent(what: str, done: int, total: int) -> None:
    pass


def _context(
    settings: Settings,
    report: Report,
    ledger: Ledger,
    log: InputLog,
    remaining: Remaining,
    allow_repeats: bool,
) -> Context:
    identities, history = _ms(settings.worker_identity_retention), _ms(settings.worker_history_retention)
    latest = max((lane.latest_arrival for lane in log.lanes), default=0)
    return Context(
        report, ledger, log, remaining, allow_repeats, identities, horizon=latest - max(identities, history)
    )


def _ms(duration: timedelta) -> int:
    return duration // timedelta(milliseconds=1)


async def _answered_in_time(
    settings: Settings, kafka: Broker, topic: Topic, upto: Ends, wait: timedelta, says: Progress
) -> bool:
    ends = time.monotonic() + wait.total_seconds()
    total = sum(upto[tp] - topic.first[tp] for tp in topic.partitions)
    while True:
        async with snapshot(settings.dsn) as shot:
            log = InputLog(topic, upto, shot.lanes, await kafka.committed(topic))
        left = sum(max(0, upto[tp] - log.partitions[tp.partition].answered_to) for tp in topic.partitions)
        says("waiting for answers", total - left, total)
        if left == 0:
            return True
        if time.monotonic() >= ends:
            return False
        await asyncio.sleep(min(_WAIT_STEP, max(0.0, ends - time.monotonic())))


def _refuse_foreign(lanes: Sequence[Lane], topic: str, cluster: str, group: str) -> None:
    for lane in lanes:
        if (
            lane.topic == topic
            and not lane.retired
            and (lane.cluster, lane.consumer_group) != (cluster, group)
        ):
            raise Fatal(
                f"this database applies {topic} from Kafka cluster {lane.cluster} in group {lane.consumer_group};"
                f" expected cluster {cluster} and group {group}: look at KAFKA_BOOTSTRAP_SERVERS, WORKER_GROUP and"
                " DATABASE_URL"
            )


async def _read_database(context: Context, shot: Snapshot, says: Progress) -> None:
    stored, rows = await shot.sizes(context.log.lanes)
    done = 0
    async for piece in shot.stored(context.log.lanes, context.log.lanes_answered_to):
        context.ledger.keep_stored(piece)
        done += len(piece)
        says("reading what is stored", done, stored)
    context.ledger.all_stored()
    done = 0
    async for some in shot.rows():
        for row in some:
            _check_row(context, row)
        done += len(some)
        says("comparing rows", done, rows)


def _check_row(context: Context, row: Mapping[str, Any]) -> None:
    compared = compare(row)
    report, fault = context.report, compared.fault
    if fault is None and context.ledger.has_successor(row["answer_lane"], row["answer_offset"]):
        fault = "a later answer is stored than the one that the row names as its last"
    if fault is not None:
        report.found("unequal_rows", f"measurement {row['id']}: {fault}")
        return
    report.not_checked += compared.not_checked
    report.edited_elsewhere += compared.edited_elsewhere


async def _read_input(context: Context, kafka: Broker, upto: Ends, says: Progress) -> None:
    topic = context.log.topic
    progress = _Reading("reading the input", topic.partitions, topic.first, upto, says)
    async with aclosing(kafka.read([topic], upto)) as pieces:
        async for tp, next_offset, records in pieces:
            context.ledger.keep_records(
                Known(
                    tp.partition,
                    record.offset,
                    context.log.arrival(tp.partition, record.offset, record.timestamp, record.timestamp_type),
                    received(record.key, record.value, record.headers, topic.name),
                )
                for record in records
            )
            context.report.records += len(records)
            progress.reached(tp, next_offset)


async def _read_answers(
    context: Context, kafka: Broker, updated: Topic, rejected: Topic, ends: Ends, says: Progress
) -> None:
    checks = AnswerChecks(context, updated.name)
    progress = _Reading("reading the answers", list(ends), {**updated.first, **rejected.first}, ends, says)
    async with aclosing(kafka.read([updated, rejected], ends)) as pieces:
        async for tp, next_offset, records in pieces:
            for record in records:
                checks.take(tp, record)
            progress.reached(tp, next_offset)


class _Reading:
    """How much of some partitions is read, in offsets."""

    def __init__(
        self, what: str, partitions: Sequence[TopicPartition], first: Ends, ends: Ends, says: Progress
    ) -> None:
        self._what = what
        self._left = {tp: max(0, ends[tp] - first[tp]) for tp in partitions}
        self._ends = ends
        self._total = sum(self._left.values())
        self._says = says

    def reached(self, tp: TopicPartition, offset: int) -> None:
        self._left[tp] = self._ends[tp] - offset
        self._says(self._what, self._total - sum(self._left.values()), self._total)
