"""What is measured of a contestant: events/s, CPU and memory by process, WAL. From outside, the same way for all.

The stretch goes from the first answer that a read_committed subscriber could see to the last one: start-up and the first
batch don't count. What is visible is asked of the broker ten times a second (the log's stable end), not consumed: a
subscriber in Python would take a fifth of one of the two cores. That all answers are there is checked afterwards.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil
from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]  # its stubs don't say so

from tests.system import System

_LOOK_EVERY = 0.1
_NO_GROUP_YET = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)
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


class DoneCount(Protocol):
    """How many events are done with, in all."""

    async def count(self) -> int: ...
    def close(self) -> None: ...


class Visible:
    """Answers that read_committed subscribers can see."""

    def __init__(self, bench: System) -> None:
        self._admin = AdminClient({"bootstrap.servers": bench.settings.bootstrap_servers})
        topic, partitions = bench.settings.worker_updated_topic, bench.settings.worker_partitions
        self._ends = {
            TopicPartition(topic, number): OffsetSpec.latest()  # type: ignore[no-untyped-call]
            for number in range(partitions)
        }

    async def count(self) -> int:
        """Sum of the ends. Transaction markers take offsets, too: a hundredth of a percent here."""
        return await asyncio.to_thread(self._count)

    def _count(self) -> int:
        # one request for all of them: the broker shares the two cores
        asked = self._admin.list_offsets(self._ends, isolation_level=IsolationLevel.READ_COMMITTED)
        return sum(end.result(30).offset for end in asked.values())

    def close(self) -> None:
        """An AdminClient has nothing to close."""


class Applied:
    """Records below which everything is decided. Answers come a few batches after: in a short run, what was decided before
    it began would count as done in no time."""

    def __init__(self, bench: System) -> None:
        self._bench = bench

    async def count(self) -> int:
        rows = await self._bench.database.fetchval(
            "SELECT sum(next_to_apply) FROM measurement_updates.lanes WHERE topic = $1 AND retired_at IS NULL",
            self._bench.updates,
        )
        return int(rows or 0)

    def close(self) -> None:
        """The connection is the bench's."""


class Committed:
    """Records below the group's offsets, whether they have an answer or are duplicates."""

    def __init__(self, bench: System) -> None:
        # of the worker's group, without joining it
        self._consumer = Consumer(
            {
                "bootstrap.servers": bench.settings.bootstrap_servers,
                "group.id": bench.settings.worker_group,
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
            }
        )
        self._partitions = [
            TopicPartition(bench.updates, number) for number in range(bench.settings.worker_partitions)
        ]

    async def count(self) -> int:
        return await asyncio.to_thread(self._count)

    def _count(self) -> int:
        try:
            return sum(max(0, found.offset) for found in self._consumer.committed(self._partitions, 30))
        except KafkaException as error:
            if error.args[0].code() in _NO_GROUP_YET:
                return 0
            raise

    def close(self) -> None:
        self._consumer.close()


async def measured(
    bench: System,
    pids: Sequence[int],
    events: int,
    *,
    done: DoneCount | None = None,
    done_before: int = 0,
    begun: int = 0,
    timeout: float = 900,
) -> Result:
    """A contestant (its processes) that has just been started, until it is done with all events.

    begun: so many of them count as its beginning. With many partitions a good part is done when the first one is seen.
    """
    done = done or Visible(bench)
    upto = done_before + events
    try:
        async with asyncio.timeout(timeout):
            while (before := await done.count()) <= done_before + begun:
                _alive(pids)
                await asyncio.sleep(_LOOK_EVERY)  # a sampler's pace
            began = last = time.monotonic()
            cpu, wal = _cpu(pids), await _wal(bench)
            seen, used, written = before, cpu, wal
            while seen < upto or time.monotonic() - last < _QUIET:
                _alive(pids)
                await asyncio.sleep(_LOOK_EVERY)  # a sampler's pace
                if (count := await done.count()) > seen:
                    seen, last = count, time.monotonic()
                    if seen >= upto:
                        used, written = _cpu(pids), await _wal(bench)
    finally:
        done.close()
    count = upto - before
    return Result(
        events_per_second=count / (last - began),
        cpu={kind: (used[kind] - cpu[kind]) / count * 1e6 for kind in cpu},
        peak_mib=max(map(peak_mib, pids)),
        wal_bytes=(written - wal) / count,
    )


def peak_mib(pid: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


async def _wal(bench: System) -> int:
    return int(await bench.database.fetchval("SELECT pg_current_wal_lsn() - '0/0'"))


def _alive(pids: Sequence[int]) -> None:
    for pid in pids:
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            raise SystemExit(f"process {pid}, which is measured, has ended")


def _cpu(pids: Sequence[int]) -> dict[str, float]:
    """Seconds of CPU so far: of these processes, of all Postgres processes, of the broker (0 where they run elsewhere)."""
    seconds = {"itself": sum(_seconds(psutil.Process(pid)) for pid in pids), "postgres": 0.0, "broker": 0.0}
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
