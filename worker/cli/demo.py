"""`demo`: the main job, live, on a small lab."""

import asyncio
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import asyncpg
import orjson
import typer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from pydantic import SecretStr

from contracts.cloudevents import MeasurementUpdated
from worker.cli.clients import answer_consumer, update_producer
from worker.cli.terminal import err, fail, out
from worker.database import Connection, close, connect, describe, migrate
from worker.errors import DependencyAway, Fatal
from worker.settings import Settings, load_settings
from worker.stack import Stack, running_stack
from worker.stack.service import Service, StackError
from worker.topics import create_topics

if TYPE_CHECKING:  # imported where it is used: the lab needs more packages than the worker
    from worker.cli.demo_screen import Screen
    from worker.lab.day import Day
    from worker.lab.history import Entry
    from worker.lab.measurements import Measurement
    from worker.lab.updates import LabUpdate

_LOCK = 0x64656D6F  # 'demo': one at a time in a database
_COMMAND = Path(sys.executable).with_name("measurement-updates")


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
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
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
            await self._look_at_database(database, rows)
            screen.stage(
                f"Kafka ({stack.kafka_origin}) and Postgres ({stack.postgres_origin}):"
                f" up after {time.monotonic() - self._began:.1f} s"
            )
            try:
                await migrate(database)
                await create_topics(settings)
                await seed_measurements(database, rows)
                screen.stage(f"Lab: {_contents(rows)}")
                with closing(_Worker(settings)) as worker:
                    worker.launch()
                    await worker.ready()
                    screen.stage(f"Worker: measurement-updates run, {settings.worker_partitions} partitions")
                    try:
                        return await self._watched(screen, worker, database, rows)
                    except BaseException:
                        if worker.pid is None:
                            err.print(f"the worker has ended; its log:\n{worker.log_tail()}", markup=False)
                        raise
                    finally:
                        _ignore_signals()
            finally:
                _ignore_signals()
                await self._clean_up(database, rows, screen)
        finally:
            await close(database)

    async def _watched(
        self, screen: "Screen", worker: "_Worker", database: Connection, rows: "list[Measurement]"
    ) -> dict[str, Any]:
        from worker.lab.day import run_day
        from worker.lab.history import history
        from worker.lab.updates import INTEGRATIONS, burst, lab_updates

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
                day = await run_day(updates, settings, producer, consumer, database, screen, per_second=pace)
            screen.shown(day)
            late = next(update for update in day.updates if update.repairs is not None)
            row = next(row for row in rows if row.id.encode() == late.message.key)
            entries = await history(database, row.id, row.patchable())
            if self._options.burst:
                screen.stage(f"{self._options.burst:,} more at once")
                with screen.showing():
                    more = burst(self._options.burst, run=self._run)
                    rush = await run_day(
                        more, settings, producer, consumer, database, screen, per_second=None
                    )
                screen.shown(rush)
        mismatches = day.mismatches() + (rush.mismatches() if rush else [])
        mismatches += await _rows_that_differ(database, day, rush)
        return await self._reported(screen, worker, _Result(day, rush, row, late, entries, mismatches))

    async def _reported(self, screen: "Screen", worker: "_Worker", result: "_Result") -> dict[str, Any]:
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
                mismatches += _end(worker)
            print(orjson.dumps({**summary, "mismatches": mismatches}).decode(), flush=True)
        else:
            report.show_rejections(out, day)
            assert result.late.identity is not None
            report.show_history(out, row.name, row.id, result.entries, result.late.identity[1])
            report.show_summary(out, day, rush, seconds)
        if self._options.keep:
            await self._kept(screen, worker, row.id)
        if worker.pid is not None:
            mismatches += _end(worker)
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

    async def _kept(self, screen: "Screen", worker: "_Worker", measurement_id: str) -> None:
        """Until Ctrl-C, or the worker's end."""
        command = "measurement-updates" if _is_on_path() else _called()
        screen.stage("\nIt goes on running. In another terminal:")
        for name, value in _variables(self._settings).items():
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
        raise Fatal(f"the worker has ended; its log:\n{worker.log_tail()}")

    # In somebody else's Kafka or Postgres -------------------------------------------------------------------

    async def _look_at_database(self, database: Connection, rows: "list[Measurement]") -> None:
        """Refuse what isn't ours to write to. Raises Fatal."""
        if self._stack.postgres_origin != "settings":
            return
        refusal = (
            "the demo doesn't write there. Name an empty database, or unset DATABASE_URL for one of its own"
        )
        if not await database.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
            raise Fatal("another demo is running in the database of DATABASE_URL: wait for its end")
        sessions = await database.fetchval(
            """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
               AND pid <> pg_backend_pid() AND application_name LIKE 'measurement-updates%'"""
        )
        if sessions:
            raise Fatal(f"a worker is connected to the database of DATABASE_URL: {refusal}")
        if await database.fetchval("SELECT to_regclass('cell_measurements') IS NOT NULL"):
            from worker.lab.measurements import foreign_measurements

            foreign = await foreign_measurements(database, rows)
            if foreign:
                raise Fatal(
                    f"cell_measurements in the database of DATABASE_URL holds {foreign:,} measurements that aren't"
                    f" the demo's: {refusal}"
                )
        if await database.fetchval("SELECT to_regclass('measurement_updates.lanes') IS NOT NULL"):
            topic = await database.fetchval(
                """SELECT topic FROM measurement_updates.lanes
                   WHERE retired_at IS NULL AND topic !~ '^demo-[0-9a-f]{8}-' LIMIT 1"""
            )
            if topic is not None:
                raise Fatal(f"the database of DATABASE_URL follows the topic {topic}: {refusal}")

    async def _clean_up(self, database: Connection, rows: "list[Measurement]", screen: "Screen") -> None:
        """Take out of shared servers what this run put there; bounded, and best effort: something failed already,
        or the report is out."""
        from worker.lab.measurements import remove_measurements

        settings, left = self._settings, []
        if self._stack.postgres_origin == "settings":
            try:
                async with asyncio.timeout(10):
                    await remove_measurements(database, rows)
                    await _forget_lanes(database, settings.worker_updates_topic)
                left.append("in Postgres the schema measurement_updates and an empty table cell_measurements")
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                left.append(f"in Postgres the demo's measurements and its bookkeeping ({describe(error)})")
        if self._stack.kafka_origin == "settings":
            names = [
                settings.worker_updates_topic, settings.worker_updated_topic, settings.worker_rejected_topic,
            ]  # fmt: skip
            try:
                async with asyncio.timeout(10):
                    await _delete_topics(settings.bootstrap_servers, names)
                left.append(f"in Kafka the offsets of the group {settings.worker_group}, which expire")
            except (OSError, TimeoutError, KafkaError) as error:
                left.append(f"in Kafka the topics {', '.join(names)} ({error or type(error).__name__})")
        if left:
            screen.print(f"\nLeft behind: {'; '.join(left)}.")


async def _forget_lanes(database: Connection, topic: str) -> None:
    async with database.transaction():
        lanes = "(SELECT lane FROM measurement_updates.lanes WHERE topic = $1)"
        for table in ("applied_updates", "rejected_updates", "lane_decisions", "lanes"):
            await database.execute(f"DELETE FROM measurement_updates.{table} WHERE lane IN {lanes}", topic)


async def _delete_topics(bootstrap_servers: str, names: list[str]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        present = set(await admin.list_topics())
        await admin.delete_topics([name for name in names if name in present])
    finally:
        await admin.close()


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


# The worker, as users run it --------------------------------------------------------------------------------


class _Worker(Service):
    """`measurement-updates run` in a process of its own; it ends when the demo does, whatever ends that."""

    name = "the worker"
    crash_signal = signal.SIGTERM
    stops_within = 25.0

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self.exit_code: int | None = None

    def launch(self) -> None:
        command = [str(_COMMAND)]
        if not _COMMAND.exists():  # installed in some other way
            command = [sys.executable, "-c", "from worker.cli import main; main()"]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("WORKER_")}
        self._spawn([*command, "run"], env={**inherited, **_variables(self._settings)})

    def stop(self) -> None:
        process: subprocess.Popen[bytes] | None = self._process
        super().stop()
        self.exit_code = None if process is None else process.returncode

    async def ready(self) -> None:
        """Not `wait_ready`, which blocks: Ctrl-C counts here too. Raises StackError."""
        deadline = time.monotonic() + self.ready_within
        while not await self._answers():
            if self.pid is None or time.monotonic() > deadline:
                ended = "has ended" if self.pid is None else f"isn't ready after {self.ready_within:.0f} s"
                raise StackError(f"the worker {ended}; its log:\n{self.log_tail()}")
            await asyncio.sleep(0.1)

    async def _answers(self) -> bool:
        """Has it taken all partitions over?"""
        connection = await connect(self._settings.dsn, application="measurement-updates demo")
        try:
            taken = await connection.fetchval(
                """SELECT count(*) FROM measurement_updates.lanes
                   WHERE topic = $1 AND retired_at IS NULL AND epoch > 0""",
                self._settings.worker_updates_topic,
            )
        finally:
            await close(connection)
        return int(taken) >= self._settings.worker_partitions


def _end(worker: _Worker) -> list[str]:
    worker.stop()
    if worker.exit_code == 0:
        return []
    return [
        f"the worker: expected exit code 0 after SIGTERM, found {worker.exit_code}; its log:\n{worker.log_tail()}"
    ]


def _variables(settings: Settings) -> dict[str, str]:
    """What is set, as environment variables: a file .env isn't read by a process that runs elsewhere."""
    variables = {}
    for name in sorted(settings.model_fields_set):
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        elif isinstance(value, timedelta):
            value = f"{value.total_seconds()}s"
        if value is not None:
            variables[name.upper()] = str(value)
    return variables


def _is_on_path() -> bool:
    return shutil.which("measurement-updates") is not None


def _called() -> str:
    return os.path.relpath(_COMMAND)


def _contents(rows: "list[Measurement]") -> str:
    organizations = len({row.organization_id for row in rows})
    cells = len({row.cell_instance_id for row in rows})
    return f"{organizations} organizations, {cells} cells, {len(rows)} measurements"
