"""Taking a partition over: from here on nobody else can write for it, and everything already decided is answered."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
from aiokafka import TopicPartition

from worker.answer import Answer, AnswerForm
from worker.apply import LanePosition, digest_of
from worker.database import Connection, close, connect_lane
from worker.emit import Emitter
from worker.errors import Fatal, LaneStopped, Superseded
from worker.input_log import InputLog
from worker.lane_states import LaneStates
from worker.lane_watch import LaneWatch
from worker.plan import Ground
from worker.predecessors import Predecessors
from worker.record import DecodeLimits
from worker.settings import Settings
from worker.sql import queries
from worker.stored import stored_answers
from worker.turns import Turns


@dataclass(frozen=True, slots=True)
class LaneParts:
    """What every lane is built from."""

    settings: Settings
    cluster: str
    owner: str
    """Host and process, for operators."""
    form: AnswerForm
    limits: DecodeLimits
    input_log: InputLog
    pool: "asyncpg.Pool[asyncpg.Record]"
    states: LaneStates
    turns: Turns
    watch: LaneWatch


@dataclass(slots=True)
class TakenOver:
    """A partition that is ours."""

    connection: Connection
    emitter: Emitter
    position: LanePosition
    ground: Ground
    predecessors: Predecessors
    answered: int
    """Every record below is known to be answered."""


EmitInOrder = Callable[[TakenOver, Sequence[Answer], int], Awaitable[None]]


@asynccontextmanager
async def take_over(tp: TopicPartition, parts: LaneParts, emit: EmitInOrder) -> AsyncIterator[TakenOver]:
    """1. make sure that the group still counts us in (a stopped process that wakes up must not fence its successor)
    2. start the producer: fences the former owner in Kafka and settles its last transaction
    3. end the former owner's session in Postgres, and raise the epoch: it can't write there either
    4. only now ask for the committed offset: it can't move any more
    5. send again what is decided and isn't known to be answered, from what is stored
    6. see that the log is the one that was applied

    Raises LaneStopped (an operator decides), Superseded, Fatal, and what asyncpg and aiokafka raise.
    """
    settings, input_log = parts.settings, parts.input_log
    async with AsyncExitStack() as stack:
        await input_log.confirm_membership()  # 1

        form = parts.form
        emitter = Emitter(
            settings.bootstrap_servers,
            settings.worker_group,
            tp,
            min(form.max_updated_bytes, form.max_rejected_bytes),
        )
        stack.push_async_callback(emitter.stop)
        await emitter.start()  # 2

        connection = await connect_lane(settings.dsn, application=f"measurement-updates lane {tp.partition}")
        stack.push_async_callback(close, connection)
        row = await connection.fetchrow(queries()["find_lane"], tp.topic, tp.partition)
        if row is None:
            row = await _begin(connection, tp, parts, await input_log.committed(tp))
        _refuse_foreign(row, parts)
        await connection.fetch(queries()["end_former_owner"], row["lane"])
        row = await connection.fetchrow(queries()["raise_epoch"], row["lane"], parts.owner)  # 3
        if row is None:
            raise Superseded("an operator has just restarted this log's lane")

        lane = row["lane"]
        position = LanePosition(
            lane, row["epoch"], row["next_to_apply"], row["latest_arrival"], row["accepted_until"]
        )
        ground = Ground(
            lane,
            tp.partition,
            form,
            int(settings.worker_identity_retention.total_seconds() * 1000),
        )
        predecessors = Predecessors(lane, parts.pool, input_log)
        taken = TakenOver(connection, emitter, position, ground, predecessors, row["next_to_answer"])

        committed = await input_log.committed(tp)  # 4
        # beyond what is applied it says nothing of this lane: it is of the log before a restart, or of the database before
        # it was put back, or somebody has moved it
        if committed is not None and committed > position.next_to_apply:
            committed = None
        begin = row["next_to_answer"] if committed is None else committed
        async for stored in stored_answers(
            connection, lane, form, tp.partition, begin, position.next_to_apply
        ):  # 5
            await emit(taken, stored.answers, stored.next_offset)
        if committed is None:
            # else the next worker would have to guess: say at once where it stands
            await emit(taken, [], position.next_to_apply)
        taken.answered = position.next_to_apply

        await check_log(tp, row, input_log)  # 6
        yield taken


async def check_log(tp: TopicPartition, row: Any, input_log: InputLog) -> None:
    """Is this the log that was applied? Raises LaneStopped with what an operator can do about it."""
    first = await check_ends(tp, row, input_log)
    last = row["last_offset"]
    if last is None or last < first:
        return
    record = await input_log.record_at(tp, last)
    if record is None or digest_of(record) != row["last_digest"] or record.timestamp != row["last_timestamp"]:
        raise LaneStopped(
            f"record {tp.topic}/{tp.partition}/{last} is another one than the one that was applied: this can't be the"
            f" same log (deleted and recreated?). Put the old log back, or, {_restart(tp)}"
        )


async def check_ends(tp: TopicPartition, row: Any, input_log: InputLog) -> int:
    """Has the log what was applied, and what comes next? Returns the offset of its first record. Raises LaneStopped."""
    ends = await input_log.ends(tp)
    name = f"{tp.topic}/{tp.partition}"
    applied = row["next_to_apply"]
    if applied > ends.end:
        raise LaneStopped(
            f"{name} ends at {ends.end}, but was applied up to {applied}: this can't be the log that was applied"
            f" (deleted and recreated, or truncated?). Put the old log back, or, {_restart(tp)}"
        )
    if applied < ends.first:
        raise LaneStopped(
            f"{name} begins at {ends.first}, but the database has applied it only up to {applied}: retention has taken"
            f" the records {applied} to {ends.first - 1}. Restore a newer backup of the database, or go on without them:"
            f" measurement-updates lanes skip {name} --why …"
        )
    return ends.first


def _restart(tp: TopicPartition) -> str:
    return f"if it is a new log: measurement-updates lanes restart {tp.topic}/{tp.partition} --why …"


async def _begin(connection: Connection, tp: TopicPartition, parts: LaneParts, committed: int | None) -> Any:
    """A log that this database doesn't know: it is applied from its first record on, if that is all of it."""
    ends = await parts.input_log.ends(tp)
    if committed is not None and ends.first > 0:
        name = f"{tp.topic}/{tp.partition}"
        raise LaneStopped(
            f"this database has never applied {name}, the group has (up to {committed}), and retention has taken the"
            f" records before {ends.first}: restore a backup of the database, or begin with what is left:"
            f" measurement-updates lanes restart {name} --why …"
        )
    sql = queries()
    await connection.execute(
        sql["begin_lane"], tp.topic, tp.partition, parts.cluster, parts.settings.worker_group, ends.first
    )
    return await connection.fetchrow(sql["find_lane"], tp.topic, tp.partition)


def _refuse_foreign(row: Any, parts: LaneParts) -> None:
    ours = (parts.cluster, parts.settings.worker_group)
    if (row["cluster"], row["consumer_group"]) != ours:
        raise Fatal(
            f"this database applies {row['topic']} from Kafka cluster {row['cluster']} in group"
            f" {row['consumer_group']}; this worker is of cluster {ours[0]} and group {ours[1]}. Point it at the right"
            " broker and database (WORKER_GROUP, KAFKA_BOOTSTRAP_SERVERS, DATABASE_URL), or give this log up:"
            f" measurement-updates lanes restart {row['topic']}/{row['partition']} --why …"
        )
