"""Kafka goes away, refuses, forgets or moves what is the worker's, under load: nothing is lost, doubled or out of order."""

import pytest
from aiokafka.admin import NewPartitions
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.protocol.admin import DeleteGroupsRequest

from tests.faults.drill import Drill
from tests.faults.servers import Servers
from tests.faults.states import administering, shared, stops
from tests.system import until


@pytest.mark.own_servers
async def test_the_broker_is_killed_and_started(drill: Drill, servers: Servers) -> None:
    async with drill.under_load("broker killed"):
        drill.start_worker()
        for _ in drill.rounds:
            await drill.flowing()
            async with servers.without("kafka"):
                await drill.says("lane waiting")
            await drill.recovered()


async def test_the_answers_topic_refuses_them_for_a_while(drill: Drill) -> None:
    """As a full disk does, or an operator who lowers its limit under way."""
    topic = ConfigResourceType.TOPIC, drill.system.settings.worker_updated_topic
    async with administering(drill.system) as admin, drill.under_load("writes to the answers' topic refused"):
        drill.start_worker()
        for _ in drill.rounds:
            await drill.flowing()
            await admin.alter_configs([ConfigResource(*topic, {"max.message.bytes": "100"})])
            await drill.says("lane waiting")
            await admin.alter_configs([ConfigResource(*topic, {"max.message.bytes": str(8 * 1024**2)})])
            await drill.recovered()


async def test_the_offsets_of_the_group_are_gone(drill: Drill) -> None:
    """Expired, or deleted: the database knows how far it is answered."""
    group = drill.system.settings.worker_group
    async with administering(drill.system) as admin, drill.under_load("the group's offsets gone"):
        worker = drill.start_worker()
        for _ in drill.rounds:
            await drill.flowing()
            await stops(worker)
            coordinator = await admin.find_coordinator(group)
            response = await admin._send_request_to_node(coordinator, DeleteGroupsRequest([group]))
            assert response.results == [(group, 0)]
            assert set((await drill.system.committed()).values()) == {None}
            worker = drill.start_worker()
            await drill.recovered()


@pytest.mark.partitions(1)
async def test_partitions_are_added_under_way(drill: Drill) -> None:
    """Producers send a measurement's updates to another one from then on."""
    system = drill.system
    async with administering(system) as admin, drill.under_load("partition added", foldable=False):
        workers = [drill.start_worker(), drill.start_worker()]
        for _ in drill.rounds:
            await drill.flowing()
            system.added_partitions += 1
            added = len(system.partitions()) - 1
            await admin.create_partitions({system.updates: NewPartitions(added + 1)})

            async def used(added: int = added) -> bool:
                return drill.load.ends.get(added, 0) > 100

            await until(used, f"producers send to partition {added}")
            await drill.recovered()
        await shared(system, *workers)


@pytest.mark.spread
async def test_producers_send_one_measurement_to_any_partition(drill: Drill) -> None:
    async with drill.under_load("one measurement through several partitions, worker killed", foldable=False):
        victim, other = drill.start_worker(), drill.start_worker()
        for _ in drill.rounds:
            await shared(drill.system, victim, other)
            await drill.flowing()
            victim.kill()
            victim, other = other, drill.start_worker()
            await drill.recovered()
