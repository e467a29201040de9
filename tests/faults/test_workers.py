"""Workers that die, stall, join and leave under load: nothing is lost, nothing doubled, nothing out of order."""

import signal

import pytest

from tests.faults.drill import Drill
from tests.faults.states import exit_code, shared, stops


@pytest.mark.parametrize(
    "point",
    [
        "between_commits",
        *(
            pytest.param(point, marks=pytest.mark.thorough)
            for point in ("before_postgres_commit", "in_kafka_transaction", "after_kafka_commit")
        ),
    ],
)
async def test_a_worker_is_killed_at_a_crash_point(drill: Drill, point: str) -> None:
    async with drill.under_load(f"SIGKILL at {point}"):
        successor = drill.start_worker()
        await drill.flowing()
        for _ in drill.rounds:
            await stops(successor)
            killed = drill.start_worker(WORKER_CRASH_AT=f"{point}:{drill.chance.randrange(1, 20)}")
            assert await exit_code(killed) == -signal.SIGKILL
            successor = drill.start_worker()
            await drill.recovered()


async def test_a_worker_is_killed_at_random(drill: Drill) -> None:
    async with drill.under_load("SIGKILL at random"):
        victim, other = drill.start_worker(), drill.start_worker()
        for _ in drill.rounds:
            await shared(drill.system, victim, other)
            await drill.flowing(more=drill.chance.randrange(100, 1_000))
            victim.kill()
            victim, other = other, drill.start_worker()
            await drill.recovered()


async def test_a_worker_is_stopped_past_its_session_and_goes_on(drill: Drill) -> None:
    """Its successor has its partitions by then: it must do no harm, and rejoin."""
    async with drill.under_load("SIGSTOP past the session, then SIGCONT"):
        workers = [drill.start_worker(), drill.start_worker()]
        for _ in drill.rounds:
            await shared(drill.system, *workers)
            await drill.flowing(more=drill.chance.randrange(100, 1_000))
            stalled = drill.chance.choice(workers)
            stalled.send_signal(signal.SIGSTOP)
            await drill.recovered()
            stalled.send_signal(signal.SIGCONT)
            await drill.flowing()
        await shared(drill.system, *workers)
        for worker in workers:
            assert worker.poll() is None


@pytest.mark.partitions(3)
async def test_workers_join_and_leave_in_good_order_and_not(drill: Drill) -> None:
    async with drill.under_load("two workers join, one leaves, one is killed"):
        workers = [drill.start_worker()]
        for _ in drill.rounds:
            workers += [drill.start_worker(), drill.start_worker()]
            await shared(drill.system, *workers)
            await drill.flowing()
            await stops(workers.pop(0))
            await drill.recovered()
            workers.pop(drill.chance.randrange(2)).kill()
            await drill.recovered()
