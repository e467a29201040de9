"""The input log loses records, or is another log than was applied: that lane stops, loudly, and the others go on."""

import asyncio
from asyncio.subprocess import DEVNULL
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from tests.faults.drill import Drill
from tests.faults.servers import Servers
from tests.faults.states import administering, stops
from tests.system import COMMAND
from worker.topics import create_topics


async def decide(drill: Drill, decision: str, partition: int) -> None:
    """As an operator does."""
    lane = f"{drill.system.updates}/{partition}"
    command = await asyncio.create_subprocess_exec(
        COMMAND, "lanes", decision, lane, "--why", "a drill", env=drill.system.environment, stdout=DEVNULL
    )
    assert await command.wait() == 0


@pytest.mark.thorough
async def test_retention_passes_what_is_applied(drill: Drill) -> None:
    lane = TopicPartition(drill.system.updates, 0)
    async with (
        administering(drill.system) as admin,
        drill.under_load("retention passes what is applied", foldable=False),
    ):
        worker = drill.start_worker()
        for _ in drill.rounds:
            await drill.flowing()
            await stops(worker)
            await drill.published(more=1_000)
            await admin.delete_records({lane: RecordsToDelete(drill.load.ends[0] - 10)})
            worker = drill.start_worker()
            await drill.says(f"measurement-updates lanes skip {lane.topic}/0 --why")
            await drill.says("retention has taken the records")
            await drill.answered(but=0)
            await drill.recovered(decide(drill, "skip", 0))


@pytest.mark.thorough
@pytest.mark.own_servers
async def test_the_log_is_truncated(drill: Drill, servers: Servers) -> None:
    """A broker that comes back without its last records (a lost disk, an unclean leader election)."""
    async with drill.under_load("input log truncated", foldable=False):
        drill.start_worker()
        for _ in drill.rounds:
            await drill.flowing()
            async with drill.load.paused():
                async with servers.without("kafka"):
                    truncate(servers.kafka.directory / "data" / f"{drill.system.updates}-0")
                    drill.forget(0)
                await drill.system.renew_producer()
            await drill.says(f"measurement-updates lanes restart {drill.system.updates}/0 --why")
            await drill.answered(but=0)
            await drill.recovered(decide(drill, "restart", 0))


def truncate(partition: Path) -> None:
    """The second half of what is there."""
    [log] = partition.glob("*.log")
    content = log.read_bytes()
    end = 0
    while end < len(content) // 2:
        end += 12 + int.from_bytes(
            content[end + 8 : end + 12], "big"
        )  # a batch: base offset, length, the rest
    log.write_bytes(content[:end])


@pytest.mark.thorough
async def test_the_topic_is_deleted_and_created_again(drill: Drill) -> None:
    system = drill.system
    async with (
        administering(system) as admin,
        drill.under_load("input topic deleted and created again", foldable=False, allow_repeats=True),
    ):
        drill.start_worker()
        for _ in drill.rounds:
            await drill.flowing()
            async with drill.load.paused():
                await admin.delete_topics([system.updates])
                await drill.says("the topic is gone")
                await create_topics(system.settings)
                drill.forget(0, 1)
            for partition in range(2):
                await drill.says(f"measurement-updates lanes restart {system.updates}/{partition} --why")
            await decide(drill, "restart", 1)
            await drill.recovered(decide(drill, "restart", 0))
