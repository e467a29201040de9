"""Whoever has lost a partition can write nothing for it any more; whoever waits, waits without harm."""

import asyncio

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import TopicAuthorizationFailedError

from tests.faults.states import Log, stops
from tests.system import System, until
from worker.answer import Answer, AnswerForm, PlainAnswer
from worker.apply import Batch, LanePosition, apply
from worker.consumer import Fetched, LogConsumer
from worker.database import close, connect_lane
from worker.emit import Emitter
from worker.errors import Superseded
from worker.input_log import InputLog
from worker.pipeline import decode_batch
from worker.plan import Ground
from worker.record import DecodeLimits
from worker.retry import as_worker_error
from worker.sql import queries


async def test_a_producer_whose_successor_has_started_can_commit_nothing(lab: System) -> None:
    tp = TopicPartition(lab.updates, 0)
    former, successor = (
        Emitter(lab.settings.bootstrap_servers, lab.settings.worker_group, tp, 1024**2) for _ in range(2)
    )

    def answers(value: bytes) -> list[Answer]:
        return [PlainAnswer(0, lab.settings.worker_updated_topic, b"m-1", value, 1, None, [])]

    try:
        await former.start()
        await former.emit(answers(b"first"), 1)
        await successor.start()
        with pytest.raises(Exception) as raised:  # noqa: PT011  # what it is to us is asserted
            await former.emit(answers(b"from the grave"), 2)
        assert isinstance(as_worker_error(raised.value), Superseded)
        await successor.emit(answers(b"second"), 2)
    finally:
        await former.stop()
        await successor.stop()
    assert [answer.value for answer in await lab.answers(count=2)] == [b"first", b"second"]
    assert (await lab.committed())[tp] == 2


@pytest.mark.parametrize(("epoch", "next_to_apply"), [(0, 0), (1, 5)])
async def test_a_lane_with_an_old_epoch_or_another_offset_can_apply_nothing(
    lab: System, epoch: int, next_to_apply: int
) -> None:
    await lab.seed("m-1", notes="as it was")
    connection = await connect_lane(lab.settings.dsn, application="test")
    try:
        await connection.execute(queries()["begin_lane"], "t", 0, "cluster", "group", 0)
        row = await connection.fetchrow(queries()["find_lane"], "t", 0)
        await connection.fetchrow(queries()["raise_epoch"], row["lane"], "the owner")
        position = LanePosition(row["lane"], epoch, next_to_apply, 0, 2**62)
        ground = Ground(row["lane"], 0, AnswerForm("t", "updated", "rejected", "worker"), 1_000)
        record = ConsumerRecord("t", 0, next_to_apply, 1, 1, b"m-1", b'{"notes": "x"}', None, 3, 14, ())
        events = decode_batch([record], 0, DecodeLimits())
        with pytest.raises(Superseded):
            await apply(connection, position, Batch(events, next_to_apply + 1), ground, 0)
    finally:
        await close(connection)
    assert (await lab.row("m-1"))["notes"] == "as it was"
    assert (position.next_to_apply, position.latest_arrival) == (next_to_apply, 0)


async def test_a_lane_that_is_taken_over_while_it_writes_has_written_nothing(lab: System) -> None:
    """What it has read says that the lane is its own; what it writes waits for the one who takes the lane over."""
    await lab.seed("m-1", notes="as it was")
    connection = await connect_lane(lab.settings.dsn, application="test")
    successor = await connect_lane(lab.settings.dsn, application="successor")
    try:
        await connection.execute(queries()["begin_lane"], "t", 0, "cluster", "group", 0)
        row = await connection.fetchrow(queries()["find_lane"], "t", 0)
        position = LanePosition(row["lane"], row["epoch"], 0, 0, 2**62, locked_batches=0)
        ground = Ground(row["lane"], 0, AnswerForm("t", "updated", "rejected", "worker"), 1_000)
        record = ConsumerRecord("t", 0, 0, 1, 1, b"m-1", b'{"notes": "x"}', None, 3, 14, ())
        batch = Batch(decode_batch([record], 0, DecodeLimits()), 1)
        async with successor.transaction():
            await successor.fetchrow(queries()["raise_epoch"], row["lane"], "the successor")
            applying = asyncio.create_task(apply(connection, position, batch, ground, 0))

            async def waits() -> bool:
                query = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $1"
                return bool(await lab.database.fetchval(query, connection.get_server_pid()))

            await until(waits, "it waits for the lane's row")
        with pytest.raises(Superseded):
            await applying
    finally:
        await close(connection)
        await close(successor)
    assert (await lab.row("m-1"))["notes"] == "as it was"
    assert await lab.database.fetchval("SELECT count(*) FROM measurement_updates.applied_updates") == 0


async def test_a_batch_that_can_only_be_read_locked_is_so_after_a_take_over(
    lab: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where its rows are too large to be read together in time."""
    await lab.seed("m-1")
    monkeypatch.setitem(queries(), "read_batch", "SELECT nothing_of_the_kind")
    async with lab.worker():
        await lab.update("m-1", {"notes": "x"}, id="e-1")
        [answer] = await lab.answers()
    assert not answer.rejected


async def test_an_answer_waits_for_the_one_before_it_without_locks_and_without_holding_up_a_stop(
    lab: System, log: Log
) -> None:
    """The lane of the answer before it has decided it, and nobody sends it."""
    for partition in range(2):
        await lab.seed(f"m-{partition}")
    lane = await lab.database.fetchval(
        """INSERT INTO measurement_updates.lanes (topic, partition, cluster, consumer_group, next_to_apply, next_to_answer)
           VALUES ('elsewhere', 7, 'cluster', 'group', 10, 0) RETURNING lane"""
    )
    await lab.database.execute("SET measurement_updates.applying = on")
    await lab.database.execute(
        "UPDATE cell_measurements SET answer_lane = $1, answer_offset = 9 WHERE id = 'm-0'", lane
    )
    await lab.publish("m-0", {"notes": "x"}, partition=0)
    with lab.process(log.file, WORKER_DRAIN_TIMEOUT="6s") as worker:
        await log.says("the answer before it, through another partition, isn't out yet")
        await lab.publish("m-1", {"notes": "x"}, partition=1)
        [answer] = await lab.answers(count=1)
        assert answer.key == b"m-1"
        await lab.database.execute("UPDATE cell_measurements SET start_time = now()", timeout=5)
        await stops(worker)
    await lab.database.execute(
        "UPDATE measurement_updates.lanes SET retired_at = now() WHERE topic = 'elsewhere'"
    )
    async with lab.worker():
        assert {answer.key for answer in await lab.answers()} == {b"m-0", b"m-1"}


async def test_a_record_that_can_not_be_read_is_not_taken_for_another_one(
    lab: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    tp = TopicPartition(lab.updates, 0)
    refused = TopicAuthorizationFailedError(lab.updates)

    async def getmany(_: LogConsumer) -> dict[TopicPartition, list[Fetched]]:
        # as a real one does, it lets the loop go on: aiokafka can't stop a consumer whose tasks have never run
        await asyncio.sleep(0)
        return {tp: [Fetched(tp.topic, tp.partition, -1, -1, [], refused)]}

    monkeypatch.setattr(LogConsumer, "getmany", getmany)
    consumer = LogConsumer()
    with pytest.raises(TopicAuthorizationFailedError):
        await InputLog(consumer, lab.settings.bootstrap_servers, "group").record_at(tp, 0)
    await consumer.stop()
