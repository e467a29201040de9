"""`demo`: the main job, live, on a small lab."""

import asyncio
import os
import secrets
import shlex
import shutil
import signal
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from aiokafka.errors import KafkaError
from pydantic import SecretStr

from contracts.cloudevents import MeasurementUpdated
from worker.cli.clients import answer_consumer, update_producer
from worker.cli.demo_shared import clean_up, look_at_database
from worker.cli.demo_worker import COMMAND, DemoWorker, end, variables
from worker.cli.terminal import err, fail, out
from worker.database import POSTGRES_ERRORS, Connection, close, connect, describe
from worker.errors import DependencyAway, Fatal
from worker.schema import migrate
from worker.settings import Settings, load_settings
from worker.stack import Stack, running_stack
from worker.topics import create_topics

if TYPE_CHECKING:  # imported where it is used: the lab needs more packages than the worker
    from worker.cli.demo_screen import Screen
    from worker.lab.day import Day
    from worker.lab.history import Entry
    from worker.lab.measurements import Measurement
    from worker.lab.updates import LabUpdate


def demo(
    updates: Annotated[int, typer.Option("--updates", min=60, help="How many updates.")] = 400,
    burst: Annotated[
        int, typer.Option("--burst", min=0, help="So many more at once, to measure the throughput.")
    ] = 2_000,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, help="Publish them over so many, so that one can watch.")
    ] = 6.0,
    keep: Annotated[bool, typer.Option("--keep", help="Keep it running afterwards, until Ctrl-C.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Run the main job, live: a small lab, its cyclers' updates, a worker.

    Starts a Kafka and a Postgres of its own (the first time it downloads
    Kafka), fills the lab, runs a worker, publishes updates and shows what
    becomes of them; compares that with what has to; stops everything.

    Where KAFKA_BOOTSTRAP_SERVERS or DATABASE_URL are set it uses those, with
    topics and a group of its own whose names begin with demo-, and refuses a
    database with anybody else's measurements in it.

    [bold]Examples[/bold]

      measurement-updates demo
      measurement-updates demo --updates 5000
      measurement-updates demo --keep
      measurement-updates demo --json | jq .latency_ms
    """
    began = time.monotonic()
    options = _Options(updates, burst, seconds, keep, json)
    settings = load_settings()
    # Explicitly: a shell starts a background job with SIGINT ignored, and Python leaves it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    if not json and (settings.kafka_bootstrap_servers is None or settings.database_url is None):
        out.print("Starting Kafka and Postgres …", style="bold")
    try:
        with running_stack(settings, progress=err) as stack:
            try:
                summary = asyncio.run(_Demo(settings, stack, options, began).run())
            finally:
                _ignore_signals()
    except KeyboardInterrupt:
        err.print("interrupted; everything is stopped")
        raise typer.Exit(130) from None
    except KafkaError as error:
        raise DependencyAway(f"Kafka: {error or type(error).__name__}") from error
    except POSTGRES_ERRORS as error:
        raise DependencyAway(f"Postgres: {describe(error)}") from error
    if summary["mismatches"]:
        shown = summary["mismatches"][:20]
        fail("not everything became what it had to:\n  " + "\n  ".join(shown))


def _ignore_signals() -> None:
    """Stopping is bounded, and a second Ctrl-C would only cut it short."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


@dataclass(frozen=True, slots=True)
class _Options:
    updates: int
    burst: int
    seconds: float
    keep: bool
    json: bool


@dataclass(frozen=True, slots=True)
class _Result:
    """What there is to report."""

    day: "Day"
    rush: "Day | None"
    row: "Measurement"
    """The measurement whose history is shown."""
    late: "LabUpdate"
    """An update of it that came late."""
    entries: "list[Entry]"
    mismatches: list[str]


class _Demo:
    def __init__(self, settings: Settings, stack: Stack, options: _Options, began: float) -> None:
        # Names of its own in what may be somebody else's, and new ones each time: what an interrupted run left
        # behind isn't in the way of the next.
        self._run = secrets.token_hex(4)
        shared = "settings" in (stack.kafka_origin, stack.postgres_origin)
        prefix = f"demo-{self._run}-" if shared else ""
        self._settings = settings.model_copy(
            update={
                "kafka_bootstrap_servers": stack.kafka_bootstrap_servers,
                "database_url": SecretStr(stack.database_url),
                "worker_updates_topic": f"{prefix}measurement-updates",
                "worker_updated_topic": f"{prefix}measurement-updated",
                "worker_rejected_topic": f"{prefix}measurement-updates-rejected",
                "worker_group": f"{prefix}measurement-update-worker",
                "worker_max_event_bytes": 1024**2,
            }
        )
        self._stack = stack
        self._options = options
        self._began = began

    async def run(self) -> dict[str, Any]:
        """Raises DependencyAway, Fatal."""
        try:
            from worker.cli.demo_screen import LiveScreen, Screen
            from worker.lab.measurements import measurements, seed_measurements
        except ImportError as error:
            raise Fatal(
                f"expected the package {error.name}, found it missing: pip install 'measurement-updates[stack]'"
            ) from None
        rows = measurements()
        names = {row.id: row.name for row in rows}
        console = err if self._options.json else out
        screen = LiveScreen(console, names) if console.is_terminal else Screen(console, names)

        settings, stack = self._settings, self._stack
        database = await connect(settings.dsn, application="measurement-updates demo")
        try:
            if stack.postgres_origin == "settings":
                await look_at_database(database, rows)
            screen.stage(
                f"Kafka ({stack.kafka_origin}) and Postgres ({stack.postgres_origin}):"
                f" up after {time.monotonic() - self._began:.1f} s"
            )
            try:
                await migrate(database)
                await create_topics(settings)
                await seed_measurements(database, rows)
                screen.stage(f"Lab: {_contents(rows)}")
                with closing(DemoWorker(settings)) as worker:
                    worker.launch()
                    await worker.ready()
                    screen.stage(f"Worker: measurement-updates run, {settings.worker_partitions} partitions")
                    try:
                        return await self._watched(screen, worker, database, rows)
                    finally:
                        _ignore_signals()
            finally:
                _ignore_signals()
                if left := await clean_up(stack, settings, database, rows):
                    screen.print(f"\nLeft behind: {'; '.join(left)}.")
        finally:
            await close(database)

    async def _watched(
        self, screen: "Screen", worker: DemoWorker, database: Connection, rows: "list[Measurement]"
    ) -> dict[str, Any]:
        from worker.lab.day import run_day
        from worker.lab.exports import INTEGRATIONS
        from worker.lab.history import history
        from worker.lab.updates import burst, lab_updates

        settings = self._settings
        updates = lab_updates(self._options.updates, run=self._run)
        topics = [settings.worker_updated_topic, settings.worker_rejected_topic]
        rush: Day | None = None
        async with update_producer(settings) as producer, answer_consumer(settings, topics) as consumer:
            screen.stage(
                f"{len(updates):,} updates of {', '.join(one.name for one in INTEGRATIONS)}"
                f" over {self._options.seconds:g} s"
            )
            with screen.showing():
                pace = len(updates) / self._options.seconds
                day = await run_day(
                    updates, settings, producer, consumer, database, screen, worker.check, per_second=pace
                )
            screen.shown(day)
            late = next(update for update in day.updates if update.repairs is not None)
            row = next(row for row in rows if row.id.encode() == late.message.key)
            entries = await history(database, row.id, row.patchable())
            if self._options.burst:
                screen.stage(f"{self._options.burst:,} more at once")
                with screen.showing():
                    more = burst(self._options.burst, run=self._run)
                    rush = await run_day(
                        more, settings, producer, consumer, database, screen, worker.check, per_second=None
                    )
                screen.shown(rush)
        mismatches = day.mismatches() + (rush.mismatches() if rush else [])
        mismatches += await _rows_that_differ(database, day, rush)
        return await self._reported(screen, worker, _Result(day, rush, row, late, entries, mismatches))

    async def _reported(self, screen: "Screen", worker: DemoWorker, result: "_Result") -> dict[str, Any]:
        from worker.cli import demo_screen as report

        day, rush, row = result.day, result.rush, result.row
        mismatches = result.mismatches
        seconds = time.monotonic() - self._began
        latencies = day.latencies()
        summary: dict[str, Any] = {
            "kafka": self._stack.kafka_origin,
            "postgres": self._stack.postgres_origin,
            "published": len(day.published),
            "expected": dict(sorted(day.expected.items())),
            "seen": dict(sorted(day.outcomes.items())),
            "answers": len(day.seen),
            "latency_ms": {
                f"p{percent}": round(report.percentile(latencies, percent), 1) for percent in (50, 99)
            }
            if latencies
            else None,
            "burst": None
            if rush is None
            else {
                "updates": len(rush.updates),
                "seen": dict(rush.outcomes),
                "per_second": round(report.rate(rush)),
            },
            "history": {"measurement_id": row.id, "updates": len(result.entries)},
            "seconds": round(seconds, 1),
        }
        if self._options.json:
            if not self._options.keep:
                mismatches += end(worker)
            print(orjson.dumps({**summary, "mismatches": mismatches}).decode(), flush=True)
        else:
            report.show_rejections(out, day)
            assert result.late.identity is not None
            report.show_history(out, row.name, row.id, result.entries, result.late.identity[1])
            report.show_summary(out, day, rush, seconds)
        if self._options.keep:
            await self._kept(screen, worker, row.id)
        if worker.pid is not None:
            mismatches += end(worker)
        if not self._options.json and not self._options.keep:
            self._say_next(screen)
        return {**summary, "mismatches": mismatches}

    def _say_next(self, screen: "Screen") -> None:
        screen.stage("\nTry this next" + ("" if _is_on_path() else f" (the command is {_called()})"))
        for command, meaning in (
            ("demo --keep", "the same, and it goes on running"),
            ("demo --updates 5000", "a longer day"),
            ("stack", "Kafka and Postgres to develop with"),
            ("publish --help", "updates from a file"),
        ):
            screen.print(f"  measurement-updates {command:<19} {meaning}")

    async def _kept(self, screen: "Screen", worker: DemoWorker, measurement_id: str) -> None:
        """Until Ctrl-C, or the worker's end."""
        command = "measurement-updates" if _is_on_path() else _called()
        screen.stage("\nIt goes on running. In another terminal:")
        for name, value in variables(self._settings).items():
            if name in ("KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL") or "demo-" in value:
                screen.print(f"export {name}={shlex.quote(value)}")
        update = orjson.dumps({"measurement_id": measurement_id, "notes": "vented at 45 °C"}).decode()
        for line in (
            f"{command} watch",
            f"{command} watch --rejected-only --from-beginning",
            f"echo '{update}' | {command} publish - --format jsonl",
            f"{command} lanes list",
        ):
            screen.print(line)
        screen.stage("Ctrl-C stops everything.")
        try:
            while worker.pid is not None:  # noqa: ASYNC110  # a process that ends sets no event
                await asyncio.sleep(0.2)
        except asyncio.CancelledError:
            return  # the end that was announced, no failure
        worker.check()


async def _rows_that_differ(database: Connection, day: "Day", rush: "Day | None") -> list[str]:
    """The last answer about a measurement must be its state."""
    last: dict[str, MeasurementUpdated] = {}
    for one in day.seen + (rush.seen if rush else []):
        if isinstance(one.answer, MeasurementUpdated):
            last[one.answer.measurement_id] = one.answer
    rows = await database.fetch(
        "SELECT id, revision, name, notes, updated_at FROM cell_measurements WHERE id = ANY($1::text[])",
        list(last),
    )
    found = []
    for row in rows:
        answer = last[row["id"]]
        model = answer.measurement
        told = (answer.revision, model.name, model.notes, model.updated_at)
        if told != (row["revision"], row["name"], row["notes"], row["updated_at"]):
            found.append(
                f"{row['id']}: the last answer has revision {answer.revision}, the row {row['revision']}"
            )
    return found


def _is_on_path() -> bool:
    return shutil.which("measurement-updates") is not None


def _called() -> str:
    return os.path.relpath(COMMAND)


def _contents(rows: "list[Measurement]") -> str:
    organizations = len({row.organization_id for row in rows})
    cells = len({row.cell_instance_id for row in rows})
    return f"{organizations} organizations, {cells} cells, {len(rows)} measurements"
