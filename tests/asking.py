"""Asking a worker by HTTP, as orchestrators, Prometheus and people do."""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.faults.states import Log
from tests.system import until

ANY_PORT = "127.0.0.1:0"


async def address_of(log: Log) -> str:
    """Where a worker with WORKER_HTTP serves, as its log says."""
    await log.says("worker serves HTTP")
    return str(next(event["address"] for event in log.events() if event["event"] == "worker serves HTTP"))


async def ask(address: str, path: str) -> tuple[int, bytes]:
    """Status and body."""
    return await asyncio.to_thread(_ask, f"http://{address}{path}")


def _ask(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


async def health(address: str, path: str) -> tuple[int, dict[str, Any]]:
    status, body = await ask(address, path)
    return status, json.loads(body)


async def answers(
    address: str, path: str, status: int, words: str = "", timeout: float = 60
) -> dict[str, Any]:
    """Until it does, with these words in its reasons. Returns the body."""
    found: tuple[int, dict[str, Any]] = (0, {})

    async def so() -> bool:
        nonlocal found
        found = await health(address, path)
        return found[0] == status and words in " ".join(found[1]["reasons"])

    await until(so, lambda: f"{path} answers {status} {words!r}, it answers {found}", timeout)
    return found[1]


class Told(dict[tuple[str, tuple[tuple[str, str], ...]], float]):
    """What /metrics says: (name, labels) → value."""

    def one(self, name: str, **labels: str) -> float | None:
        return self.get((f"measurement_updates_{name}", tuple(sorted(labels.items()))))


async def metrics(address: str) -> Told:
    status, body = await ask(address, "/metrics")
    assert status == 200
    return Told(
        {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
        }
    )


async def tells(address: str, what: Callable[[Told], bool], why: str, timeout: float = 60) -> Told:
    """Until /metrics does."""
    told = Told()

    async def so() -> bool:
        nonlocal told
        told = await metrics(address)
        return what(told)

    await until(so, lambda: f"{why}: {sorted(told.items())}", timeout)
    return told
