"""Workers that join, leave, stall and come back: partitions change hands, and nothing else shows."""

import asyncio
import signal
from collections.abc import Iterable
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from faststream.kafka import KafkaMessage

from tests.faults.checker import check
from tests.faults.load import Load
from tests.faults.states import applied, exit_code, held, lanes_wait, shared, stops
from tests.system import System, until
from worker import subscriber
from worker.consumer import Fetched
from worker.emit import Emitter
from worker.subscriber import Lanes


async def epochs(system: System) -> list[int]:
    rows = await system.database.fetch("SELECT epoch FROM measurement_updates.lanes ORDER BY partition")
    return [row["epoch"] for row in rows]


async def test_a_worker_that_stalls_with_locks_held_keeps_nobody_waiting_and_comes_back_harmlessly(
    lab: System, load: Load, tmp_path: Path
) -> None:
    await load.publish(300)
    with (tmp_path / "log").open("wb") as log, lab.process(log) as stalled:
        await applied(lab, more=300)
        async with held(lab, "SELECT FROM cell_measurements WHERE id = 'm-9' FOR UPDATE"):
            await load.publish(300)
            await lanes_wait(lab)
            stalled.send_signal(signal.SIGSTOP)
        # now the stalled worker's sessions get their locks, and keep them
        with lab.process(log) as successor:
            await check(lab)
            await asyncio.wait_for(
                lab.database.execute("UPDATE cell_measurements SET start_time = start_time"), 5
            )
            before = await epochs(lab)
            stalled.send_signal(signal.SIGCONT)
            await shared(lab)
            await load.publish(300)
            verdicts = await check(lab)
            # it rejoins, both take over once; a ping-pong of fencing would show here
            assert all(now - then <= 3 for now, then in zip(await epochs(lab), before, strict=True))
            for worker in (stalled, successor):
                await stops(worker)
    assert verdicts.total == load.count


async def test_a_revoked_lane_that_is_slow_to_clean_up_does_not_pause_its_successor(
    lab: System, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Revoked and assigned again in the same process: the successor runs before the former one has ended."""
    may_stop, stopping = asyncio.Event(), asyncio.Event()
    stop = Emitter.stop

    async def slow_stop(emitter: Emitter) -> None:
        stopping.set()
        await may_stop.wait()
        await stop(emitter)

    monkeypatch.setattr(Emitter, "stop", slow_stop)
    async with lab.worker():
        await load.publish(100)
        await lab.settled()
        with lab.process() as other:
            await shared(lab)
            await asyncio.wait_for(stopping.wait(), 10)
            await load.publish(100)
            await lab.settled()
            may_stop.set()

            async def cleaned_up() -> bool:
                return sum(task.get_name().startswith("lane ") for task in asyncio.all_tasks()) == 1

            await until(cleaned_up, "the former lanes have ended")
            await load.publish(100)
            await lab.settled()
            await stops(other)
        await load.publish(100)
        verdicts = await check(lab)
    assert verdicts.total == load.count


async def test_answers_of_one_measurement_through_two_partitions_are_in_order_after_a_kill(
    lab: System, load: Load
) -> None:
    async def publish(count: int) -> None:
        for number in range(count):
            pending = [
                await lab.producer.send(
                    lab.updates,
                    key=b"m-%d" % (number % 3),
                    value=b'{"notes": "%d-%d"}' % (number, partition),
                    partition=partition,
                )
                for partition in (0, 1)
            ]
        await asyncio.gather(*pending)

    await publish(500)
    for point in ("between_commits:3", "in_kafka_transaction:3"):
        with lab.process(WORKER_CRASH_AT=point, WORKER_BATCH_RECORDS="50") as killed:
            assert await exit_code(killed) == -signal.SIGKILL
    with lab.process(), lab.process():
        await publish(200)
        verdicts = await check(lab, foldable=False)
    assert verdicts.updated == 1_400


async def test_what_was_fetched_before_a_rebalance_is_refused_after_it(
    lab: System, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FastStream suspends between the fetch and the handler: the partition may have had another owner by then."""
    rebalanced = asyncio.Event()
    fetched_before: list[Fetched] = []
    wrap = subscriber._wrap

    async def wrap_late(batch: tuple[Fetched, ...]) -> KafkaMessage:
        if not rebalanced.is_set():
            fetched_before.extend(batch)
            return await wrap(batch)
        late = tuple(fetched_before)
        fetched_before.clear()
        return await wrap((*late, *batch))

    monkeypatch.setattr(subscriber, "_wrap", wrap_late)
    async with lab.worker():
        await load.publish(200)
        await lab.settled()
        first = await epochs(lab)
        with lab.process() as other:
            await shared(lab)

            async def both_taken_over() -> bool:
                return all(now > once for now, once in zip(await epochs(lab), first, strict=True))

            await until(both_taken_over, "the partition that stays is taken over again, too")
            assert {fetched.partition for fetched in fetched_before if fetched.records} == {0, 1}
            before = await epochs(lab)
            rebalanced.set()
            await load.publish(100)
            verdicts = await check(lab)
            assert not fetched_before
            assert await epochs(lab) == before  # refused by the lane; the database would make it start anew
            await stops(other)
    assert verdicts.total == load.count


async def test_a_session_that_runs_out_while_partitions_are_assigned_does_no_harm(
    lab: System, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No heartbeats are sent while the listener works: another worker has the partitions when it returns."""
    assigning, may_go_on = asyncio.Event(), asyncio.Event()
    assign = Lanes.on_partitions_assigned

    async def assign_late(lanes: Lanes, assigned: Iterable[TopicPartition]) -> None:
        assigning.set()
        await may_go_on.wait()
        await assign(lanes, assigned)

    monkeypatch.setattr(Lanes, "on_partitions_assigned", assign_late)
    await load.publish(100)
    async with lab.worker():
        await asyncio.wait_for(assigning.wait(), 10)
        with lab.process() as other:
            await check(lab)
            may_go_on.set()
            await shared(lab)
            await load.publish(100)
            verdicts = await check(lab)
            await stops(other)
    assert verdicts.total == load.count
