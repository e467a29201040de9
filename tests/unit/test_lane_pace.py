"""When a lane decides: little waits until the batch before is answered, a whole batch doesn't."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from aiokafka import TopicPartition

from tests.unit.test_plan import LogRecord
from worker.answer import Answer
from worker.inbox import Inbox
from worker.lane import Lane
from worker.pipeline import Decided
from worker.turns import Turns

_WHOLE = 10


class PacedLane(Lane):
    """Its two loops, with a Postgres that decides at once and a Kafka that commits when it is told to."""

    def __init__(self) -> None:
        parts: Any = SimpleNamespace(turns=Turns(), watch=None)
        super().__init__(TopicPartition("updates", 0), parts)
        self._decided: asyncio.Queue[int] = asyncio.Queue()
        self._begun: asyncio.Queue[int] = asyncio.Queue()
        self.commit = asyncio.Semaphore(0)
        self.inbox = Inbox(0, _WHOLE, 10**6, pause=lambda: None, resume=lambda: None)

    async def _decide_batch(self, taken: Any, inbox: Inbox, outbox: "asyncio.Queue[Decided | None]") -> None:
        records, next_offset = inbox.take()
        self._decided.put_nowait(len(records))
        await outbox.put(Decided([], next_offset, len(records), 0, []))

    async def _emit_in_order(self, taken: Any, answers: Sequence[Answer], next_offset: int) -> None:
        self._begun.put_nowait(next_offset)
        await self.commit.acquire()

    async def decided(self) -> int:
        """How many records the next batch has."""
        return await asyncio.wait_for(self._decided.get(), 10)

    async def begun(self) -> int:
        """Up to where the next transaction of Kafka answers."""
        return await asyncio.wait_for(self._begun.get(), 10)

    def fetch(self, count: int) -> None:
        begin = self.inbox.next_offset
        records = [
            LogRecord("updates", 0, offset, 1, 1, b"k", b"v", ()) for offset in range(begin, begin + count)
        ]
        self.inbox.put(records, begin + count)

    async def run_loops(self) -> None:
        taken: Any = SimpleNamespace(answered=0, position=SimpleNamespace(next_to_apply=-1))
        outbox: asyncio.Queue[Decided | None] = asyncio.Queue(1)
        all_answered = asyncio.Event()
        all_answered.set()
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._decide(taken, self.inbox, outbox, all_answered))
            loops.create_task(self._answer(taken, outbox, all_answered))


async def test_little_waits_for_the_answers_before_it_and_is_decided_together() -> None:
    lane = PacedLane()
    loops = asyncio.create_task(lane.run_loops())
    lane.fetch(1)
    assert (await lane.decided(), await lane.begun()) == (1, 1)
    for _ in range(3):
        lane.fetch(1)
        for _ in range(20):  # whatever the two loops could do now
            await asyncio.sleep(0)
    assert lane._decided.empty()
    lane.commit.release()
    assert (await lane.decided(), await lane.begun()) == (3, 4)
    lane.commit.release()
    lane.inbox.close()
    await loops


async def test_a_whole_batch_is_decided_while_kafka_commits_the_one_before() -> None:
    lane = PacedLane()
    loops = asyncio.create_task(lane.run_loops())
    lane.fetch(1)
    assert (await lane.decided(), await lane.begun()) == (1, 1)
    lane.fetch(_WHOLE - 1)
    await asyncio.sleep(0)
    lane.fetch(1)
    assert await lane.decided() == _WHOLE
    assert lane._begun.empty()
    for _ in range(2):
        lane.commit.release()
    assert await lane.begun() == 1 + _WHOLE
    lane.inbox.close()
    await loops
