"""A server goes away under a replay: it ends with how to go on, and each record is published once all the same."""

import pytest

from tests.faults.checker import check
from tests.faults.servers import Servers
from tests.replays import begun, copied, ended, log_of, replay, replayed, some_records, the_replay
from tests.system import System


@pytest.mark.thorough
@pytest.mark.own_servers
@pytest.mark.parametrize("server", ["kafka", "postgres"])
async def test_a_replay_that_loses_a_server_is_gone_on_with(
    servers: Servers, lab: System, server: str
) -> None:
    await some_records(lab, 2_000)
    async with begun(lab) as (process, id), servers.without(server):
        code, _, errors = await ended(process)
        assert code == 1
        assert f"measurement-updates replay resume {id}" in errors
        assert "Traceback" not in errors
        code, _, errors = await replay(lab, "resume", id)
        assert code == 1
        assert "Kafka" in errors if server == "kafka" else "Postgres" in errors
    if server == "postgres":
        await lab.reconnect()
    assert (await the_replay(lab))["state"] == "running"
    async with lab.worker():
        run = await replayed(lab, "resume", id)
        await check(lab)
    assert (run["published"], run["outcome"]["duplicates"]) == (2_000, 2_000)
    counted = copied(await log_of(lab))
    assert (len(counted), set(counted.values())) == (2_000, {1})
