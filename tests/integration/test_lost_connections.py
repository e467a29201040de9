"""A connection that is closed while it is used, on the worker's event loop: an error of the connection, never a defect."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import aiokafka.client
import pytest
import uvloop
from aiokafka.conn import AIOKafkaConnection, create_conn
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest

from tests.system import System
from worker.connecting import bound_connecting
from worker.database import POSTGRES_ERRORS, connect_lane, transaction


async def _on_the_workers_loop(work: Coroutine[Any, Any, None]) -> None:
    await asyncio.to_thread(uvloop.run, work)


async def test_kafka_hears_of_it_late(lab: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AIOKafkaConnection, "send", AIOKafkaConnection.send)
    monkeypatch.setattr(aiokafka.client, "create_conn", create_conn)
    bound_connecting()
    host, _, port = lab.settings.bootstrap_servers.split(",")[0].rpartition(":")

    async def use_it() -> None:
        connection = await create_conn(host, int(port))
        connection._writer.transport.abort()
        await asyncio.sleep(0)  # it is closed, and the task that reads from it hasn't run yet
        with pytest.raises(KafkaConnectionError):
            await connection.send(MetadataRequest([]))
        assert not connection.connected()

    await _on_the_workers_loop(use_it())


@pytest.mark.parametrize("turns", range(4))
async def test_postgres_hears_of_it_at_once(lab: System, turns: int) -> None:
    """Whatever the loop has got round to since: within a transaction, and for a statement alone."""

    async def use_it() -> None:
        for within in (True, False):
            connection = await connect_lane(lab.settings.dsn, application="test")
            with pytest.raises((OSError, *POSTGRES_ERRORS)):
                await (_lost_within_a_transaction if within else _lost)(connection)

    async def _lost_within_a_transaction(connection: Any) -> None:
        async with transaction(connection):
            await _lost(connection)

    async def _lost(connection: Any) -> None:
        connection._transport.abort()
        for _ in range(turns):
            await asyncio.sleep(0)
        await connection.execute("SELECT 1")

    await _on_the_workers_loop(use_it())
