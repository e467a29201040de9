"""`make growth`: the worker's rate as what it works on grows, beside its rate on little, and as it catches up.

Each case runs right after a run of the base (10,000 measurements, an empty history, 4 partitions, one worker) and is given
as a share of that one. No machine takes as many large definitions a second: those are a share of the floor on the same
events. What is counted is what is decided in Postgres, for the rewind what is answered. A third of the events is the
beginning and doesn't count: start-up, each partition's first batch, the rebalance when a second worker joins. Loading what
is large takes longer than the cases themselves.
"""

import argparse
import asyncio
import contextlib
import tempfile
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.benchmarks.contestants import floor
from tests.benchmarks.log import fill_history, fill_log
from tests.benchmarks.measure import Applied, Committed, Result, measured
from tests.benchmarks.prepare import prepared
from tests.system import System
from worker.settings import load_settings
from worker.stack import running_stack


@dataclass(frozen=True, slots=True)
class Case:
    """What differs from the base."""

    events: int = 100_000
    measurements: int = 10_000
    history: int = 0
    """Rows of applied_updates before it begins."""
    partitions: int = 4
    workers: int = 1
    definition_bytes: int = 0
    then: Literal["", "rewound", "sent again"] = ""
    """Once all is applied, measure this instead: the group's offsets are set to 0, or the same events are sent once more."""


BASE = "10,000 measurements, no history"
CASES = {
    BASE: Case(),
    "1,000,000 measurements": Case(measurements=1_000_000),
    "5,000,000 measurements": Case(measurements=5_000_000),
    "history of 1,000,000": Case(history=1_000_000),
    "history of 10,000,000": Case(history=10_000_000),
    "one measurement takes every event": Case(measurements=1),
    "definitions of 50 kB, beside the floor": Case(events=5_000, definition_bytes=50_000),
    "1 partition": Case(partitions=1),
    "16 partitions": Case(events=300_000, partitions=16),
    "64 partitions": Case(events=600_000, partitions=64),
    "2 workers": Case(workers=2),
    "a rewind: stored answers again": Case(then="rewound"),
    "duplicates: the same events again": Case(then="sent again"),
    "a backlog of 1,000,000": Case(events=1_000_000),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="make growth", description=__doc__)
    parser.add_argument("--only", action="append", choices=[name for name in CASES if name != BASE])
    options = parser.parse_args()
    names = options.only or [name for name in CASES if name != BASE]
    with running_stack(load_settings()) as stack:
        asyncio.run(_run(stack.kafka_bootstrap_servers, stack.database_url, names))


async def _run(servers: str, database_url: str, names: list[str]) -> None:
    table = Table(
        "", "events/s", "of what is beside it", "CPU µs an event: itself", "Postgres", "broker", "peak MiB"
    )
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for name in progress.track(names, description="growth"):
            base = await _beside(servers, database_url, CASES[name])
            found = await _measure(servers, database_url, CASES[name])
            share = found.events_per_second / base.events_per_second
            cpu = [f"{found.cpu[kind]:.1f}" for kind in ("itself", "postgres", "broker")]
            table.add_row(
                name, f"{found.events_per_second:,.0f}", f"{share:.2f}", *cpu, f"{found.peak_mib:.0f}"
            )
            console.log(f"{name}: {share:.2f} of {base.events_per_second:,.0f} events/s")
    Console(width=132).print(table)


async def _beside(servers: str, database_url: str, case: Case) -> Result:
    if not case.definition_bytes:
        return await _measure(servers, database_url, CASES[BASE])
    async with _prepared(servers, database_url, case) as bench:
        return await floor(case.definition_bytes)(bench, case.events)


def _prepared(servers: str, database_url: str, case: Case) -> contextlib.AbstractAsyncContextManager[System]:
    return prepared(
        servers,
        database_url,
        events=case.events,
        measurements=case.measurements,
        partitions=case.partitions,
        definition_bytes=case.definition_bytes,
    )


async def _measure(servers: str, database_url: str, case: Case) -> Result:
    async with _prepared(servers, database_url, case) as bench:
        await fill_history(bench, case.history)
        found = await _applied(bench, case, 0)
        if case.then == "rewound":
            await bench.rewind()
            return await _applied(bench, case, 0)
        if case.then == "sent again":
            await asyncio.to_thread(fill_log, bench, case.events, case.measurements)
            return await _applied(bench, case, case.events)
        return found


async def _applied(bench: System, case: Case, done_before: int) -> Result:
    """From now until as many events more are done with."""
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile())
        workers = [stack.enter_context(bench.process(log)) for _ in range(case.workers)]
        found = await measured(
            bench,
            [worker.pid for worker in workers],
            case.events,
            done=Committed(bench) if case.then == "rewound" else Applied(bench),
            done_before=done_before,
            begun=case.events // 3,
        )
        for worker in workers:  # so that nobody is in the group, whose offsets may be set then
            worker.terminate()
            await asyncio.to_thread(worker.wait, 30)
        return found


if __name__ == "__main__":
    main()
