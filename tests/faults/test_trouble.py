"""Postgres and Kafka are there, but refuse: sessions end, rows are locked, the database is read-only, the group is moved."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence

import pytest
from aiokafka.errors import KafkaError

from tests.faults.checker import check
from tests.faults.load import Load, seed
from tests.faults.states import Log, held, lanes_wait
from tests.system import Header, Place, System, until
from worker.answer import Answer
from worker.emit import Emitter

LANES = "datname = current_database() AND application_name LIKE 'measurement-updates lane%'"


async def test_a_statement_that_is_cancelled_is_tried_again(lab: System, load: Load, log: Log) -> None:
    with lab.process(log.file):
        async with held(lab, "SELECT FROM cell_measurements WHERE id = 'm-3' FOR UPDATE"):
            await load.publish(300)
            await lanes_wait(lab)
            await lab.database.execute(
                f"SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE {LANES} AND wait_event_type = 'Lock'"
            )
            await log.says("canceling statement due to user request")
            await lanes_wait(lab)  # the same transaction, tried again
        verdicts = await check(lab)
    assert verdicts.total == load.count


async def test_a_lane_outlives_a_library_that_cancels_what_it_cleans_up(
    lab: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch fails first: the task group around its two loops has then asked for a cancellation of its own."""
    emit, stop = Emitter.emit, Emitter.stop
    failed: list[Emitter] = []

    async def failing_once(self: Emitter, answers: Sequence[Answer], next_offset: int) -> None:
        if answers and not failed:
            failed.append(self)
            raise KafkaError("no")
        await emit(self, answers, next_offset)

    async def cancelled_once(self: Emitter) -> None:
        await stop(self)
        if self in failed:
            raise asyncio.CancelledError

    monkeypatch.setattr(Emitter, "emit", failing_once)
    monkeypatch.setattr(Emitter, "stop", cancelled_once)
    await lab.seed("m-1")
    async with lab.worker():
        await lab.publish("m-1", {"notes": "x"}, partition=0)
        await lab.settled()
        assert [answer.model["notes"] for answer in await lab.answers()] == ["x"]
    assert len(failed) == 1


async def test_an_empty_database_is_waited_for_and_nothing_is_judged(lab: System, log: Log) -> None:
    await lab.publish("m-1", {"notes": "x"})
    with lab.process(log.file):

        async def taken_over_often() -> bool:
            epochs = await lab.database.fetch("SELECT epoch FROM measurement_updates.lanes")
            return max((row["epoch"] for row in epochs), default=0) >= 3

        await until(taken_over_often, "the lane has tried it three times")
        assert log.said("table cell_measurements is empty") == 1  # and not each time
        await seed(lab, 2)
        [answer] = await lab.answers()
    assert answer.model["notes"] == "x"


async def test_a_rewound_group_gets_every_answer_again_byte_for_byte(lab: System, load: Load) -> None:
    await load.publish(1_000)
    async with lab.worker():
        await check(lab)
    rows = await lab.rows()
    await lab.rewind()
    async with lab.worker():
        await lab.settled()
    sent: defaultdict[Place, list[tuple[str, bytes | None, bytes | None, tuple[Header, ...]]]] = defaultdict(
        list
    )
    for answer in await lab.answers():
        sent[answer.place].append((answer.topic, answer.key, answer.value, answer.raw_headers))
    assert len(sent) > 800
    for place, (first, *again) in sent.items():
        assert again == [first], place
    assert await lab.rows() == rows
