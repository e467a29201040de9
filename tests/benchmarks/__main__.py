"""`make bench`: how fast the worker is, beside the floor: what the same broker and database allow without our logic.

One run, the same topic and rows for both, in interleaved rounds. The floor consumes the same records, writes the same
rows set-wise and produces as many bytes as the answers have, over one connection in large batches: no validation, no
duplicates, no history, no transaction in Kafka. events/s: from the first row changed (the worker: first record
decided) to the last answer visible to a read_committed subscriber (the floor: to the last acknowledgement), start-up
excluded. CPU µs an event, by process, are counted over the same stretch.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import orjson
import psutil
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from contracts.cloudevents import binary_update
from tests.system import System, system, until
from worker.schema import migrate
from worker.settings import load_settings
from worker.stack import running_stack

_BATCH = 2_000

console = Console(stderr=True)


@dataclass(slots=True)
class Result:
    """One run of one contestant."""

    events_per_second: float
    cpu: dict[str, float]
    """Process → µs of CPU an event."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--measurements", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with running_stack(load_settings()) as stack:
        results = asyncio.run(_run(stack.kafka_bootstrap_servers, stack.database_url, options))
    _print(results, options)


async def _run(servers: str, database_url: str, options: argparse.Namespace) -> dict[str, list[Result]]:
    results: dict[str, list[Result]] = {"floor": [], "worker": []}
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("benchmark", total=2 * options.rounds)
        for _ in range(options.rounds):
            for name, contestant in (("floor", _floor), ("worker", _worker)):
                async with _prepared(servers, database_url, options) as bench:
                    results[name].append(await contestant(bench, options.events))
                progress.advance(task)
    return results


@contextlib.asynccontextmanager
async def _prepared(servers: str, database_url: str, options: argparse.Namespace) -> AsyncIterator[System]:
    """Fresh topics and a fresh database, filled with the same rows and the same log each time."""
    name = f"bench_{uuid.uuid4().hex[:8]}"
    admin = await asyncpg.connect(database_url)
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    url = urlunsplit(urlsplit(database_url)._replace(path=f"/{name}"))
    connection = await asyncpg.connect(url)
    await migrate(connection)
    try:
        async with system(servers, url, worker_partitions=options.partitions) as bench:
            await _fill(bench, options)
            yield bench
    finally:
        await connection.close()
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


async def _fill(bench: System, options: argparse.Namespace) -> None:
    setup = {"cycler": "Biologic BCS-815", "operator": "m.keller", "lab": "Lab 2", "channel_number": 7}
    protocol = {
        "name": "formation C/10",
        "ambient_temperature_degc": 25,
        "definition": {"steps": list(range(20))},
    }
    await bench.database.copy_records_to_table(
        "cell_measurements",
        records=[
            (
                _id(number),
                f"cell-{number % 500}",
                f"cycle life {number}",
                json.dumps(protocol),
                json.dumps(setup),
            )
            for number in range(options.measurements)
        ],
        columns=["id", "cell_instance_id", "name", "protocol", "test_setup"],
    )
    await bench.database.execute("VACUUM ANALYZE cell_measurements")
    producer = AIOKafkaProducer(
        bootstrap_servers=bench.settings.bootstrap_servers,
        enable_idempotence=True,
        max_batch_size=512 * 1024,
        linger_ms=5,
    )
    await producer.start()
    for number in range(options.events):
        patch = {
            "notes": f"step {number}: capacity 2.31 Ah at 25.0 °C, CE 99.87 %\r\nchannel rested 600 s",
            "test_setup": {**setup, "channel_number": number % 64},
        }
        key, value, headers = binary_update(
            _id(number * 7919 % options.measurements), patch, id=f"{number}", source="urn:lab-2:biologic"
        )
        await producer.send(bench.updates, key=key, value=value, headers=list(headers))
    await producer.flush()
    await producer.stop()


def _id(number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, str(number)))


async def _worker(bench: System, events: int) -> Result:
    with tempfile.TemporaryFile() as log, bench.process(log) as process:
        consumer = _subscriber(bench, bench.settings.worker_updated_topic, committed=True)
        await consumer.start()
        try:

            async def has_begun() -> bool:
                if process.poll() is not None:
                    log.seek(0)
                    sys.exit(f"the worker ended with {process.returncode}:\n{log.read().decode()}")
                return await _decided(bench) > 0

            await until(has_begun, "the worker has decided a record", timeout=60)
            before, began, already = _cpu(process.pid), time.monotonic(), await _decided(bench)
            seen = await _count(consumer, events)
            took, after = time.monotonic() - began, _cpu(process.pid)
        finally:
            await consumer.stop()
    if seen != events:
        sys.exit(f"expected {events} answers, found {seen}")
    return _result(events - already, took, before, after, "worker")


async def _decided(bench: System) -> int:
    return int(
        await bench.database.fetchval("SELECT coalesce(sum(next_to_apply), 0) FROM measurement_updates.lanes")
    )


async def _count(consumer: AIOKafkaConsumer, expected: int) -> int:
    seen = 0
    async with asyncio.timeout(600):
        while seen < expected:
            seen += sum(len(records) for records in (await consumer.getmany(timeout_ms=500)).values())
    return seen


def _subscriber(bench: System, topic: str, *, committed: bool) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        topic,
        bootstrap_servers=bench.settings.bootstrap_servers,
        isolation_level="read_committed" if committed else "read_uncommitted",
        auto_offset_reset="earliest",
        fetch_max_bytes=50 * 1024**2,
    )


async def _floor(bench: System, events: int) -> Result:
    """In a process of its own, as the worker is."""
    settings = bench.settings
    ours = Path(__file__).with_name("floor.py")
    arguments = [
        settings.bootstrap_servers,
        settings.dsn,
        bench.updates,
        settings.worker_updated_topic,
        str(events),
    ]
    process = subprocess.Popen(  # noqa: ASYNC220  # starting it blocks for a moment, before anything is timed
        [sys.executable, str(ours), *arguments, str(_BATCH)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    loop = asyncio.get_running_loop()
    first = await loop.run_in_executor(None, process.stdout.readline)
    if first != b"begins\n":
        sys.exit(f"the floor ended with {process.wait()}")
    before, began = _cpu(process.pid), time.monotonic()
    await loop.run_in_executor(None, process.stdout.readline)
    took, after = time.monotonic() - began, _cpu(process.pid)
    process.terminate()
    process.wait()
    return _result(events, took, before, after, "floor")


def _cpu(pid: int) -> dict[str, float]:
    """Seconds of CPU so far: of this process, of all Postgres processes, of the broker (0 where they run elsewhere)."""
    seconds = {"contestant": _seconds(psutil.Process(pid)), "postgres": 0.0, "broker": 0.0}
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


def _result(events: int, took: float, before: dict[str, float], after: dict[str, float], name: str) -> Result:
    cpu = {kind: (after[kind] - before[kind]) / events * 1e6 for kind in before}
    return Result(events / took, {name if kind == "contestant" else kind: used for kind, used in cpu.items()})


def _print(results: dict[str, list[Result]], options: argparse.Namespace) -> None:
    floor = statistics.median(result.events_per_second for result in results["floor"])
    summary = {}
    for name, runs in results.items():
        speeds = [run.events_per_second for run in runs]
        summary[name] = {
            "events_per_second": round(statistics.median(speeds)),
            "least": round(min(speeds)),
            "most": round(max(speeds)),
            "of_the_floor": round(statistics.median(speeds) / floor, 2),
            "cpu_us_per_event": {
                kind: round(statistics.median(run.cpu[kind] for run in runs), 1) for kind in runs[0].cpu
            },
        }
    if options.json:
        print(orjson.dumps(summary).decode())
        return
    table = Table(
        "",
        "events/s (median)",
        "range",
        "of the floor",
        "CPU µs an event: itself",
        "Postgres",
        "broker",
        title=f"{options.events} events, {options.measurements} measurements, {options.partitions} partitions,"
        f" {options.rounds} rounds",
    )
    for name, row in summary.items():
        cpu = row["cpu_us_per_event"]
        assert isinstance(cpu, dict)
        table.add_row(
            name,
            f"{row['events_per_second']:,}",
            f"{row['least']:,} to {row['most']:,}",
            f"{row['of_the_floor']}",
            f"{cpu[name]}",
            f"{cpu['postgres']}",
            f"{cpu['broker']}",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    main()
