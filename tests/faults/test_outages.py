"""Postgres or Kafka away, at start and under way: the worker waits, says for what, and goes on by itself."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import pytest_asyncio
from rich.console import Console

from tests.faults.checker import check
from tests.faults.load import Load, seed
from tests.faults.states import Log, applied, shared, stops
from tests.system import System, system
from worker.database import migrate
from worker.stack.kafka import EmbeddedKafka
from worker.stack.postgres import EmbeddedPostgres


class Servers:
    """A Kafka and a Postgres that may be taken away. Their calls block, so they run in a thread."""

    def __init__(self, kafka: EmbeddedKafka, postgres: EmbeddedPostgres) -> None:
        self.kafka = kafka
        self.postgres = postgres

    @asynccontextmanager
    async def without_postgres(self) -> AsyncIterator[None]:
        """It is stopped as by a crash, and is there again at the end."""
        await asyncio.to_thread(self.postgres.stop, "immediate")
        try:
            yield
        finally:
            await asyncio.to_thread(self.postgres.start)

    @asynccontextmanager
    async def without_kafka(self) -> AsyncIterator[None]:
        await asyncio.to_thread(self.kafka.kill)
        try:
            yield
        finally:
            await asyncio.to_thread(self.kafka.start)


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with closing(EmbeddedKafka(console=Console(quiet=True))) as kafka:
        kafka.launch()
        with EmbeddedPostgres(durable=False) as postgres:  # while Kafka is coming up
            kafka.wait_ready()
            yield Servers(kafka, postgres)


@pytest_asyncio.fixture
async def lab(servers: Servers) -> AsyncIterator[System]:
    name = f"t_{uuid.uuid4().hex[:16]}"
    admin = await asyncpg.connect(servers.postgres.database_url)
    await admin.execute(f"CREATE DATABASE {name}")
    await admin.close()
    url = urlunsplit(urlsplit(servers.postgres.database_url)._replace(path=f"/{name}"))
    connection = await asyncpg.connect(url)
    await migrate(connection)
    await connection.close()
    async with system(servers.kafka.bootstrap_servers, url, worker_session_timeout_ms=1_500) as built:
        yield built
        await built.database.close()


@pytest_asyncio.fixture
async def load(lab: System) -> Load:
    return Load(lab, await seed(lab), seed=20_260_102)


async def reconnect(lab: System) -> None:
    lab.database.terminate()
    lab.database = await asyncpg.connect(lab.settings.dsn)


@pytest.mark.parametrize(
    ("server", "reason", "drain_timeout"),
    [("postgres", "Postgres can't be reached", "20s"), ("kafka", "Kafka can't be reached", "6s")],
)
async def test_a_server_that_is_away_at_start_and_under_way_is_waited_for(
    servers: Servers,
    lab: System,
    load: Load,
    logs: Sequence[Log],
    server: str,
    reason: str,
    drain_timeout: str,
) -> None:
    """Two workers run when it goes away, two start without it; of each two one is stopped meanwhile."""
    without = servers.without_postgres if server == "postgres" else servers.without_kafka
    over = asyncio.Event()
    with ExitStack() as running:
        worker, stopped = (
            running.enter_context(lab.process(log.file, WORKER_DRAIN_TIMEOUT=drain_timeout))
            for log in logs[:2]
        )
        publishing = asyncio.create_task(load.keep_publishing(over))
        await shared(lab)
        await applied(lab, more=100)
        async with without():
            late, stopped_early = (running.enter_context(lab.process(log.file)) for log in logs[2:])
            await logs[0].says("lane waiting")
            for log in logs[2:]:
                await log.says(reason)
            await stops(stopped)
            await stops(stopped_early)
        if server == "postgres":
            await reconnect(lab)
        await applied(lab, more=100)
        over.set()
        await publishing
        verdicts = await check(lab)
        await shared(lab)
        await stops(worker)
        await stops(late)
    assert verdicts.total == load.count
    for log in logs:
        assert len(log.events()) < 60  # not a flood
