"""How long aiokafka may take to set a connection up, and to stop a client.

It has no setting for it: it waits as long as for any request, and meanwhile connects to no other broker (a lock; aiokafka
issue 876). A broker that hangs, or has vanished, would hold up the way to those that have taken over from it.

Stopping, it waits for ever for what is in flight to a broker that is away, or raises the cancellation of its own tasks.
"""

import asyncio
from typing import Any

import aiokafka.client as client_module
from aiokafka import AIOKafkaProducer
from aiokafka.conn import create_conn
from aiokafka.errors import KafkaError

_SECONDS = 5.0
_STOP_WITHIN = 5.0


def bound_connecting() -> None:
    """For every client of this process."""
    client_module.create_conn = _create_conn


async def _create_conn(*arguments: Any, **options: Any) -> Any:
    async with asyncio.timeout(_SECONDS):
        return await create_conn(*arguments, **options)


def is_cancelled() -> bool:
    """Whether somebody wants the present task to end; if not, a CancelledError is that of a task of the library's own."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


async def stop_client(client: Any) -> None:
    """A consumer or producer that is needed no more: bounded, and whatever it says."""
    asked = _cancellations()
    try:
        async with asyncio.timeout(_STOP_WITHIN):
            await client.stop()
    except (KafkaError, TimeoutError, asyncio.CancelledError):
        await (client.client if isinstance(client, AIOKafkaProducer) else client._client).close()
        # an error here must not stand in for the cancellation, or the error, that has led here
        if _cancellations() > asked:
            raise asyncio.CancelledError from None


def _cancellations() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
