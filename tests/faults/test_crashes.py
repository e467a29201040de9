"""A worker that dies: nothing is lost, nothing doubled."""

import asyncio
import random
import signal

import pytest

from tests.faults.checker import check
from tests.faults.load import Load
from tests.faults.states import applied, exit_code
from tests.system import System


@pytest.mark.parametrize(
    "point", ["before_postgres_commit", "between_commits", "in_kafka_transaction", "after_kafka_commit"]
)
async def test_a_worker_killed_at_a_crash_point_loses_nothing_and_doubles_nothing(
    lab: System, load: Load, point: str
) -> None:
    await load.publish(1_000)
    with lab.process(WORKER_CRASH_AT=f"{point}:2", WORKER_BATCH_RECORDS="200") as killed:
        assert await exit_code(killed) == -signal.SIGKILL
    await load.publish(500)
    async with lab.worker():
        verdicts = await check(lab)
    assert verdicts.total == load.count
    assert min(verdicts.updated, verdicts.rejected, verdicts.duplicates) > 30


async def test_workers_killed_at_random_under_load_lose_nothing_and_double_nothing(
    lab: System, load: Load
) -> None:
    chance = random.Random(7)
    over = asyncio.Event()
    publishing = asyncio.create_task(load.keep_publishing(over))
    for _ in range(4):
        with lab.process(WORKER_BATCH_RECORDS="50") as worker:
            await applied(lab, more=chance.randrange(50, 300))
            worker.kill()
    over.set()
    await publishing
    async with lab.worker():
        verdicts = await check(lab)
    assert verdicts.total == load.count
