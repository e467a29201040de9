"""A Kafka and a Postgres of a test's own, which may be taken away."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager

from rich.console import Console

from worker.stack import Stack
from worker.stack.kafka import EmbeddedKafka
from worker.stack.postgres import EmbeddedPostgres


class Servers:
    """Their calls block, so they run in a thread."""

    def __init__(self, kafka: EmbeddedKafka, postgres: EmbeddedPostgres) -> None:
        self.kafka = kafka
        self.postgres = postgres

    @property
    def stack(self) -> Stack:
        return Stack(self.kafka.bootstrap_servers, self.postgres.database_url, "embedded", "embedded")

    @asynccontextmanager
    async def without(self, server: str) -> AsyncIterator[None]:
        """`kafka` is killed; `postgres` is stopped as by a crash. It is there again at the end."""
        stopped = self.kafka if server == "kafka" else self.postgres
        await asyncio.to_thread(stopped.kill)
        try:
            yield
        finally:
            await asyncio.to_thread(stopped.start)


@contextmanager
def running_servers() -> Iterator[Servers]:
    with closing(EmbeddedKafka(console=Console(quiet=True))) as kafka:
        kafka.launch()
        with EmbeddedPostgres(durable=False) as postgres:  # while Kafka is coming up
            kafka.wait_ready()
            yield Servers(kafka, postgres)
