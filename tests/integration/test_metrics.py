"""What Prometheus is told, of what has happened."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from tests.asking import ANY_PORT, Told, address_of, metrics, tells
from tests.faults.states import Log
from tests.system import System


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with Log(tmp_path / "log") as opened:
        yield opened


async def publish(lab: System) -> None:
    """Three applied, one a duplicate, two rejected; all through partition 0."""
    await lab.seed("m-1")
    for id in ("1", "2", "1"):
        await lab.update("m-1", {"notes": "x"}, id=id)
    await lab.publish("m-1", {"notes": "y"})
    await lab.publish("m-1", b"{")
    await lab.publish("m-1", None)


async def test_events_are_counted_by_what_became_of_them(lab: System, log: Log) -> None:
    await publish(lab)
    with lab.process(log.file, WORKER_HTTP=ANY_PORT):
        address = await address_of(log)
        await lab.settled()
        told = await tells(
            address,
            lambda told: told.one("open_rejections", code="empty_event") == 1,
            "the database was asked",
        )
    assert told.one("events_total", outcome="applied", code="") == 3
    assert told.one("events_total", outcome="duplicate", code="") == 1
    assert told.one("events_total", outcome="rejected", code="invalid_json") == 1
    assert told.one("events_total", outcome="rejected", code="empty_event") == 1
    assert told.one("open_rejections", code="invalid_json") == 1
    assert told.one("answers_total") == 5
    assert told.one("batch_records_sum") == 6
    assert (told.one("batch_bytes_sum") or 0) > 6 * 200
    batches = told.one("batch_records_count")
    assert batches == told.one("stage_seconds_count", stage="decode")
    assert batches == told.one("stage_seconds_count", stage="plan")
    assert batches == told.one("stage_seconds_count", stage="apply")
    assert (told.one("stage_seconds_count", stage="emit") or 0) >= 1
    assert told.one("take_overs_total") == 2
    assert told.one("database_known") == 1
    assert told["process_resident_memory_bytes", ()] > 1e7


async def test_each_partition_tells_its_state_and_how_far_it_is(lab: System, log: Log) -> None:
    await publish(lab)
    ends = {tp.partition: end for tp, end in (await lab.committed()).items()}
    assert set(ends.values()) == {None}
    with lab.process(log.file, WORKER_HTTP=ANY_PORT):
        address = await address_of(log)
        await lab.settled()
        committed = await lab.committed()

        def caught_up(told: Told) -> bool:
            return all(
                told.one("lane_state", partition=partition, state="running") == 1
                and told.one("lane_state", partition=partition, state="stopped") == 0
                and told.one("lag_records", partition=partition) == 0
                and told.one("lag_seconds", partition=partition) == 0
                and told.one("unanswered_seconds", partition=partition) == 0
                for partition in ("0", "1")
            )

        told = await tells(address, caught_up, "both partitions run and have no lag")
        for tp, offset in committed.items():
            for point in ("applied", "answered"):
                assert told.one("next_offset", partition=str(tp.partition), point=point) == (offset or 0)
        assert told.one("live") == 1
        assert told.one("ready") == 1


async def test_what_a_lane_waits_for_counts_as_lag_and_as_retries(lab: System, log: Log) -> None:
    """Somebody else holds the row: `lock_timeout` ends the wait, and it is tried again."""
    await lab.seed("m-1")
    holder = await asyncpg.connect(lab.settings.dsn)
    try:
        with lab.process(log.file, WORKER_HTTP=ANY_PORT):
            address = await address_of(log)
            await tells(address, lambda told: told.one("ready") == 1, "it is ready")
            async with holder.transaction():
                await holder.execute("SELECT FROM cell_measurements FOR UPDATE")
                sent = await lab.publish("m-1", {"notes": "x"})
                partition = str(sent.partition)
                told = await tells(
                    address,
                    lambda told: told.one("retries_total", cause="postgres 55") == 1,
                    "it was tried again",
                )
                assert (told.one("lag_seconds", partition=partition) or 0) > 5
                assert (told.one("unanswered_seconds", partition=partition) or 0) > 5
                assert told.one("lag_records", partition=partition) == 1
                assert told.one("lane_state", partition=partition, state="waiting") == 1
                assert told.one("stage_failures_total", stage="apply") == 1
                assert told.one("ready") == 0
                assert told.one("live") == 1
            told = await tells(
                address, lambda told: told.one("lag_records", partition=partition) == 0, "it goes on"
            )
            assert told.one("unanswered_seconds", partition=partition) == 0
    finally:
        await holder.close()


async def test_a_partition_that_another_worker_has_is_told_by_that_one_only(
    lab: System, tmp_path: Path
) -> None:
    with (
        Log(tmp_path / "1") as first,
        Log(tmp_path / "2") as second,
        lab.process(first.file, WORKER_HTTP=ANY_PORT),
    ):
        one = await address_of(first)
        await tells(one, lambda told: len(partitions(told)) == 2, "it has both partitions")
        with lab.process(second.file, WORKER_HTTP=ANY_PORT):
            two = await address_of(second)
            await tells(one, lambda told: len(partitions(told)) == 1, "it has one partition")
            await tells(two, lambda told: len(partitions(told)) == 1, "it has the other one")
            assert partitions(await metrics(one)) | partitions(await metrics(two)) == {"0", "1"}


def partitions(told: Told) -> set[str]:
    return {dict(labels)["partition"] for name, labels in told if name.endswith("lane_state_seconds")}


async def test_rows_that_retention_removes_are_counted(lab: System, log: Log) -> None:
    """A partition to which nobody writes holds nothing back."""
    await publish(lab)
    async with lab.worker():
        await lab.settled()
    # as if it had happened two days ago, and one more event came now
    two_days = int(timedelta(days=2).total_seconds() * 1000)
    await lab.database.execute(
        "UPDATE measurement_updates.applied_updates SET arrival = arrival - $1::bigint", two_days
    )
    await lab.publish("m-1", {"notes": "z"})
    environment = {"WORKER_IDENTITY_RETENTION": "1d", "WORKER_HISTORY_RETENTION": "1d"}
    async with lab.worker():
        await lab.settled()
    with lab.process(log.file, WORKER_HTTP=ANY_PORT, **environment):
        address = await address_of(log)
        await tells(
            address,
            lambda told: told.one("retention_removed_rows_total", table="applied_updates") == 3,
            "three are removed",
        )
    assert await lab.database.fetchval("SELECT count(*) FROM measurement_updates.applied_updates") == 1
