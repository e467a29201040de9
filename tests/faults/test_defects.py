"""Defects, ours and the libraries': the worker gets over them or stops with them, and never goes on as if nothing were."""

import asyncio
from typing import Any

import asyncpg
import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import KafkaError
from faststream.kafka import KafkaBroker

from tests.faults.checker import check
from tests.faults.load import Load
from tests.faults.states import applied, applied_up_to, held, lanes_wait
from tests.system import System, until
from worker import app, lane
from worker.app import Worker
from worker.emit import Emitter
from worker.pipeline import decode_batch
from worker.subscriber import Lanes


async def test_a_defect_in_a_lane_stops_the_worker_with_it(
    lab: System, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(lane, "decode_batch", defect)
    await load.publish(10)
    with pytest.raises(ZeroDivisionError, match="a defect"):
        await asyncio.wait_for(Worker(lab.settings).run(), 20)


async def test_a_cancellation_that_nobody_asked_for_does_not_end_a_lane_without_a_word(
    lab: System, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library may cancel its own futures; a task group takes a child's CancelledError for our wish."""
    whole, times = decode_batch, iter([True])

    def cancelled_once(*batch: Any) -> Any:
        if next(times, False):
            raise asyncio.CancelledError
        return whole(*batch)

    monkeypatch.setattr(lane, "decode_batch", cancelled_once)
    await load.publish(100)
    async with lab.worker():
        verdicts = await check(lab)
    assert verdicts.total == load.count


async def test_a_consumer_whose_fetching_has_died_stops_the_worker(
    lab: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(Fetcher, "_get_actions_per_node", defect)
    with pytest.raises(KafkaError, match="Unexpected error during data retrieval"):
        await asyncio.wait_for(Worker(lab.settings).run(), 20)


async def test_a_consumer_whose_coordination_has_died_stops_the_worker(
    lab: System, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: object) -> None:
        raise ZeroDivisionError("a defect")

    worker = Worker(lab.settings)
    running = asyncio.create_task(worker.run())
    await load.publish(10)
    await lab.settled()
    monkeypatch.setattr(GroupCoordinator, "need_rejoin", defect)
    monkeypatch.setattr(GroupCoordinator, "_do_heartbeat", refuse_once(GroupCoordinator._do_heartbeat))
    with pytest.raises(KafkaError, match="Unexpected error during coordination"):
        await asyncio.wait_for(running, 20)


async def test_a_heartbeat_that_the_broker_refuses_strangely_is_got_over(
    lab: System, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiokafka's heartbeats end with it, and it reports it again and again, but never begins with others."""
    await load.publish(100)
    async with lab.worker():
        await lab.settled()
        refuse = refuse_once(GroupCoordinator._do_heartbeat)
        monkeypatch.setattr(GroupCoordinator, "_do_heartbeat", refuse)

        async def beats_again() -> bool:
            return refuse.calls > 3

        await until(beats_again, "the group is joined anew")
        await load.publish(100)
        verdicts = await check(lab)
    assert verdicts.total == load.count


class refuse_once:
    calls = 0

    def __init__(self, call: Any) -> None:
        self._call = call

    def __get__(self, coordinator: GroupCoordinator, _: object) -> Any:
        async def call() -> bool:
            self.calls += 1
            if self.calls == 1:
                raise KafkaError("Unexpected exception in heartbeat task")
            return bool(await self._call(coordinator))

        return call


async def test_a_backlog_behind_a_locked_row_pauses_its_partition_and_no_other(
    lab: System, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    present: list[Lanes] = []

    class Observed(Lanes):
        def __init__(self, *parts: Any) -> None:
            super().__init__(*parts)
            present.append(self)

    monkeypatch.setattr(app, "Lanes", Observed)
    locked, free = (TopicPartition(lab.updates, number) for number in range(2))
    # a long session: this process is the producer, too
    settings = {"worker_batch_records": 20, "worker_session_timeout_ms": 10_000}
    async with lab.worker(**settings), asyncio.timeout(60):
        async with held(lab, "SELECT FROM cell_measurements WHERE id = 'm-0' FOR UPDATE"):
            for number in range(1_000):
                for partition, key in ((0, "m-0"), (1, "m-1")):
                    await lab.producer.send(
                        lab.updates, key=key.encode(), value=b'{"notes": "%d"}' % number, partition=partition
                    )
            await lab.producer.flush()
            await lanes_wait(lab)

            async def other_is_done() -> bool:
                return await applied_up_to(lab) >= 1_000

            await until(other_is_done, "the other partition is applied")
            [lanes] = present
            assert lanes.consumer is not None
            assert lanes.consumer.paused() == {locked}
            [waiting] = [found for found in lanes.present if found.tp == locked]
            assert waiting._inbox is not None
            assert len(waiting._inbox._records) <= 2 * 20 + 2_000  # what one fetch may hand over
        verdicts = await check(lab)
        assert lanes.consumer.paused() == set()
        assert free in lanes.consumer.assignment()
    assert verdicts.updated == 2_000


async def test_a_producer_is_thrown_away_though_its_lane_is_revoked_meanwhile(
    lab: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane that fails cleans up for seconds while a broker is away: a rebalance may well come then."""
    emitter = Emitter(lab.settings.bootstrap_servers, "group", TopicPartition(lab.updates, 0), 1024**2)
    await emitter.start()
    producer = emitter._producer
    hanging = asyncio.Event()

    async def hang() -> None:
        hanging.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(producer, "stop", hang)
    stopping = asyncio.create_task(emitter.stop())
    await hanging.wait()
    stopping.cancel()

    async def is_gone() -> bool:
        connected = any(connection.connected() for connection in producer.client._conns.values())
        return bool(producer._sender.sender_task.done()) and not connected

    await until(is_gone, "its task has ended, its connections are closed", timeout=5)
    producer._closed = True  # `hang` stood in for what says so


async def test_a_session_that_is_never_given_back_does_not_keep_a_failed_worker_alive(
    lab: System, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no SIGTERM then, and so no last resort."""

    async def keep_a_session(pool: "asyncpg.Pool[asyncpg.Record]", *_: object) -> None:
        connection = await pool.acquire()
        await connection.execute("SELECT 1")

    def defect(*_: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(app, "keep_retention", keep_a_session)
    monkeypatch.setattr(lane, "decode_batch", defect)
    await load.publish(10)
    with pytest.raises(ZeroDivisionError, match="a defect"):
        await asyncio.wait_for(Worker(lab.settings).run(), 20)


async def test_a_stop_between_the_first_assignment_and_the_end_of_the_start_ends_the_lanes(
    lab: System, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = KafkaBroker.start

    async def slow_start(broker: KafkaBroker) -> None:
        await start(broker)
        await asyncio.Event().wait()

    monkeypatch.setattr(KafkaBroker, "start", slow_start)
    await load.publish(100)
    worker = Worker(lab.settings)
    running = asyncio.create_task(worker.run())
    await applied(lab, more=100)
    worker.stop()
    await asyncio.wait_for(running, 20)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("lane ")]
    rows = await lab.database.fetch("SELECT * FROM measurement_updates.lanes")
    assert all(row["next_to_apply"] == row["next_to_answer"] for row in rows)


async def test_a_lane_that_ends_though_nobody_has_ended_it_ends_the_worker(lab: System) -> None:
    """Whatever it is that cancels it: its partition would stand still, and nothing would say so."""
    await lab.seed("m-1")
    running = asyncio.create_task(Worker(lab.settings).run())
    await lab.publish("m-1", {"notes": "x"}, partition=0)
    await lab.settled()
    name = f"lane {lab.updates}/0"
    [task] = [task for task in asyncio.all_tasks() if task.get_name() == name]
    task.cancel()
    with pytest.raises(RuntimeError, match=f"{name} was cancelled, though its partition is still ours"):
        await asyncio.wait_for(running, 30)
