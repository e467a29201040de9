"""What every test may use: one Kafka and one Postgres a session, a database and names of its own a test."""

import uuid
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import pytest_asyncio

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
        yield urlunsplit(urlsplit(stack.database_url)._replace(path=f"/{name}"))
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()
