"""What every test may use: one Kafka and one Postgres a session, a database and names of its own a test."""

import uuid
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import pytest_asyncio

from tests.system import System, system
from worker.database import migrate
from worker.settings import load_settings
from worker.stack import Stack, running_stack


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Kafka and Postgres, for the whole session: the settings', Docker's or our own (without fsync)."""
    with running_stack(load_settings(), durable=False) as running:
        yield running


@pytest.fixture
def topic_prefix() -> str:
    """A name that no other test uses, and none of an earlier session on the same broker: `t-3f2a9c41d0-`."""
    return f"t-{uuid.uuid4().hex[:10]}-"


@pytest_asyncio.fixture
async def database_url(stack: Stack) -> AsyncIterator[str]:
    """A fresh, empty database, dropped after the test."""
    name = f"t_{uuid.uuid4().hex[:16]}"
    admin = await asyncpg.connect(stack.database_url)
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        yield _database(stack, name)
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


@pytest_asyncio.fixture(scope="session")
async def migrated_template(stack: Stack) -> AsyncIterator[str]:
    """A migrated database to copy: a copy takes a tenth of the time of a migration."""
    name = f"template_{uuid.uuid4().hex[:8]}"
    admin = await asyncpg.connect(stack.database_url)
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        connection = await asyncpg.connect(_database(stack, name))
        await migrate(connection)
        await connection.close()
        yield name
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


@pytest_asyncio.fixture
async def migrated_url(stack: Stack, migrated_template: str) -> AsyncIterator[str]:
    """A fresh, migrated database, dropped after the test."""
    name = f"t_{uuid.uuid4().hex[:16]}"
    admin = await asyncpg.connect(stack.database_url)
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {migrated_template}")
        yield _database(stack, name)
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


@pytest_asyncio.fixture
async def lab(stack: Stack, migrated_url: str) -> AsyncIterator[System]:
    """Topics (two partitions), a group and a migrated database of the test's own. No worker runs yet."""
    async with system(stack.kafka_bootstrap_servers, migrated_url) as built:
        yield built


def _database(stack: Stack, name: str) -> str:
    return urlunsplit(urlsplit(stack.database_url)._replace(path=f"/{name}"))
