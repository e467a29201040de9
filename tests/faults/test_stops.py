"""SIGTERM ends a worker with exit code 0, whatever it is doing; what it has begun it finishes."""

from tests.faults.checker import check
from tests.faults.load import Load
from tests.faults.states import Log, applied, held, lanes_wait, stops
from tests.system import System


async def test_a_stop_under_load_finishes_what_is_begun_and_notes_it_answered(
    lab: System, load: Load
) -> None:
    await load.publish(3_000)
    with lab.process(WORKER_BATCH_RECORDS="100") as worker:
        await applied(lab, more=300)
        await stops(worker)
    rows = await lab.database.fetch("SELECT * FROM measurement_updates.lanes")
    assert all(row["next_to_apply"] == row["next_to_answer"] for row in rows)
    assert {tp.partition: offset for tp, offset in (await lab.committed()).items()} == {
        row["partition"]: row["next_to_apply"] for row in rows
    }
    assert sum(row["next_to_apply"] for row in rows) < load.count  # it stopped under load
    async with lab.worker():
        verdicts = await check(lab)
    assert verdicts.total == load.count


async def test_a_stop_before_the_consumer_has_started_is_not_lost(lab: System, log: Log) -> None:
    with lab.process(log.file) as worker:
        await log.says("worker starts")
        await stops(worker)
    assert log.said("lane running") == 0  # it hadn't begun


async def test_a_stop_while_a_partition_is_taken_over_is_not_lost(lab: System, load: Load, log: Log) -> None:
    await load.publish(100)
    async with lab.worker():
        await check(lab)
    async with held(lab, "SELECT FROM measurement_updates.lanes FOR UPDATE"):
        with lab.process(log.file, WORKER_DRAIN_TIMEOUT="6s") as worker:
            await lanes_wait(lab, count=2)
            await stops(worker)


async def test_a_stop_while_a_row_is_locked_elsewhere_is_not_lost(lab: System, load: Load) -> None:
    await load.publish(100)
    async with held(lab, "SELECT FROM cell_measurements FOR UPDATE"):
        with lab.process(WORKER_DRAIN_TIMEOUT="6s") as worker:
            await lanes_wait(lab)
            await stops(worker)
    async with lab.worker():
        verdicts = await check(lab)
    assert verdicts.total == load.count
