"""How many lanes decide at once, and that none can keep the others from it."""

import asyncio

import pytest

from worker import turns
from worker.turns import Turns


async def test_so_many_at_once_and_the_next_one_when_one_ends() -> None:
    shared = Turns()
    entered: asyncio.Queue[int] = asyncio.Queue()
    leave = [asyncio.Event() for _ in range(turns._AT_ONCE + 2)]

    async def lane(number: int) -> None:
        async with shared.turn():
            entered.put_nowait(number)
            await leave[number].wait()

    lanes = [asyncio.create_task(lane(number)) for number in range(len(leave))]
    assert [await entered.get() for _ in range(turns._AT_ONCE)] == list(range(turns._AT_ONCE))
    assert entered.empty()  # every lane has asked by now: they began before the first one woke us
    leave[0].set()
    await lanes[0]
    assert await entered.get() == turns._AT_ONCE
    assert entered.empty()
    lanes[-1].cancel()  # while it waits for its turn
    for event in leave:
        event.set()
    await asyncio.gather(*lanes, return_exceptions=True)
    assert shared._free._value == turns._AT_ONCE


async def test_who_takes_long_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_SECONDS", 0.01)
    shared = Turns()
    over = asyncio.Event()

    async def stuck() -> None:
        async with shared.turn():
            await over.wait()

    lanes = [asyncio.create_task(stuck()) for _ in range(turns._AT_ONCE)]
    async with asyncio.timeout(10), shared.turn():
        assert not any(lane.done() for lane in lanes)
    over.set()
    await asyncio.gather(*lanes)
    assert shared._free._value == turns._AT_ONCE
