"""`status`: what every partition does, and what needs attention."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any

import orjson
import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from worker.cli.terminal import fail, stream
from worker.cli.watch import printable
from worker.kafka_state import KafkaState
from worker.kafka_state import as_json as kafka_as_json
from worker.settings import Duration, load_settings
from worker.status import DatabaseState, PartitionStatus, Status
from worker.status_look import StatusLook, status_look

_SAMPLES_APART = 1.0
"""Seconds between the two samples that a rate is made of."""
_STYLES = {
    "running": "green",
    "waiting": "yellow",
    "taking_over": "yellow",
    "stopped": "red",
    "unowned": "red",
    "unknown": "yellow",
}


def status(
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C; rates in between.")
    ] = False,
    every: Annotated[
        str, typer.Option("--every", metavar="DURATION", help="With --watch: how often.")
    ] = "2s",
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; with --watch one a line.")
    ] = False,
) -> None:
    """Show what each partition does: its worker, lag, rate, what it waits for.

    Lag is in records that aren't decided yet, and in seconds since the first
    of them came. Nothing is written and no group is joined. What each state
    means and what to do: docs/runbook-states.md.

    Exit code 0: all is well; 1: something needs attention (a server is away,
    a partition has stopped, waits for over a minute, or has records and no
    worker).

    [bold]Examples[/bold]

      measurement-updates status
      measurement-updates status --watch
      measurement-updates status --json | jq .attention
    """
    settings = load_settings(with_servers=True)
    seconds = _seconds(every)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    async def run() -> Status:
        async with status_look(settings) as look:
            if watch:
                await _watch(look, seconds, json)
            await look.take()
            await asyncio.sleep(_SAMPLES_APART)
            return await look.take()

    try:
        found = asyncio.run(run())
    except BrokenPipeError:
        # who read our output has had enough (head): that is no failure. Python would complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if json:
        print(orjson.dumps(as_json(found)).decode())
    else:
        stream.print(_screen(found), soft_wrap=False)
    if found.attention:
        raise typer.Exit(1)


def _seconds(every: str) -> float:
    try:
        duration: timedelta = TypeAdapter[Any](Duration).validate_python(every)
    except ValidationError:
        fail(f"--every: expected seconds, or a number with a unit: 2s, 1m; found {every}", 2)
    return max(0.2, duration.total_seconds())


async def _watch(look: StatusLook, seconds: float, json: bool) -> None:
    """Until interrupted."""
    if stream.is_terminal and not json:
        # a console that leaves wrapping to the terminal cuts what a live view has no room for
        with Live(console=Console(highlight=False), auto_refresh=False, screen=True) as live:
            while True:
                live.update(_screen(await look.take()), refresh=True)
                await asyncio.sleep(seconds)
    while True:
        found = await look.take()
        if json:
            sys.stdout.write(orjson.dumps(as_json(found)).decode() + "\n")
            sys.stdout.flush()
        else:
            stream.print(_screen(found), soft_wrap=False)
            stream.print()
        await asyncio.sleep(seconds)


def _screen(status: Status) -> RenderableType:
    parts: list[RenderableType] = [*_servers(status), Text()]
    if status.partitions:
        parts += [_table(status), Text()]
    parts += [line for partition in status.partitions for line in _words(partition)]
    if isinstance(status.database, DatabaseState) and status.database.current:
        parts += _open(status.database)
    if status.attention:
        parts.append(Text("needs attention:", style="red"))
        parts += [
            Padding(Text(f"- {printable(' '.join(line.split()))}"), (0, 0, 0, 2)) for line in status.attention
        ]
    elif all(partition.state == "running" for partition in status.partitions):
        parts.append(Text("all is well", style="green"))
    else:
        parts.append(Text("nothing needs attention yet", style="green"))
    return Group(*parts)


def _servers(status: Status) -> list[Text]:
    database, kafka = status.database, status.kafka
    lines = []
    if isinstance(database, DatabaseState):
        lines.append(Text(f"Postgres {database.version}, {database.latency_ms:.1f} ms"))
    else:
        lines.append(Text("Postgres is away", style="red"))
    if isinstance(kafka, KafkaState):
        brokers = f"{kafka.brokers} broker{'s' * (kafka.brokers != 1)}"
        topics = ", ".join(f"{name} ({count})" for name, count in kafka.topics.items())
        lines.append(
            Text(
                f"Kafka {kafka.version}, {kafka.latency_ms:.1f} ms, {brokers}; topics (partitions): {topics}"
            )
        )
        lines.append(Text(f"group {status.group}: {kafka.group_words}, {kafka.members} member(s)"))
    else:
        lines.append(Text("Kafka is away", style="red"))
    return lines


def _table(status: Status) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("partition", justify="right", no_wrap=True, min_width=3)
    table.add_column("state", no_wrap=True, min_width=11)
    table.add_column("worker", no_wrap=True, overflow="ellipsis", max_width=24)
    for name in ("lag", "behind", "applied", "answered", "rate/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for partition in status.partitions:
        table.add_row(
            str(partition.partition),
            Text(partition.state.replace("_", " "), style=_STYLES.get(partition.state, "")),
            printable(partition.owner or "-"),
            _number(partition.lag),
            _age(partition.lag_seconds),
            _number(partition.applied),
            _number(partition.answered),
            "-" if partition.rate is None else f"{partition.rate:,.1f}",
        )
    return table


def _words(partition: PartitionStatus) -> list[RenderableType]:
    name = f"partition {partition.partition}"
    lines = []
    if partition.state == "stopped":  # why stands below: it needs attention
        lines.append(f"{name} stopped since {_time(partition.since)}")
    elif partition.waits_for:
        lines.append(f"{name} {partition.state} since {_time(partition.since)}: {partition.waits_for}")
    elif partition.last_error:
        lines.append(f"{name} last waited at {_time(partition.last_error_at)}: {partition.last_error}")
    return [Text(printable(line), style="dim") for line in lines]


def _open(database: DatabaseState) -> list[RenderableType]:
    count = database.open_rejections
    rejections = "none" if not count else f"over {count - 1:,}" if count > 10_000 else f"{count:,}"
    lines: list[RenderableType] = [Text(f"open rejections: {rejections}")]
    running = [_replay(replay) for replay in database.replays]
    lines.append(Text(f"running replays: {', '.join(running) or 'none'}"))
    return lines


def _replay(replay: Mapping[str, Any]) -> str:
    return printable(
        f"{replay.get('id')} ({replay.get('state')}, {replay.get('published', 0)} published, by"
        f" {replay.get('started_by')})"
    )


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def _time(moment: datetime | None) -> str:
    """Local time."""
    return "an unknown time" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def as_json(status: Status) -> dict[str, Any]:
    """One JSON object; times are ISO 8601, in UTC."""
    database, kafka = status.database, status.kafka
    found: dict[str, Any] = {
        "ok": not status.attention,
        "now": status.now,
        "topic": status.topic,
        "group": status.group,
        "partitions": list(status.partitions),
        "attention": list(status.attention),
        "kafka": kafka_as_json(kafka)
        if isinstance(kafka, KafkaState)
        else {"reachable": False, "why": kafka},
    }
    if isinstance(database, str):
        return {**found, "database": {"reachable": False, "why": database}}
    return {
        **found,
        "database": {
            "reachable": True,
            "latency_ms": round(database.latency_ms, 2),
            "version": database.version,
            "schema_is_current": database.current,
        },
        "open_rejections": database.open_rejections,
        "replays": list(database.replays),
    }
