"""A system whose workers' deaths are noticed soon, and with rows to update."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from tests.faults.load import Load, seed
from tests.faults.states import Log
from tests.system import System, system
from worker.stack import Stack

SESSION_TIMEOUT_MS = 1_500


@pytest_asyncio.fixture
async def lab(stack: Stack, migrated_url: str) -> AsyncIterator[System]:
    """Two partitions; a worker that is silent for 1.5 s loses its own."""
    async with system(
        stack.kafka_bootstrap_servers, migrated_url, worker_session_timeout_ms=SESSION_TIMEOUT_MS
    ) as built:
        yield built


@pytest_asyncio.fixture
async def load(lab: System) -> Load:
    return Load(lab, await seed(lab), seed=20_260_101)


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[Sequence[Log]]:
    """For as many as four workers."""
    with ExitStack() as opened:
        yield [opened.enter_context(Log(tmp_path / f"log-{number}")) for number in range(4)]


@pytest.fixture
def log(logs: Sequence[Log]) -> Log:
    return logs[0]
