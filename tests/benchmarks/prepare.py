"""Fresh topics and a fresh database for a run, filled with rows and a log."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from tests.benchmarks.log import fill_log, fill_rows
from tests.system import System, system
from worker.schema import migrate


@contextlib.asynccontextmanager
async def prepared(
    servers: str,
    database_url: str,
    *,
    events: int,
    measurements: int,
    partitions: int,
    definition_bytes: int = 0,
) -> AsyncIterator[System]:
    """The same rows and the same log each time."""
    name = f"bench_{uuid.uuid4().hex[:8]}"
    admin = await asyncpg.connect(database_url)
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    url = urlunsplit(urlsplit(database_url)._replace(path=f"/{name}"))
    connection = await asyncpg.connect(url)
    await migrate(connection)
    try:
        async with system(servers, url, worker_partitions=partitions) as bench:
            await fill_rows(bench, measurements)
            await asyncio.to_thread(fill_log, bench, events, measurements, definition_bytes)
            yield bench
    finally:
        await connection.close()
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()
