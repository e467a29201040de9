"""One measurement through two partitions: its answers go out in the order in which they were applied.

Each answer names the one before it (lane and offset). It waits until the other partition's committed offset is past
that record. Postgres' commit order is total, so the waits have no cycle; they happen with no lock held.
"""

from collections.abc import Sequence

import asyncpg
from aiokafka import TopicPartition

from worker.answer import Answer
from worker.input_log import InputLog
from worker.sql import queries


class Predecessors:
    """What one lane knows of how far the others have answered."""

    def __init__(self, lane: int, pool: "asyncpg.Pool[asyncpg.Record]", input_log: InputLog) -> None:
        self._lane = lane
        self._pool = pool
        self._log = input_log
        self._answered: dict[int, int] = {}

    async def first_blocked(self, answers: Sequence[Answer]) -> int | None:
        """Index of the first answer whose predecessor isn't out yet. Raises what asyncpg and aiokafka raise."""
        asked = set()
        for index, answer in enumerate(answers):
            if answer.previous is None or answer.previous[0] == self._lane:
                continue
            lane, offset = answer.previous
            if offset < self._answered.get(lane, 0):
                continue
            if lane not in asked:
                asked.add(lane)
                self._answered[lane] = await self._ask(lane)
            if offset >= self._answered[lane]:
                return index
        return None

    async def _ask(self, lane: int) -> int:
        """The offset below which the lane's answers are out."""
        row = await self._pool.fetchrow(queries()["lane_by_id"], lane)
        if row is None or row["retired_at"] is not None:
            return 2**63  # a log that an operator has given up: nothing more comes from it
        committed = await self._log.committed(TopicPartition(row["topic"], row["partition"]))
        return int(row["next_to_answer"] if committed is None else committed)
