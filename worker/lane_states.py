"""What each lane does, kept in its row of `lanes` for `status`. The latest word of each lane counts; Postgres away: it is
kept and tried again. No lane ever waits for this, and a lane that is another worker's by now is left alone."""

import asyncio
import contextlib
import time
from dataclasses import dataclass

import asyncpg
import structlog
from aiokafka import TopicPartition

from worker.retry import as_worker_error, backoff
from worker.sql import queries

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Said:
    """What a lane has said last."""

    state: str
    waits_for: str
    """Empty while it runs."""
    at: float
    """By `time.monotonic`."""
    error: str | None
    """What it has waited for or stopped at last, where that isn't written yet."""
    error_at: float


class LaneStates:
    """A place for the latest word of each lane, and one task that writes them down."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", owner: str) -> None:
        """`owner`: this worker, as its lanes' rows have it."""
        self._pool = pool
        self._owner = owner
        self._unwritten: dict[TopicPartition, Said] = {}
        self._there_is_some = asyncio.Event()

    def say(self, tp: TopicPartition, state: str, waits_for: str) -> None:
        """At once; it is written by and by."""
        now, before = time.monotonic(), self._unwritten.get(tp)
        error = (waits_for, now) if waits_for or before is None else (before.error, before.error_at)
        self._unwritten[tp] = Said(state, waits_for, now, error[0] or None, error[1])
        self._there_is_some.set()

    async def keep(self) -> None:
        """For ever. Raises only a defect."""
        while True:
            await self._there_is_some.wait()
            self._there_is_some.clear()
            waits = backoff(first=0.02, cap=1.0)
            while not await self._write():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(next(waits)):
                        await self._there_is_some.wait()
                self._there_is_some.clear()

    async def flush(self, timeout: float) -> None:
        """Write what there is, once more before the end; what can't be written in time is dropped."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                for seconds in backoff(first=0.02, cap=0.1):
                    if await self._write():
                        return
                    await asyncio.sleep(seconds)

    async def _write(self) -> bool:
        """False where something is left: the lane's own transaction had the row, or Postgres is away."""
        for tp, said in list(self._unwritten.items()):
            try:
                now = time.monotonic()
                row = await self._pool.fetchrow(
                    queries("status.sql")["note_lane_state"],
                    tp.topic,
                    tp.partition,
                    self._owner,
                    said.state,
                    now - said.at,
                    said.waits_for or None,
                    said.error,
                    None if said.error is None else now - said.error_at,
                )
            except Exception as error:
                known = as_worker_error(error)
                if known is None:
                    raise
                log.debug("a lane's state isn't written yet", why=str(known))
                return False
            assert row is not None
            if (row["written"] or not row["ours"]) and self._unwritten.get(tp) is said:
                del self._unwritten[tp]
        return not self._unwritten
