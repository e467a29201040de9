"""What a lane says is kept in its row, whatever stands in the way, and nothing waits for it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from aiokafka import TopicPartition

from tests.faults.states import held
from tests.system import System, until
from worker.lane_states import LaneStates

TP = TopicPartition("t", 0)


async def begin_lane(lab: System, owner: str) -> None:
    await lab.database.execute(
        """INSERT INTO measurement_updates.lanes
               (topic, partition, cluster, consumer_group, next_to_apply, next_to_answer, owner)
           VALUES ('t', 0, 'c', 'g', 0, 0, $1)""",
        owner,
    )


async def row(lab: System) -> dict[str, Any]:
    found = await lab.database.fetchrow("SELECT * FROM measurement_updates.lanes WHERE topic = 't'")
    assert found is not None
    return dict(found)


async def becomes(lab: System, state: str) -> None:
    async def it_is() -> bool:
        return bool((await row(lab))["state"] == state)

    await until(it_is, f"the lane's state is {state}")


@asynccontextmanager
async def keeping(lab: System, owner: str) -> AsyncIterator[LaneStates]:
    async with asyncpg.create_pool(lab.settings.dsn, min_size=0, max_size=2) as pool:
        states = LaneStates(pool, owner)
        task = asyncio.create_task(states.keep())
        try:
            yield states
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def test_the_latest_word_is_kept_with_its_reason_and_the_last_error_stays(lab: System) -> None:
    await begin_lane(lab, "a:1")
    async with keeping(lab, "a:1") as states:
        states.say(TP, "waiting", "Postgres: away")
        await becomes(lab, "waiting")
        waiting = await row(lab)
        assert (waiting["waits_for"], waiting["last_error"]) == ("Postgres: away", "Postgres: away")
        assert waiting["state_since"] == waiting["last_error_at"]
        states.say(TP, "stopped", "x")
        states.say(TP, "running", "")
        await becomes(lab, "running")
        running = await row(lab)
        assert (running["waits_for"], running["last_error"]) == (None, "x"), "however short it was"
        assert waiting["last_error_at"] < running["last_error_at"] <= running["state_since"]
        assert running["state_since"] > waiting["state_since"]


async def test_a_lane_of_another_owner_is_left_alone(lab: System) -> None:
    await begin_lane(lab, "a:1")
    async with keeping(lab, "b:2") as states:
        states.say(TP, "stopped", "not mine")
        states.say(TopicPartition("t", 7), "stopped", "nobody's")
        await states.flush(timeout=20)
        assert not states._unwritten
    assert (await row(lab))["state"] is None


async def test_a_row_that_its_lane_holds_is_not_waited_for_and_written_later(lab: System) -> None:
    await begin_lane(lab, "a:1")
    async with keeping(lab, "a:1") as states:
        async with held(lab, "SELECT FROM measurement_updates.lanes WHERE topic = 't' FOR UPDATE"):
            states.say(TP, "running", "")
            assert await states._write() is False, "it came back at once"
            waiting = await lab.database.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            assert waiting == 0
            assert (await row(lab))["state"] is None
        await becomes(lab, "running")


async def test_what_could_not_be_written_is_written_once_postgres_is_there_again(lab: System) -> None:
    await begin_lane(lab, "a:1")
    async with keeping(lab, "a:1") as states:
        await lab.database.execute("ALTER TABLE measurement_updates.lanes RENAME TO away")
        states.say(TP, "waiting", "first")
        states.say(TP, "running", "")
        assert await states._write() is False
        await lab.database.execute("ALTER TABLE measurement_updates.away RENAME TO lanes")
        await becomes(lab, "running")
