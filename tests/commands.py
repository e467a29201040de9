"""Commands as users run them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson

from tests.system import COMMAND, System


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that has ended."""

    code: int
    out: str
    errors: str

    @property
    def json(self) -> Any:
        """Its one object."""
        return orjson.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """Its objects, one a line."""
        return [orjson.loads(line) for line in self.out.splitlines()]

    @property
    def words(self) -> str:
        """What it printed, wherever lines were wrapped."""
        return " ".join(self.out.split())


async def run(lab: System, *arguments: str, **environment: str) -> Ran:
    async with begun(lab, *arguments, **environment) as process:
        out, errors = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), errors.decode())


@asynccontextmanager
async def begun(
    lab: System, *arguments: str, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Killed at the end, if it still runs."""
    process = await asyncio.create_subprocess_exec(
        COMMAND, *arguments, env={**lab.environment, **environment}, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, limit=2**24,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
