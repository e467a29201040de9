"""A client that stops: what aiokafka raises then is no news, and nobody's cancellation is lost for it."""

import asyncio

import pytest
from aiokafka.errors import KafkaConnectionError

from worker.connecting import stop_client


class Client:
    """What `stop_client` needs of a consumer."""

    def __init__(self, error: BaseException | None) -> None:
        self._client = self
        self.error = error
        self.stopping = asyncio.Event()
        self.closed = False

    async def stop(self) -> None:
        self.stopping.set()
        if self.error is None:
            await asyncio.Event().wait()
        else:
            raise self.error

    async def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("error", [KafkaConnectionError("gone"), asyncio.CancelledError()])
async def test_what_the_library_raises_is_no_news(error: BaseException) -> None:
    client = Client(error)
    await stop_client(client)
    assert client.closed


async def test_who_is_cancelled_while_it_stops_is_cancelled() -> None:
    client = Client(None)
    stopping = asyncio.create_task(stop_client(client))
    await client.stopping.wait()
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert client.closed


async def test_who_stops_it_because_of_a_cancellation_stays_cancelled() -> None:
    """Ctrl-C of a command whose broker is away ends with 130, not with the broker's error."""

    async def command() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await stop_client(Client(KafkaConnectionError("gone")))

    running = asyncio.create_task(command())
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
