"""The database leads: a log that can't be the one that was applied stops its lane, loudly, until somebody decides."""

import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from tests.faults.states import Log, exit_code, stops
from tests.system import COMMAND, System, until
from worker.answer import AnswerForm
from worker.apply import Batch, LanePosition
from worker.database import close, connect_lane
from worker.errors import LaneStopped
from worker.pipeline import apply_batch, decode_batch
from worker.plan import Ground
from worker.record import DecodeLimits
from worker.sql import queries
from worker.topics import create_topics


async def publish(lab: System, partition: int, count: int, notes: str = "x") -> None:
    for number in range(count):
        await lab.publish(f"m-{partition}", {"notes": f"{notes} {number}"}, partition=partition)


async def answered(lab: System, partition: int) -> list[int]:
    """Offsets of the partition's records that have an answer."""
    places = [answer.place for answer in await lab.answers(count=0)]
    return sorted(offset for found, offset in places if found == partition)


async def next_to_apply(lab: System, partition: int, offset: int) -> None:
    async def is_there() -> bool:
        rows = await lab.database.fetch(
            "SELECT FROM measurement_updates.lanes WHERE partition = $1 AND next_to_apply = $2 AND retired_at IS NULL",
            partition,
            offset,
        )
        return len(rows) == 1

    await until(is_there, f"partition {partition} is applied up to {offset}")


async def noted(lab: System) -> None:
    async def is_noted() -> bool:
        rows = await lab.database.fetch(
            "SELECT FROM measurement_updates.lanes WHERE next_to_answer = 20 AND next_to_apply = 20"
        )
        return len(rows) == 2

    await until(is_noted, "all is noted as answered")


def decide(lab: System, decision: str, partition: int) -> str:
    """As an operator does."""
    done = subprocess.run(
        [
            COMMAND,
            "lanes",
            decision,
            f"{lab.updates}/{partition}",
            "--why",
            "the disk was full",
            "--by",
            "ada",
        ],
        env=lab.environment,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def decisions(lab: System) -> list[tuple[str, str, str]]:
    rows = await lab.database.fetch("SELECT * FROM measurement_updates.lane_decisions ORDER BY decided_at")
    return [(row["decision"], row["decided_by"], row["why"]) for row in rows]


async def delete_topics(lab: System, *topics: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=lab.settings.bootstrap_servers)
    await admin.start()
    try:
        await admin.delete_topics(list(topics))

        async def gone() -> bool:
            return not set(topics) & set(await admin.list_topics())

        await until(gone, "the topic is gone")
    finally:
        await admin.close()


@pytest.fixture
async def rows(lab: System) -> None:
    for partition in range(2):
        await lab.seed(f"m-{partition}")


@pytest.mark.usefixtures("rows")
async def test_records_that_retention_took_stop_their_lane_until_an_operator_skips_them(
    lab: System, log: Log
) -> None:
    await publish(lab, 0, 20)
    async with lab.worker():
        await lab.settled()
    await publish(lab, 0, 20)
    admin = AIOKafkaAdminClient(bootstrap_servers=lab.settings.bootstrap_servers)
    await admin.start()
    await admin.delete_records({TopicPartition(lab.updates, 0): RecordsToDelete(30)})
    await admin.close()
    await publish(lab, 1, 20)
    with lab.process(log.file) as worker:
        await log.says(f"measurement-updates lanes skip {lab.updates}/0 --why")
        assert log.said("retention has taken the records 20 to 29") > 0
        await next_to_apply(lab, 1, 20)  # the other partition goes on
        assert "records 20 to 29" in decide(lab, "skip", 0)
        await lab.settled()
        await stops(worker)
        assert log.said("lane stopped") == 1
    assert await answered(lab, 0) == [*range(20), *range(30, 40)]
    assert await answered(lab, 1) == [*range(20)]
    assert await decisions(lab) == [("skip", "ada", "the disk was full")]


@pytest.mark.usefixtures("rows")
async def test_a_log_made_anew_under_way_stops_its_lanes_until_an_operator_restarts_them(
    lab: System, log: Log
) -> None:
    """With fewer records than were applied, and with other ones."""
    await publish(lab, 0, 20)
    await publish(lab, 1, 20)
    with lab.process(log.file) as worker:
        await noted(lab)  # the group's offsets go with the topic: what isn't noted by then is answered again
        await delete_topics(lab, lab.updates)
        await log.says("the topic is gone")
        await create_topics(lab.settings)
        await publish(lab, 0, 10, "anew")
        await publish(lab, 1, 30, "anew")
        for partition, why in ((0, "ends at 10, but was applied up to 20"), (1, "/19 is another one")):
            await log.says(why, timeout=30)
            assert log.said(f"measurement-updates lanes restart {lab.updates}/{partition} --why") > 0
        decide(lab, "restart", 1)
        await next_to_apply(lab, 1, 30)
        decide(lab, "restart", 0)
        await next_to_apply(lab, 0, 10)
        await lab.settled()
        await stops(worker)
    assert (await lab.row("m-0"))["notes"] == "anew 9"
    assert (await lab.row("m-1"))["notes"] == "anew 29"
    assert len(await lab.answers()) == 80
    assert await decisions(lab) == [("restart", "ada", "the disk was full")] * 2


@dataclass(slots=True)
class FakeRecord:
    offset: int
    timestamp: int
    topic: str = "t"
    partition: int = 0
    timestamp_type: int = 1
    key: bytes | None = b"m-0"
    value: bytes | None = b'{"notes": "early"}'
    headers: tuple[tuple[str, bytes | None], ...] = ()


@pytest.mark.usefixtures("rows")
async def test_a_record_ahead_of_the_clock_stops_its_lane_until_an_operator_accepts_it(lab: System) -> None:
    """What comes before it is applied."""
    connection = await connect_lane(lab.settings.dsn, application="test")
    sql = queries()
    try:
        await connection.execute(sql["begin_lane"], "t", 0, "cluster", "group", 0)
        row = await connection.fetchrow(sql["find_lane"], "t", 0)
        now = int(await connection.fetchval("SELECT extract(epoch FROM clock_timestamp()) * 1000"))
        position = LanePosition(row["lane"], 0, 0, 0, 0)
        ground = Ground(row["lane"], 0, AnswerForm("t", "updated", "rejected", "worker"), 1_000)
        records: Sequence[FakeRecord] = [
            FakeRecord(0, now),
            FakeRecord(1, now + 4 * 60_000),
            FakeRecord(2, now + 6 * 60_000),
        ]

        async def apply(records: Sequence[FakeRecord]) -> list[int]:
            events = decode_batch(records, position.latest_arrival, DecodeLimits())
            batch = Batch(events, records[-1].offset + 1)
            return [
                decided.next_offset
                async for decided in apply_batch(connection, position, batch, ground, 0, waiting=print)
            ]

        with pytest.raises(
            LaneStopped, match=r"record t/0/2 is stamped .* measurement-updates lanes accept t/0"
        ):
            await apply(records)
        assert position.next_to_apply == 2
        assert (await lab.row("m-0"))["revision"] == 1
        position.accepted_until = now + 6 * 60_000
        assert await apply(records[2:]) == [3]
    finally:
        await close(connection)


async def test_a_kill_right_after_a_restart_loses_no_answer_though_the_group_stands_further_on(
    lab: System,
) -> None:
    """What the group has committed is then a word of the log before: it says nothing about the new lane's answers."""
    for _ in range(20):
        await lab.publish("m-0", b"{", partition=0)
    await lab.seed("m-0")
    async with lab.worker():
        await lab.settled()
    decide(lab, "restart", 0)
    with lab.process(WORKER_CRASH_AT="between_commits:1") as killed:
        assert await exit_code(killed) == -signal.SIGKILL
    await next_to_apply(lab, 0, 20)
    async with lab.worker():
        assert len(await lab.answers(count=40)) == 40, (
            "each is judged, and answered, once by each of the two lanes"
        )
