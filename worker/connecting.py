"""How long aiokafka may take to set a connection up.

It has no setting for it: it waits as long as for any request, and meanwhile connects to no other broker (a lock; aiokafka
issue 876). A broker that hangs, or has vanished, would hold up the way to those that have taken over from it.
"""

import asyncio
from typing import Any

import aiokafka.client as client_module
from aiokafka.conn import create_conn

_SECONDS = 5.0


def bound_connecting() -> None:
    """For every client of this process."""
    client_module.create_conn = _create_conn


async def _create_conn(*arguments: Any, **options: Any) -> Any:
    async with asyncio.timeout(_SECONDS):
        return await create_conn(*arguments, **options)
