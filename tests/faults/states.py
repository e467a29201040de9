"""Named states to wait for, each in bounded time."""

import asyncio
import subprocess
from collections.abc import Awaitable, Callable

from tests.system import System


async def until(state: Callable[[], Awaitable[bool]], what: str, timeout: float = 20) -> None:
    """Look until it holds. Raises AssertionError after `timeout` seconds."""
    try:
        async with asyncio.timeout(timeout):
            while not await state():  # noqa: ASYNC110  # it comes true in other processes
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {timeout:.0f} s: {what}") from None


async def applied_up_to(system: System) -> int:
    """Records decided, over all partitions."""
    found = await system.database.fetchval(
        "SELECT coalesce(sum(next_to_apply), 0)::bigint FROM measurement_updates.lanes WHERE retired_at IS NULL"
    )
    return int(found)


async def applied(system: System, more: int) -> None:
    """Until that many more records are decided than now."""
    wanted = await applied_up_to(system) + more

    async def reached() -> bool:
        return await applied_up_to(system) >= wanted

    await until(reached, f"{wanted} records applied")


async def exit_code(process: "subprocess.Popen[bytes]", timeout: float = 20) -> int:
    """Wait until it has ended, without blocking the loop."""

    async def over() -> bool:
        return process.poll() is not None

    await until(over, "the process has ended", timeout)
    assert process.returncode is not None
    return process.returncode
