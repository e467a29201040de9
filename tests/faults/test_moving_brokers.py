"""Brokers of a cluster go away, killed and in good order, with what they led and coordinated for the worker."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import UnknownTopicOrPartitionError

from tests.faults.cluster import Cluster, Node, Part, running_cluster
from tests.faults.drill import Drill
from tests.faults.states import held
from tests.system import System, until
from worker.stack import Stack
from worker.topics import _Admin


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as running:
        yield running


@pytest.fixture(scope="module")
def stack(stack: Stack, cluster: Cluster) -> Stack:
    """Its Kafka is the cluster."""
    return replace(stack, kafka_bootstrap_servers=cluster.bootstrap_servers)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "part",
    ["coordinates transactions", "coordinates the group", "leads the input", "leads the answers"],
)
async def test_a_broker_is_killed(drill: Drill, cluster: Cluster, part: Part) -> None:
    async with drill.under_load(f"broker killed that {part}"):
        drill.start_worker()
        for number in drill.rounds:
            await drill.flowing()
            async with cluster.without(await whose(drill, cluster, part, number)):
                await drill.recovered(first=acknowledged_again(drill))
            await drill.recovered()


@pytest.mark.thorough
async def test_brokers_are_restarted_in_good_order(drill: Drill, cluster: Cluster) -> None:
    async with drill.under_load("brokers restarted one after the other"):
        drill.start_worker()
        for _ in drill.rounds:
            for node in cluster.nodes:
                await drill.flowing()
                async with cluster.without(node, in_good_order=True):
                    await drill.recovered(first=acknowledged_again(drill))
                await drill.recovered()


@pytest.mark.thorough
async def test_a_broker_hangs(drill: Drill, cluster: Cluster) -> None:
    """As one whose host is gone, it closes no connection. What it led moves, and the worker has to find out."""
    async with drill.under_load("broker hangs that leads the answers"):
        drill.start_worker()
        for number in drill.rounds:
            await drill.flowing()
            node = await whose(drill, cluster, "leads the answers", number)
            async with drill.load.paused(), AsyncExitStack() as hanging:
                async with held(drill.system, "SELECT FROM measurement_updates.lanes FOR UPDATE"):
                    await drill.load.publish(1_000)  # they are acknowledged, and not answered yet
                    for partition in range(2):  # the last of one may be a retry, which is never answered
                        await drill.system.publish("m-0", b"{", partition=partition)
                    hanging.enter_context(node.hanging())
                await drill.recovered()
            await cluster.is_whole()


async def test_a_broker_that_does_not_know_a_topic_yet_is_asked_again(lab: System) -> None:
    name = f"{lab.updates}-later"
    async with _Admin(lab.settings.bootstrap_servers) as admin:
        with pytest.raises(UnknownTopicOrPartitionError):
            await admin.config(name)
        asked = asyncio.create_task(admin.config(name))
        await admin.create(name, 1, 3, {"retention.ms": "4711"})
        assert (await asked)["retention.ms"] == "4711"


async def whose(drill: Drill, cluster: Cluster, part: Part, number: int) -> Node:
    """The node whose part it is now for this partition, counted round and round."""
    settings = drill.system.settings
    topic = settings.worker_updated_topic if part == "leads the answers" else settings.worker_updates_topic
    partition = TopicPartition(topic, number % settings.worker_partitions)
    return await cluster.whose(part, settings.worker_group, partition)


async def acknowledged_again(drill: Drill) -> None:
    """Until every partition has taken records after this."""
    before = dict(drill.load.ends)

    async def are_acknowledged() -> bool:
        return all(drill.load.ends[partition] > end for partition, end in before.items())

    await until(are_acknowledged, lambda: f"records after {before}, there are {drill.load.ends}", 60)
