"""A fault drill: real workers under a steady load, a fault injected several times, and the reckoning at the end.

    async with drill.under_load("SIGKILL of the worker"):
        worker = drill.start_worker()
        for _ in drill.rounds:
            worker.kill()
            worker = drill.start_worker()
            await drill.recovered()

A subscriber reads the answers all along: recovered means that it has seen answers past everything that had been
acknowledged to producers when the fault was over.
"""

import asyncio
import json
import random
import subprocess
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from tests import model
from tests.faults.checker import Verdicts, reckon
from tests.faults.load import Load
from tests.faults.states import Log
from tests.system import System, answer_of, until

_PATIENCE = 120
"""Seconds until everything is answered: nothing is quick on a machine that others use."""


@dataclass(slots=True)
class Reckoning:
    """What a drill has done and seen: a line of the table."""

    fault: str
    injected: int = 0
    records: int = 0
    lost: int = 0
    doubled: int = 0
    out_of_order: int = 0
    recoveries: list[float] = field(default_factory=list)
    """Seconds."""


class Drill:
    """`rounds`: over how often the fault is injected; `chance`: this drill's own, from its seed."""

    def __init__(
        self,
        system: System,
        load: Load,
        rounds: int,
        seed: str,
        directory: Path,
        report: Callable[[str, object], None],
    ) -> None:
        self.system = system
        self.load = load
        self.chance = random.Random(zlib.crc32(seed.encode()))
        self.logs: list[Log] = []
        self.reckoning = Reckoning("")
        self.verdicts = Verdicts()
        self._rounds = rounds
        self._directory = directory
        self._report = report
        self._running = ExitStack()
        self._answered: dict[int, int] = {}
        self._forgotten: dict[int, int] = {}
        """By partition: the latest arrival of a log that is gone; the subscriber may still be behind."""
        self._lines_heard: list[int] = []

    @property
    def rounds(self) -> Iterator[int]:
        for number in range(self._rounds):
            self.reckoning.injected += 1
            yield number

    def start_worker(self, **environment: str) -> "subprocess.Popen[bytes]":
        """A worker process; what it says is the last of `logs`."""
        log = self._running.enter_context(Log(self._directory / f"worker-{len(self.logs)}"))
        self.logs.append(log)
        return self._running.enter_context(self.system.process(log.file, **environment))

    @asynccontextmanager
    async def under_load(
        self,
        fault: str,
        *,
        foldable: bool = True,
        allow_repeats: bool = False,
        refuses: model.Refuses = model.nothing,
    ) -> AsyncIterator[None]:
        """Load and a subscriber; at the end everything has to be answered (the workers still run) and is checked.

        foldable, allow_repeats, refuses: see `reckon`.
        """
        self.reckoning.fault = fault
        subscribing = asyncio.create_task(self._subscribe())
        try:
            with self._running:
                async with self.load.running():
                    yield
                self.reckoning.records = self.load.count
                verdicts = self.verdicts = await reckon(
                    self.system, _PATIENCE, foldable=foldable, allow_repeats=allow_repeats, refuses=refuses
                )
                self.reckoning.lost = verdicts.lost
                self.reckoning.doubled = verdicts.doubled
                self.reckoning.out_of_order = verdicts.out_of_order
                assert not verdicts.faults, "\n".join(verdicts.faults)
        finally:
            self._report("drill", asdict(self.reckoning))
            subscribing.cancel()
            await asyncio.wait([subscribing])

    async def recovered(self, first: Awaitable[None] | None = None) -> None:
        """Until the subscriber has seen answers past what is acknowledged now (after `first`), and how long that takes."""
        began = time.monotonic()
        if first is not None:
            await first
        await self.answered()
        self.reckoning.recoveries.append(time.monotonic() - began)

    async def answered(self, but: int | None = None) -> None:
        """Until the subscriber has seen answers past what is acknowledged now. `but`: a partition that stands still."""
        wanted = {partition: end for partition, end in self.load.ends.items() if partition != but}

        async def seen() -> bool:
            return all(self._answered.get(partition, 0) >= end for partition, end in wanted.items())

        await until(
            seen,
            lambda: (
                f"answers up to {wanted}, there are {self._answered}, the workers said {self._last_said()}"
            ),
            _PATIENCE,
        )

    async def published(self, more: int) -> None:
        """Until so many more records are published."""
        wanted = self.load.count + more

        async def are_published() -> bool:
            return self.load.count >= wanted

        await until(are_published, f"{wanted} records published")

    async def flowing(self, more: int = 500) -> None:
        """Until so many more records are published and answered: the load meets workers that work."""
        await self.published(more)
        await self.answered()
        self._lines_heard = [len(log.events()) for log in self.logs]

    def forget(self, *partitions: int) -> None:
        """Their logs begin anew, or end sooner: their offsets count again."""
        for partition in partitions:
            self.load.ends.pop(partition, None)
            self._answered.pop(partition, None)
            self._forgotten[partition] = self.load.latest

    async def says(self, words: str, timeout: float = 30) -> None:
        """Until a worker's log says it, since the load was last seen flowing."""

        async def said() -> bool:
            return sum(log.said(words) for log in self.logs) > self._heard(words)

        await until(
            said,
            lambda: f"a worker says {words!r}, they said {self._last_said()}",
            timeout,
        )

    def _last_said(self) -> list[list[dict[str, Any]]]:
        return [log.events()[-5:] for log in self.logs]

    def _heard(self, words: str) -> int:
        return sum(
            words in json.dumps(event)
            for log, heard in zip(self.logs, self._lines_heard, strict=False)
            for event in log.events()[:heard]
        )

    async def _subscribe(self) -> None:
        settings = self.system.settings
        consumer = AIOKafkaConsumer(
            bootstrap_servers=settings.bootstrap_servers,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            retry_backoff_ms=50,
            request_timeout_ms=5_000,
            metadata_max_age_ms=2_000,
        )
        await consumer.start()
        try:
            consumer.assign(
                [
                    TopicPartition(topic, number)
                    for topic in (settings.worker_updated_topic, settings.worker_rejected_topic)
                    for number in range(settings.worker_partitions)
                ]
            )
            while True:
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    for record in records:
                        answer = answer_of(record)
                        partition, offset = answer.place
                        if answer.arrival > self._forgotten.get(partition, 0):
                            self._answered[partition] = max(self._answered.get(partition, 0), offset + 1)
        finally:
            await consumer.stop()


def table(rows: list[dict[str, object]]) -> str:
    """Markdown: the lines of several drills, those of one fault together."""
    merged: dict[str, Reckoning] = {}
    for row in rows:
        one = Reckoning(**row)  # type: ignore[arg-type]  # it went through the report of a test's process
        into = merged.setdefault(one.fault, Reckoning(one.fault))
        for name in ("injected", "records", "lost", "doubled", "out_of_order"):
            setattr(into, name, getattr(into, name) + getattr(one, name))
        into.recoveries += one.recoveries
    lines = [
        "| fault | injected | records | lost | doubled | out of order | recovery s: p50 | max |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in merged.values():
        seconds = sorted(one.recoveries)
        p50, most = (f"{seconds[len(seconds) // 2]:.1f}", f"{seconds[-1]:.1f}") if seconds else ("–", "–")
        lines.append(
            f"| {one.fault} | {one.injected} | {one.records:,} | {one.lost} | {one.doubled} | {one.out_of_order} |"
            f" {p50} | {most} |"
        )
    return "\n".join(lines)
