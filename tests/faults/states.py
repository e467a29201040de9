"""Named states to wait for, each in bounded time."""

import json
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient

from tests.system import System, until


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


async def shared(lab: System, *workers: "subprocess.Popen[bytes]") -> None:
    """Until two workers, or all of these, have a partition each."""
    wanted = {str(worker.pid) for worker in workers}

    async def have_one_each() -> bool:
        rows = await lab.database.fetch(
            "SELECT DISTINCT owner FROM measurement_updates.lanes WHERE owner <> ''"
        )
        owners = {row["owner"].rpartition(":")[2] for row in rows}
        return owners == wanted if wanted else len(owners) == 2

    await until(have_one_each, f"the workers {wanted or 'two'} have a partition each")


@asynccontextmanager
async def held(system: System, query: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """Somebody else's transaction that has run this and stays open."""
    connection = await asyncpg.connect(system.settings.dsn)
    try:
        async with connection.transaction():
            await connection.execute(query)
            yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def administering(system: System) -> AsyncIterator[AIOKafkaAdminClient]:
    """The broker, as its operators see it."""
    admin = AIOKafkaAdminClient(bootstrap_servers=system.settings.bootstrap_servers)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def lanes_wait(system: System, count: int = 1) -> None:
    """Until so many lanes wait for a lock."""

    async def waiting() -> bool:
        found = await system.database.fetch(
            """SELECT FROM pg_stat_activity WHERE datname = current_database()
               AND application_name LIKE 'measurement-updates lane%' AND wait_event_type = 'Lock'"""
        )
        return len(found) >= count

    await until(waiting, f"{count} lanes wait for a lock")


async def stops(worker: "subprocess.Popen[bytes]") -> None:
    """SIGTERM ends it in good order."""
    worker.send_signal(signal.SIGTERM)
    assert await exit_code(worker) == 0


class Log:
    """What a worker process says, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.file = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._path.read_text().splitlines() if line.startswith("{")]

    def said(self, words: str) -> int:
        """How often."""
        return sum(words in json.dumps(event) for event in self.events())

    async def says(self, words: str, timeout: float = 20) -> None:
        async def said() -> bool:
            return self.said(words) > 0

        await until(said, f"the log says {words!r}, it said {self.events()}", timeout)
