"""What every test may use: one Kafka and one Postgres a session, a database and names of its own a test."""

import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import pytest_asyncio

from tests.system import System, system
from worker.schema import migrate
from worker.settings import load_settings
from worker.stack import Stack, running_stack


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Kafka and Postgres, for the whole session: the settings', Docker's or our own (without fsync)."""
    with running_stack(load_settings(), durable=False) as running:
        yield running


@pytest_asyncio.fixture
async def database_url(stack: Stack) -> AsyncIterator[str]:
    """A fresh, empty database, dropped after the test."""
    async with fresh_database(stack, "template0") as url:
        yield url


@pytest_asyncio.fixture(scope="session")
async def migrated_template(stack: Stack) -> AsyncIterator[str]:
    """Name of a migrated database to copy: a copy takes a tenth of the time of a migration."""
    async with fresh_database(stack, "template0") as url:
        connection = await asyncpg.connect(url)
        await migrate(connection)
        await connection.close()
        yield urlsplit(url).path.removeprefix("/")


@pytest_asyncio.fixture
async def migrated_url(stack: Stack, migrated_template: str) -> AsyncIterator[str]:
    """A fresh, migrated database, dropped after the test."""
    async with fresh_database(stack, migrated_template) as url:
        yield url


@pytest_asyncio.fixture
async def lab(stack: Stack, migrated_url: str) -> AsyncIterator[System]:
    """Topics (two partitions), a group and a migrated database of the test's own. No worker runs yet."""
    async with system(stack.kafka_bootstrap_servers, migrated_url) as built:
        yield built


@asynccontextmanager
async def fresh_database(stack: Stack, template: str) -> AsyncIterator[str]:
    """Its URL; dropped at the end. No session is kept meanwhile: the server may be taken away."""
    name = f"t_{uuid.uuid4().hex[:16]}"
    await _administer(stack, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield urlunsplit(urlsplit(stack.database_url)._replace(path=f"/{name}"))
    await _administer(stack, f"DROP DATABASE {name} WITH (FORCE)")


async def _administer(stack: Stack, statement: str) -> None:
    admin = await asyncpg.connect(stack.database_url)
    try:
        await admin.execute(statement)
    finally:
        await admin.close()


def pytest_configure() -> None:
    # a shell's background jobs ignore it, and so would every process that a test starts and interrupts
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    faults = parser.getgroup("faults")
    faults.addoption("--fault-rounds", type=int, default=1, help="how often each drill injects its fault")
    faults.addoption("--thorough", action="store_true", help="also the tests that take long")
    faults.addoption("--fault-seed", default="", help="another seed, other moments and other updates")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of the drills. Here, where a run's first process looks: with several, it collects no tests itself."""
    from tests.faults.drill import table

    rows = [
        value
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        for name, value in report.user_properties
        if name == "drill" and report.when == "call"
    ]
    if rows:
        terminalreporter.section("faults")
        terminalreporter.write_line(table(rows))
