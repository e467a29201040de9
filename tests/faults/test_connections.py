"""Connections that are cut, refused, slow, or dead without a word, to Kafka, to Postgres, to both."""

from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from urllib.parse import urlsplit, urlunsplit

import pytest
import pytest_asyncio

from tests.faults.drill import Drill
from tests.faults.proxy import ProxiedKafka, Proxy, Way
from tests.faults.states import administering, stops
from tests.system import until
from worker.stack import Stack
from worker.stack.service import ReservedPort


@pytest.fixture(scope="module")
def broker() -> Iterator[ProxiedKafka]:
    with closing(Proxy()) as proxy, ProxiedKafka(proxy) as running:
        yield running


@pytest.fixture(scope="module")
def stack(stack: Stack, broker: ProxiedKafka) -> Stack:
    """Its Kafka has a way through a proxy as well."""
    return replace(stack, kafka_bootstrap_servers=broker.bootstrap_servers)


STRANDED: list[tuple[Way, ...]] = [("to_server",), ("to_client",), ()]


@dataclass(slots=True)
class Network:
    """What is between the workers and their servers. The load and the checker go straight."""

    kafka: Proxy
    postgres: Proxy
    environment: dict[str, str]

    def to(self, servers: str) -> list[Proxy]:
        return {"Kafka": [self.kafka], "Postgres": [self.postgres], "both": [self.kafka, self.postgres]}[
            servers
        ]


@pytest_asyncio.fixture
async def network(drill: Drill, broker: ProxiedKafka) -> AsyncIterator[Network]:
    dsn = urlsplit(drill.system.settings.dsn)
    with closing(Proxy()) as postgres:
        login, _, _ = dsn.netloc.rpartition("@")
        environment = {
            "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{broker.proxy.port}",
            "DATABASE_URL": urlunsplit(dsn._replace(netloc=f"{login}@127.0.0.1:{postgres.port}")),
        }
        async with (
            broker.proxy.forwarding("127.0.0.1", broker.proxied_port, drill.chance),
            postgres.forwarding(dsn.hostname or "127.0.0.1", dsn.port or 5432, drill.chance),
        ):
            yield Network(broker.proxy, postgres, environment)


@pytest.mark.thorough
@pytest.mark.parametrize("servers", ["Kafka", "Postgres", "both"])
async def test_every_connection_is_cut(drill: Drill, network: Network, servers: str) -> None:
    """By RST and by FIN."""
    async with drill.under_load(f"connections cut: {servers}"):
        drill.start_worker(**network.environment)
        for _ in drill.rounds:
            for reset in (True, False):
                await drill.flowing(more=drill.chance.randrange(100, 1_000))
                for proxy in network.to(servers):
                    assert proxy.cut(reset=reset) > 0
                await drill.recovered()


async def test_connections_are_cut_and_refused_for_a_while(drill: Drill, network: Network) -> None:
    async with drill.under_load("connections refused: both"):
        drill.start_worker(**network.environment)
        for _ in drill.rounds:
            await drill.flowing()
            async with network.kafka.refusing(), network.postgres.refusing():
                network.kafka.cut()
                network.postgres.cut()
                await drill.says("lane waiting")
            await drill.recovered()


@pytest.mark.thorough
async def test_everything_is_slow(drill: Drill, network: Network) -> None:
    """The lanes go on meanwhile."""
    async with drill.under_load("connections slow: up to 0.1 s each way, 1 MB/s"):
        drill.start_worker(**network.environment)
        for _ in drill.rounds:
            await drill.flowing()
            with network.kafka.slowed(0, 0.1, 1e6), network.postgres.slowed(0, 0.1, 1e6):
                await drill.published(more=1_000)
                await drill.recovered()


@pytest.mark.thorough
async def test_the_broker_answers_later_than_the_session_allows(drill: Drill, network: Network) -> None:
    async with drill.under_load("broker slow: 0.3 to 1.5 s each way"):
        drill.start_worker(**network.environment)
        for _ in drill.rounds:
            await drill.flowing()
            with network.kafka.slowed(0.3, 1.5):
                await group_is_empty(drill)
                await drill.published(more=3_000)
            await drill.recovered()


@pytest.mark.thorough
async def test_bytes_are_held_up_for_longer_than_the_session(drill: Drill, network: Network) -> None:
    """Then all that was sent meanwhile arrives at once."""
    async with drill.under_load("connections held up: both"):
        drill.start_worker(**network.environment)
        for _ in drill.rounds:
            await drill.flowing()
            with network.kafka.holding_up(), network.postgres.holding_up():
                await group_is_empty(drill)
            await drill.recovered()


@pytest.mark.thorough
@pytest.mark.parametrize("server", ["Kafka", "Postgres"])
async def test_connections_die_without_a_word(drill: Drill, network: Network, server: str) -> None:
    """A firewall forgets them, a host is gone; new ones work."""
    async with drill.under_load(f"connections half-open: {server}"):
        drill.start_worker(**network.environment)
        for _ in drill.rounds:
            await drill.flowing()
            [proxy] = network.to(server)
            # what is lost may be the answer to a COMMIT
            assert proxy.strand(*drill.chance.choice(STRANDED)) > 0
            await drill.recovered()


async def test_the_first_broker_of_the_list_is_away(drill: Drill, network: Network) -> None:
    with closing(ReservedPort()) as nobody:
        servers = f"127.0.0.1:{nobody.number},{network.environment['KAFKA_BOOTSTRAP_SERVERS']}"
        async with drill.under_load("a broker of the list away at the start"):
            for _ in drill.rounds:
                worker = drill.start_worker(**network.environment | {"KAFKA_BOOTSTRAP_SERVERS": servers})
                await drill.flowing()
                await stops(worker)
            drill.start_worker(**network.environment)


async def group_is_empty(drill: Drill) -> None:
    """Until the broker has given its members up."""
    async with administering(drill.system) as admin:

        async def is_empty() -> bool:
            [response] = await admin.describe_consumer_groups([drill.system.settings.worker_group])
            [(_code, _group, state, *_)] = response.groups
            return bool(state == "Empty")

        await until(is_empty, "the group is empty")
