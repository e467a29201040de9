"""Updates as cycler integrations send them, from a seed: in all three forms, retries, late and bad ones among them."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
from aiokafka.structs import RecordMetadata

from tests.system import Header, System

RATE = 1_200
"""Events a second."""
_TICK = 0.02


async def seed(system: System, measurements: int = 20) -> list[str]:
    """Rows to update."""
    return [
        await system.seed(f"m-{number}", notes="as it was", test_setup={"channel_number": number})
        for number in range(measurements)
    ]


class Load:
    """The same seed, the same updates. `spread`: each one to a partition by chance, not its measurement's."""

    def __init__(
        self, system: System, measurements: Sequence[str], seed: str, *, spread: bool = False
    ) -> None:
        self._system = system
        self._measurements = measurements
        self._random = random.Random(seed)
        self._spread = spread
        self._events: list[tuple[str, bytes, list[Header]]] = []
        self._acknowledged: list[tuple[str, RecordMetadata]] = []
        self._pending: list[asyncio.Future[RecordMetadata]] = []
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.count = 0
        self.latest = 0
        """Arrival of the last acknowledged record."""
        self.ends: dict[int, int] = {}
        """By partition: the offset after the last acknowledged record."""

    async def publish(self, count: int) -> list[RecordMetadata]:
        """That many records, all acknowledged."""
        return await asyncio.wait_for(
            asyncio.gather(*[await self._send(*self._next()) for _ in range(count)]), 60
        )

    @asynccontextmanager
    async def running(self, rate: float = RATE) -> AsyncIterator[None]:
        """A steady stream, however fast it is acknowledged; all of it is at the end. Raises what a send has failed with."""
        over = asyncio.Event()
        publishing = asyncio.create_task(self._keep_publishing(rate, over))
        try:
            yield
        finally:
            over.set()
            await asyncio.wait_for(publishing, 90)

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Nothing is published, and what was is acknowledged."""
        self._flowing.clear()
        await asyncio.wait_for(asyncio.gather(*self._pending), 60)
        try:
            yield
        finally:
            self._flowing.set()

    async def _keep_publishing(self, rate: float, over: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        pending = self._pending
        due = loop.time()
        while not over.is_set():
            await self._flowing.wait()
            pending += [await self._send(*self._next()) for _ in range(round(rate * _TICK))]
            due = max(due + _TICK, loop.time())  # what a broker that is away has held up isn't made up for
            await asyncio.wait([asyncio.ensure_future(over.wait())], timeout=due - loop.time())
        await asyncio.gather(*pending)

    async def _send(
        self, key: str, value: bytes, headers: list[Header], partition: int | None = None
    ) -> "asyncio.Future[RecordMetadata]":
        if self._spread:
            partition = self._random.randrange(self._system.settings.worker_partitions)
        sent: asyncio.Future[RecordMetadata] = await self._system.producer.send(
            self._system.updates, key=key.encode(), value=value, headers=headers, partition=partition
        )
        self.count += 1

        def acknowledged(done: "asyncio.Future[RecordMetadata]") -> None:
            if not done.cancelled() and done.exception() is None:
                at = done.result()
                self._acknowledged.append((key, at))
                self.latest = max(self.latest, at.timestamp)
                self.ends[at.partition] = max(self.ends.get(at.partition, 0), at.offset + 1)

        sent.add_done_callback(acknowledged)
        return sent

    def _next(self) -> tuple[str, bytes, list[Header]]:
        chance = self._random.random()
        number = self.count * 1_000 + self._random.randrange(1_000)
        key = self._random.choice(self._measurements)
        value = orjson.dumps(self._patch(number))
        if chance < 0.03:
            return key, b'{"notes": ', []
        if chance < 0.06:
            return f"unknown-{number}", value, []
        if chance < 0.2:
            return key, value, []  # bare
        if chance < 0.27 and self._events:
            return self._random.choice(self._events)  # a producer's retry
        if chance < 0.29 and self._events:
            key, _, headers = self._random.choice(self._events)
            return key, value, headers  # its identity for something else
        if chance < 0.34 and self._acknowledged:
            key, at = self._random.choice(self._acknowledged)
            return key, value, [*self._headers(number), self._requeued_from(at)]  # late
        if chance < 0.36:
            return key, value, [*self._headers(number), ("ce_expectedrevision", b"%d" % (number % 100))]
        if chance < 0.46:
            envelope = {
                "specversion": "1.0",
                "id": f"{number}",
                "source": "cycler-structured",
                "type": "cell_measurement.update.v1",
                "data": orjson.Fragment(value),
            }
            return key, orjson.dumps(envelope), [("content-type", b"application/cloudevents+json")]
        self._events.append((key, value, self._headers(number)))
        return self._events[-1]

    def _headers(self, number: int) -> list[Header]:
        return [
            ("ce_specversion", b"1.0"),
            ("ce_id", b"%d" % number),
            ("ce_source", b"cycler-%d" % (number % 3)),
            ("ce_type", b"cell_measurement.update.v1"),
            ("content-type", b"application/json"),
        ]

    def _requeued_from(self, at: RecordMetadata) -> Header:
        return "requeued-from", f"{at.topic}/{at.partition}/{at.offset}@{at.timestamp}".encode()

    def _patch(self, number: int) -> dict[str, Any]:
        match self._random.randrange(5):
            case 0:
                return {"name": f"formation {number % 7}"}
            case 1:
                return {"notes": f"vented at {number} °C", "test_setup": {"channel_number": number}}
            case 2:
                return {
                    "protocol": {
                        "name": "CC-CV",
                        "ambient_temperature_degc": number / 8,
                        "steps": [number] * 20,
                    }
                }
            case 3:
                return {"notes": None}
            case _:
                return {}
