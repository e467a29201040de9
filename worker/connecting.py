"""How long aiokafka may take to set a connection up, and to stop a client; and a connection that is lost while it is used.

It has no setting for it: it waits as long as for any request, and meanwhile connects to no other broker (a lock; aiokafka
issue 876). A broker that hangs, or has vanished, would hold up the way to those that have taken over from it.

Stopping, it waits for ever for what is in flight to a broker that is away, or raises the cancellation of its own tasks.

Until it has read that a connection is closed, it goes on writing to it. asyncio says nothing then, uvloop raises a
RuntimeError, which aiokafka takes for a defect. (asyncpg hears at once that its connection is lost, and writes no more.)
"""

import asyncio
from typing import Any

import aiokafka.client as client_module
from aiokafka import AIOKafkaProducer
from aiokafka.conn import AIOKafkaConnection, CloseReason, create_conn
from aiokafka.errors import KafkaConnectionError, KafkaError

_SECONDS = 5.0
_STOP_WITHIN = 5.0


def bound_connecting() -> None:
    """For every client of this process."""
    client_module.create_conn = _create_conn
    AIOKafkaConnection.send = _send


_send_as_it_is = AIOKafkaConnection.send


def _send(connection: Any, request: Any, expect_response: bool = True) -> Any:
    try:
        return _send_as_it_is(connection, request, expect_response)
    except RuntimeError as error:
        connection.close(reason=CloseReason.CONNECTION_BROKEN)
        raise KafkaConnectionError(f"connection to a broker lost: {error}") from error


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
