"""Updates as cycler integrations send them, from a seed: binary and bare, duplicates and bad ones among them."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import orjson
from aiokafka.structs import RecordMetadata

from tests.system import Header, System


async def seed(system: System, measurements: int = 20) -> list[str]:
    """Rows to update."""
    return [
        await system.seed(f"m-{number}", notes="as it was", test_setup={"channel_number": number})
        for number in range(measurements)
    ]


class Load:
    """The same seed, the same updates."""

    def __init__(self, system: System, measurements: Sequence[str], seed: int) -> None:
        self._system = system
        self._measurements = measurements
        self._random = random.Random(seed)
        self._sent: list[tuple[str, bytes, list[Header]]] = []
        self.count = 0

    async def publish(self, count: int) -> list[RecordMetadata]:
        """That many records, all acknowledged."""
        pending = [await self._send(*self._next()) for _ in range(count)]
        self.count += count
        return await asyncio.wait_for(asyncio.gather(*pending), 60)

    async def keep_publishing(self, until: asyncio.Event, at_once: int = 25, pause: float = 0.05) -> None:
        """A steady stream until `until` is set."""
        while not until.is_set():
            await self.publish(at_once)
            await asyncio.wait([asyncio.ensure_future(until.wait())], timeout=pause)

    async def _send(self, key: str, value: bytes, headers: list[Header]) -> "asyncio.Future[RecordMetadata]":
        sent: asyncio.Future[RecordMetadata] = await self._system.producer.send(
            self._system.updates, key=key.encode(), value=value, headers=headers
        )
        return sent

    def _next(self) -> tuple[str, bytes, list[Header]]:
        chance = self._random.random()
        if self._sent and chance < 0.08:
            return self._random.choice(self._sent)  # a producer's retry
        number = self.count * 1_000_000 + self._random.randrange(1_000_000)
        key = self._random.choice(self._measurements)
        if chance < 0.11:
            return key, b'{"notes": ', []
        if chance < 0.14:
            return f"unknown-{number}", b'{"notes": "x"}', []
        value = orjson.dumps(self._patch(number))
        if chance < 0.3:
            return key, value, []  # bare
        headers: list[Header] = [
            ("ce_specversion", b"1.0"),
            ("ce_id", f"{number}-{len(self._sent)}".encode()),
            ("ce_source", b"cycler-%d" % self._random.randrange(3)),
            ("ce_type", b"cell_measurement.update.v1"),
            ("content-type", b"application/json"),
        ]
        self._sent.append((key, value, headers))
        return self._sent[-1]

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
