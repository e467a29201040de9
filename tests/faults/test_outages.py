"""Postgres or Kafka away, at start and under way: the worker waits, says for what, and goes on by itself."""

from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from tests.faults.checker import check
from tests.faults.load import Load
from tests.faults.servers import Servers
from tests.faults.states import Log, applied, shared, stops
from tests.system import System


@pytest.mark.own_servers
@pytest.mark.parametrize(
    ("server", "reason", "drain_timeout"),
    [
        ("postgres", "Postgres can't be reached", "20s"),
        pytest.param("kafka", "Kafka can't be reached", "6s", marks=pytest.mark.thorough),
    ],
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
    with ExitStack() as running:
        worker, stopped = (
            running.enter_context(lab.process(log.file, WORKER_DRAIN_TIMEOUT=drain_timeout))
            for log in logs[:2]
        )
        async with load.running():
            await shared(lab)
            await applied(lab, more=100)
            async with servers.without(server):
                late, stopped_early = (running.enter_context(lab.process(log.file)) for log in logs[2:])
                await logs[0].says("lane waiting")
                for log in logs[2:]:
                    await log.says(reason)
                await stops(stopped)
                await stops(stopped_early)
            if server == "postgres":
                await lab.reconnect()
            await applied(lab, more=100)
        verdicts = await check(lab)
        await shared(lab)
        await stops(worker)
        await stops(late)
    assert verdicts.total == load.count
    for log in logs:
        assert len(log.events()) < 60  # not a flood
