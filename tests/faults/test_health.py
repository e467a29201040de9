"""Dependencies taken away, a lane that stops: never a reason to restart, always one not to be ready."""

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from tests.asking import ANY_PORT, address_of, answers, health, tells
from tests.faults.load import Load
from tests.faults.servers import Servers
from tests.faults.states import Log, applied, stops
from tests.system import System


@pytest.mark.own_servers
@pytest.mark.parametrize(
    ("server", "reason"),
    [
        pytest.param("postgres", "Postgres can't be reached", marks=pytest.mark.thorough),
        ("kafka", "Kafka can't be reached"),
    ],
)
async def test_a_worker_that_starts_without_a_server_is_live_and_not_ready_until_it_is_there(
    servers: Servers, lab: System, log: Log, server: str, reason: str
) -> None:
    async with servers.without(server):
        with lab.process(log.file, WORKER_HTTP=ANY_PORT) as worker:
            address = await address_of(log)
            found = await answers(address, "/health/ready", 503, reason)
            assert found["phase"] == "starting"
            assert found["lanes"] == []
            assert (await health(address, "/health/live"))[0] == 200
            told = await tells(address, lambda told: told.one("ready") == 0, "it isn't ready")
            assert told.one("live") == 1
            await stops(worker)
    if server == "postgres":
        await lab.reconnect()
    with lab.process(log.file, WORKER_HTTP=ANY_PORT):
        await log.says("lane running")


@pytest.mark.own_servers
@pytest.mark.parametrize(
    ("server", "reason"), [("postgres", "waits"), pytest.param("kafka", "waits", marks=pytest.mark.thorough)]
)
async def test_a_server_that_goes_away_under_way_makes_it_unready_and_it_is_ready_again_by_itself(
    servers: Servers, lab: System, load: Load, log: Log, server: str, reason: str
) -> None:
    with lab.process(log.file, WORKER_HTTP=ANY_PORT) as worker:
        address = await address_of(log)
        await answers(address, "/health/ready", 200)
        async with load.running():
            await applied(lab, more=100)
            async with servers.without(server):
                found = await answers(address, "/health/ready", 503, reason)
                assert any(lane["do"] for lane in found["lanes"] if lane["state"] == "waiting")
                await tells(
                    address,
                    lambda told: any(name.endswith("retries_total") for name, _ in told),
                    "retries are counted by cause",
                )
                assert (await health(address, "/health/live"))[0] == 200
            if server == "postgres":
                await lab.reconnect()
            await answers(address, "/health/ready", 200)
        await stops(worker)


@pytest.mark.thorough
@pytest.mark.own_servers
async def test_without_traffic_too_a_server_that_goes_away_is_noticed(
    servers: Servers, lab: System, log: Log
) -> None:
    await lab.seed("m-1")
    with lab.process(log.file, WORKER_HTTP=ANY_PORT) as worker:
        address = await address_of(log)
        await answers(address, "/health/ready", 200)
        async with servers.without("postgres"):
            await answers(address, "/health/ready", 503, "waits")
            told = await tells(
                address, lambda told: told.one("database_known") == 0, "the database is silent"
            )
            assert told.one("open_rejections") is None
        await lab.reconnect()
        await answers(address, "/health/ready", 200)
        await tells(address, lambda told: told.one("database_known") == 1, "the database answers")
        await stops(worker)


async def test_a_lane_that_has_stopped_makes_it_unready_with_what_to_do_and_live(
    lab: System, log: Log
) -> None:
    await lab.seed("m-1")
    for _ in range(20):
        await lab.publish("m-1", {"notes": "x"}, partition=0)
    async with lab.worker():
        await lab.settled()
    for _ in range(20):
        await lab.publish("m-1", {"notes": "x"}, partition=0)
    admin = AIOKafkaAdminClient(bootstrap_servers=lab.settings.bootstrap_servers)
    await admin.start()
    await admin.delete_records({TopicPartition(lab.updates, 0): RecordsToDelete(30)})
    await admin.close()
    with lab.process(log.file, WORKER_HTTP=ANY_PORT):
        address = await address_of(log)
        found = await answers(address, "/health/ready", 503, f"{lab.updates}/0 has stopped: ")
        assert f"measurement-updates lanes skip {lab.updates}/0 --why" in found["reasons"][0]
        assert (await health(address, "/health/live"))[0] == 200
        told = await tells(
            address,
            lambda told: (
                told.one("lane_state", partition="0", state="stopped") == 1
                and told.one("lane_state", partition="1", state="running") == 1
            ),
            "one has stopped, the other runs",
        )
        assert told.one("ready") == 0
        assert told.one("live") == 1
