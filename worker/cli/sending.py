"""The second pass of `publish`: a checked file's updates, sent and acknowledged, with a bar on a terminal."""

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from worker.cli.clients import update_producer
from worker.cli.terminal import err
from worker.cli.update_file import Rules, Updates
from worker.cli.update_rows import Format, Row, read_rows
from worker.errors import DependencyAway
from worker.settings import Settings

_IN_FLIGHT = 2_000
_STALLED_AFTER = 30.0  # seconds without an acknowledgement


class Sending:
    """The second pass. `acknowledged` counts what all replicas have."""

    def __init__(self, settings: Settings, file: IO[bytes], kind: Format, rules: Rules, rows: int) -> None:
        self._settings = settings
        self._rows_of = (file, kind)
        self._updates = Updates(rules)
        self._total = rows
        self.acknowledged = 0
        self.seconds = 0.0

    async def run(self) -> None:
        """Raises DependencyAway."""
        async with update_producer(self._settings) as producer:
            began = time.monotonic()
            in_flight: deque[asyncio.Future[Any]] = deque()
            try:
                with progress("publishing", self._total) as advance:
                    for row in read_rows(*self._rows_of):
                        async with asyncio.timeout(_STALLED_AFTER):
                            in_flight.append(await self._send(producer, row))
                        if len(in_flight) >= _IN_FLIGHT:
                            await self._acknowledge(in_flight.popleft(), advance)
                    while in_flight:
                        await self._acknowledge(in_flight.popleft(), advance)
            except TimeoutError:
                servers = self._settings.bootstrap_servers
                raise DependencyAway(
                    f"Kafka at {servers} has acknowledged nothing for {_STALLED_AFTER:.0f} s"
                ) from None
            finally:
                self.seconds = time.monotonic() - began
                for future in in_flight:  # those that came in while we failed count, too
                    if future.done() and not future.cancelled() and future.exception() is None:
                        self.acknowledged += 1
                    future.cancel()

    async def _send(self, producer: Any, row: Row) -> "asyncio.Future[Any]":
        message = self._updates.message(row)
        assert message is not None, "the first pass has seen it"
        sent: asyncio.Future[Any] = await producer.send(
            self._settings.worker_updates_topic,
            key=message.key,
            value=message.value,
            headers=message.headers,
        )
        return sent

    async def _acknowledge(self, future: "asyncio.Future[Any]", advance: Any) -> None:
        async with asyncio.timeout(_STALLED_AFTER):
            await future
        self.acknowledged += 1
        advance()


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="dim")


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Any]:
    """A bar on stderr, only where that is a terminal. Yields what moves it on by one."""
    if not err.is_terminal:
        yield lambda: None
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,}"), _Rate(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)
