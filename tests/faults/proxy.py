"""A TCP proxy of our own: connections through it are cut, refused, slowed, throttled and held up."""

import asyncio
import contextlib
import random
import socket
import struct
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Literal, Self

from rich.console import Console

from worker.stack.kafka import EmbeddedKafka
from worker.stack.service import ReservedPort

Way = Literal["to_server", "to_client"]
WAYS: tuple[Way, ...] = ("to_server", "to_client")

_CHUNK = 64 * 1024
_ON_ITS_WAY = 256
"""Chunks in each direction, then it reads no more."""


class Proxy:
    """127.0.0.1:`port` → a server, in this event loop, while it is `forwarding`. The port is its own until `close`.

    A connection that is held up or stranded looks open to both ends and to their kernels: keepalive and TCP's own timeouts
    see nothing.
    """

    def __init__(self) -> None:
        self._reserved = ReservedPort()
        self.port = self._reserved.number
        self._chance = random.Random()
        self._target = ("", 0)
        self._delay = (0.0, 0.0)
        self._bytes_a_second: float | None = None
        self._flowing = _set_event()
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], _Connection] = {}

    def close(self) -> None:
        self._reserved.close()

    @asynccontextmanager
    async def forwarding(self, host: str, port: int, chance: random.Random) -> AsyncIterator[Self]:
        """To this server; at the end every connection is cut."""
        self._target, self._chance = (host, port), chance
        await self._listen()
        try:
            yield self
        finally:
            self._refuse()
            serving = list(self._connections)
            for task in serving:
                task.cancel()
            if serving:
                await asyncio.wait(serving)

    def cut(self, *, reset: bool = True) -> int:
        """End every connection, by RST or by FIN; what is on its way is lost. How many?"""
        for connection in self._connections.values():
            for writer in (connection.to_server, connection.to_client):
                if reset:
                    _reset(writer)
                else:
                    writer.close()
        return len(self._connections)

    def strand(self, *ways: Way) -> int:
        """The connections that are open now carry no byte any more, and aren't closed; new ones work. How many?"""
        for connection in self._connections.values():
            for way in ways or WAYS:
                connection.flowing[way].clear()
        return len(self._connections)

    @contextmanager
    def holding_up(self) -> Iterator[None]:
        """No byte comes through, of new connections neither; then what was sent meanwhile arrives."""
        self._flowing.clear()
        try:
            yield
        finally:
            self._flowing.set()

    @asynccontextmanager
    async def refusing(self) -> AsyncIterator[None]:
        """New connections are refused; those that are there live on."""
        self._refuse()
        try:
            yield
        finally:
            await self._listen()

    @contextmanager
    def slowed(self, least: float, most: float, bytes_a_second: float | None = None) -> Iterator[None]:
        """Each way bytes take so many seconds, by chance, and stay in order."""
        self._delay, self._bytes_a_second = (least, most), bytes_a_second
        try:
            yield
        finally:
            self._delay, self._bytes_a_second = (0.0, 0.0), None

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    def _refuse(self) -> None:
        # closed, but still reserved: nobody listens, so the kernel refuses
        assert self._server is not None
        self._server.close()

    async def _serve(self, from_client: StreamReader, to_client: StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection(*self._target)
        except OSError:  # the server is away
            to_client.transport.abort()
            return
        connection = _Connection(to_server, to_client, {way: _set_event() for way in WAYS})
        serving = asyncio.current_task()
        assert serving is not None
        self._connections[serving] = connection
        pumps = [
            asyncio.create_task(self._pump("to_server", from_client, to_server, connection)),
            asyncio.create_task(self._pump("to_client", from_server, to_client, connection)),
        ]
        try:
            # once either end is closed, both are
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._connections[serving]
            for pump in pumps:
                pump.cancel()
            for writer in (to_client, to_server):
                writer.close()

    async def _pump(
        self, way: Way, reader: StreamReader, writer: StreamWriter, connection: "_Connection"
    ) -> None:
        on_its_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_ON_ITS_WAY)
        reading = asyncio.create_task(self._read(reader, on_its_way))
        loop = asyncio.get_running_loop()
        try:
            while True:
                due, chunk = await on_its_way.get()
                await asyncio.sleep(due - loop.time())
                await self._flowing.wait()
                await connection.flowing[way].wait()
                if not chunk:
                    return
                writer.write(chunk)
                await writer.drain()
        except ConnectionError:
            return  # cut, or the other end has gone
        finally:
            reading.cancel()

    async def _read(self, reader: StreamReader, on_its_way: "asyncio.Queue[tuple[float, bytes]]") -> None:
        """Chunks, and when each is due; the last one is empty."""
        loop = asyncio.get_running_loop()
        due = 0.0
        chunk = b"?"
        while chunk:
            try:
                chunk = await reader.read(_CHUNK)
            except ConnectionError:
                chunk = b""
            if self._bytes_a_second is not None:
                await asyncio.sleep(len(chunk) / self._bytes_a_second)
            due = max(due, loop.time() + self._chance.uniform(*self._delay))
            await on_its_way.put((due, chunk))


@dataclass(slots=True)
class _Connection:
    to_server: StreamWriter
    to_client: StreamWriter
    flowing: dict[Way, asyncio.Event]


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


def _reset(writer: StreamWriter) -> None:
    with contextlib.suppress(OSError):  # it is closed already
        lingering: socket.socket = writer.get_extra_info("socket")
        lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class ProxiedKafka(EmbeddedKafka):
    """Has a second listener, `proxied_port`, whose clients are told to come back through the proxy."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(console=Console(quiet=True))
        self._reserved.append(ReservedPort())
        self.proxied_port = self._reserved[-1].number
        self.proxy = proxy

    def settings(self) -> dict[str, object]:
        settings = super().settings()
        return settings | {
            "listeners": f"{settings['listeners']},PROXIED://127.0.0.1:{self.proxied_port}",
            "advertised.listeners": f"{settings['advertised.listeners']},PROXIED://127.0.0.1:{self.proxy.port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
        }
