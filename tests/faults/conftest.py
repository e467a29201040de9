"""Systems whose workers' deaths are noticed soon, rows to update, and drills."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from tests.conftest import fresh_database
from tests.faults.drill import Drill
from tests.faults.load import Load, seed
from tests.faults.servers import Servers, running_servers
from tests.faults.states import Log
from tests.system import System, system
from worker.schema import migrate
from worker.stack import Stack

SESSION_TIMEOUT_MS = 1_500


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "own_servers: a Kafka and a Postgres that the test may take away")
    config.addinivalue_line("markers", "partitions(n): of the topics, instead of two")
    config.addinivalue_line("markers", "spread: the load sends each update to a partition by chance")
    config.addinivalue_line("markers", "thorough: takes long; `make faults` runs it (--thorough)")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--thorough"):
        thorough = [item for item in items if item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=thorough)
        items[:] = [item for item in items if item not in thorough]


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with running_servers() as running:
        yield running


@pytest_asyncio.fixture
async def lab(request: pytest.FixtureRequest) -> AsyncIterator[System]:
    """A worker that is silent for 1.5 s loses its partitions."""
    own = request.node.get_closest_marker("own_servers") is not None
    stack: Stack = request.getfixturevalue("servers").stack if own else request.getfixturevalue("stack")
    asked = request.node.get_closest_marker("partitions")
    async with fresh_database(stack, "template0") as url:
        connection = await asyncpg.connect(url)
        await migrate(connection)
        await connection.close()
        async with system(
            stack.kafka_bootstrap_servers,
            url,
            worker_session_timeout_ms=SESSION_TIMEOUT_MS,
            worker_partitions=asked.args[0] if asked else 2,
        ) as built:
            yield built


@pytest_asyncio.fixture
async def load(request: pytest.FixtureRequest, lab: System) -> Load:
    spread = request.node.get_closest_marker("spread") is not None
    return Load(lab, await seed(lab), seed=_seed(request), spread=spread)


@pytest.fixture
def drill(
    request: pytest.FixtureRequest,
    lab: System,
    load: Load,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> Drill:
    rounds = request.config.getoption("--fault-rounds")
    return Drill(lab, load, rounds, _seed(request), tmp_path, record_property)


def _seed(request: pytest.FixtureRequest) -> str:
    return f"{request.node.nodeid} {request.config.getoption('--fault-seed')}"


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[Sequence[Log]]:
    """For as many as four workers."""
    with ExitStack() as opened:
        yield [opened.enter_context(Log(tmp_path / f"log-{number}")) for number in range(4)]


@pytest.fixture
def log(logs: Sequence[Log]) -> Log:
    return logs[0]
