"""What is measured of a contestant: events/s, CPU and memory by process, WAL. From outside, the same way for all.

The stretch goes from the first answer that a read_committed subscriber could see to the last one: start-up and the first
batch don't count. What is visible is asked of the broker twenty times a second (the log's stable end), not consumed: a
subscriber in Python would take a fifth of one of the two cores. That all answers are there is checked afterwards.
"""

import asyncio
import contextlib
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from confluent_kafka import Consumer, TopicPartition

from tests.system import System

_LOOK_EVERY = 0.05
_QUIET = 1.0
"""Seconds without a further answer after which the last one has been seen."""


@dataclass(slots=True)
class Result:
    """One run of one contestant."""

    events_per_second: float
    cpu: dict[str, float]
    """Process (`itself`, `postgres`, `broker`) → µs of CPU an event."""
    peak_mib: float
    wal_bytes: float
    """An event."""
    more: dict[str, Any] = field(default_factory=dict)


class Visible:
    """How far a topic can be read by read_committed subscribers."""

    def __init__(self, servers: str, topic: str, partitions: int) -> None:
        self._consumer = Consumer(
            {"bootstrap.servers": servers, "group.id": "nobody", "isolation.level": "read_committed"}
        )
        self._partitions = [TopicPartition(topic, number) for number in range(partitions)]

    async def end(self) -> int:
        """Sum of the ends. Transaction markers take offsets, too: a hundredth of a percent here."""
        return await asyncio.to_thread(
            lambda: sum(self._consumer.get_watermark_offsets(tp)[1] for tp in self._partitions)
        )

    def close(self) -> None:
        self._consumer.close()


async def measured(bench: System, pid: int, events: int, timeout: float = 900) -> Result:
    """A contestant that has just been started, until it has answered all events."""
    visible = Visible(
        bench.settings.bootstrap_servers,
        bench.settings.worker_updated_topic,
        bench.settings.worker_partitions,
    )
    try:
        async with asyncio.timeout(timeout):
            while (before := await visible.end()) == 0:
                _alive(pid)
                await asyncio.sleep(_LOOK_EVERY)  # a sampler's pace
            began = last = time.monotonic()
            cpu, wal = _cpu(pid), await _wal(bench)
            seen, used, written = before, cpu, wal
            while seen < events or time.monotonic() - last < _QUIET:
                _alive(pid)
                await asyncio.sleep(_LOOK_EVERY)  # a sampler's pace
                if (end := await visible.end()) > seen:
                    seen, last = end, time.monotonic()
                    if seen >= events:
                        used, written = _cpu(pid), await _wal(bench)
    finally:
        visible.close()
    count = events - before
    return Result(
        events_per_second=count / (last - began),
        cpu={kind: (used[kind] - cpu[kind]) / count * 1e6 for kind in cpu},
        peak_mib=peak_mib(pid),
        wal_bytes=(written - wal) / count,
    )


def peak_mib(pid: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


async def _wal(bench: System) -> int:
    return int(await bench.database.fetchval("SELECT pg_current_wal_lsn() - '0/0'"))


def _alive(pid: int) -> None:
    if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
        raise SystemExit(f"process {pid}, which is measured, has ended")


def _cpu(pid: int) -> dict[str, float]:
    """Seconds of CPU so far: of this process, of all Postgres processes, of the broker (0 where they run elsewhere)."""
    seconds = {"itself": _seconds(psutil.Process(pid)), "postgres": 0.0, "broker": 0.0}
    for other in psutil.process_iter(["name"]):
        name = other.info["name"]
        kind = "postgres" if name == "postgres" else "broker" if name == "java" else None
        if kind:
            with contextlib.suppress(psutil.Error):
                seconds[kind] += _seconds(other)
    return seconds


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
