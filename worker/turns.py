"""How many lanes decide a batch at once. All share one event loop: with a hundred lanes at it, each step of a transaction
waits for a step of all the others, and rows stay locked for as long as a hundred batches take.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_AT_ONCE = 4
"""Enough to keep the loop busy: while some wait for Postgres, others decode and plan."""
_SECONDS = 3.0
"""Who takes longer waits for something (a lock, a database that is away), and mustn't hold up the others."""


class Turns:
    """Shared by the lanes of a worker, in the order in which they ask."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(_AT_ONCE)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        await self._free.acquire()
        held = True

        def give_back() -> None:
            nonlocal held
            if held:
                held = False
                self._free.release()

        later = asyncio.get_running_loop().call_later(_SECONDS, give_back)
        try:
            yield
        finally:
            later.cancel()
            give_back()
