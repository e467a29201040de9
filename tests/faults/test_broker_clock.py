"""The broker's clock, which stamps every arrival, is wrong for a while: it goes back, and it goes ahead."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
import pytest_asyncio

from tests.faults.broker_clock import KafkaWithClock
from tests.faults.drill import Drill
from tests.faults.test_input_log import decide
from worker.stack import Stack

RIGHT = timedelta()


@pytest.fixture(scope="module")
def broker() -> Iterator[KafkaWithClock]:
    with KafkaWithClock() as running:
        yield running


@pytest.fixture(scope="module")
def stack(stack: Stack, broker: KafkaWithClock) -> Stack:
    """Its Kafka is the one whose clock can be set."""
    return replace(stack, kafka_bootstrap_servers=broker.bootstrap_servers)


@pytest_asyncio.fixture
async def clock(broker: KafkaWithClock) -> AsyncIterator[KafkaWithClock]:
    yield broker
    await broker.set_right()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("fault", "step"), [("minutes", timedelta(minutes=3)), ("hours", timedelta(hours=5))]
)
async def test_the_clock_goes_back_and_ahead_again(
    drill: Drill, clock: KafkaWithClock, fault: str, step: timedelta
) -> None:
    """Arrivals don't go back with it: the naive model would foretell other rows."""
    async with drill.under_load(f"broker's clock goes back by {fault}"):
        drill.start_worker()
        for _ in drill.rounds:
            await drill.flowing()
            before = await stamp(drill)
            await clock.step_back(-step)
            assert await stamp(drill) < before
            await drill.recovered()
            clock.step_ahead(RIGHT)
            await drill.recovered()
        assert drill.logs[0].said("lane stopped") == 0


@pytest.mark.thorough
async def test_the_clock_is_2_minutes_ahead_and_the_lanes_go_on(drill: Drill, clock: KafkaWithClock) -> None:
    async with drill.under_load("broker's clock goes 2 min ahead"):
        drill.start_worker()
        for _ in drill.rounds:
            await drill.flowing()
            before = await stamp(drill)
            clock.step_ahead(timedelta(minutes=2))
            assert await stamp(drill) >= before + timedelta(minutes=2)
            await drill.recovered()
            await clock.step_back(RIGHT)
            await drill.recovered()
        assert drill.logs[0].said("lane stopped") == 0


@pytest.mark.thorough
async def test_the_clock_is_10_minutes_ahead_for_a_while_and_an_operator_accepts_it(
    drill: Drill, clock: KafkaWithClock
) -> None:
    """The last records of the log are stamped right again by then."""
    async with drill.under_load("broker's clock goes 10 min ahead, accepted"):
        drill.start_worker()
        for _ in drill.rounds:
            await drill.flowing()
            clock.step_ahead(timedelta(minutes=10))
            await both_lanes_stop(drill)
            await clock.step_back(RIGHT)
            await drill.published(more=500)
            await decide(drill, "accept", 0)
            await drill.recovered(decide(drill, "accept", 1))


@pytest.mark.thorough
async def test_the_clock_is_just_beyond_5_minutes_ahead_and_the_time_comes(
    drill: Drill, clock: KafkaWithClock
) -> None:
    async with drill.under_load("broker's clock goes 5 min ahead, the time comes"):
        drill.start_worker()
        for _ in drill.rounds:
            await drill.flowing()
            clock.step_ahead(timedelta(minutes=5, seconds=4))
            await both_lanes_stop(drill)
            await clock.step_back(RIGHT)
            await drill.recovered()


async def both_lanes_stop(drill: Drill) -> None:
    await drill.says("more than 5 minutes ahead of the database's clock")
    for partition in range(2):
        await drill.says(f"measurement-updates lanes accept {drill.system.updates}/{partition} --why")


async def stamp(drill: Drill) -> timedelta:
    """Of one more record, since 1970."""
    record = await drill.system.publish("m-0", {})
    return timedelta(milliseconds=record.timestamp)
