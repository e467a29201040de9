"""`make bench`: how fast the worker is, beside what the same broker and database allow without our logic.

One run, the same topic and rows for all, in interleaved rounds:

- floor: raw consume, the worker's set-wise update, as many bytes produced; no validation, no duplicates, no model
- batch script: what a good engineer writes in a day; no validation, no history, not exactly once
- plain FastStream: a typed handler, a transaction and a publish a message; one worker, and ten
- worker: everything on

and then the worker's latency, open-loop, beside that of bare transactions.
What is measured, and how: measure.py, latency.py.
"""

import argparse
import asyncio
from pathlib import Path

import orjson
from rich.console import Console
from rich.progress import Progress

from tests.benchmarks.contestants import CONTESTANTS
from tests.benchmarks.latency import floor_latencies, latencies
from tests.benchmarks.prepare import prepared
from tests.benchmarks.report import Report, print_report
from worker.settings import load_settings
from worker.stack import running_stack

console = Console(stderr=True)
_LATENCY_SECONDS = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--plain-events", type=int, default=3_000, help="for plain FastStream, which is slow")
    parser.add_argument("--measurements", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--only", action="append", choices=list(CONTESTANTS), help="only these contestants")
    parser.add_argument("--rates", type=int, nargs="*", default=[100, 1_000, 5_000], help="of the latencies")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    options = parser.parse_args()
    with running_stack(load_settings()) as stack:
        report = asyncio.run(_run(stack.kafka_bootstrap_servers, stack.database_url, options))
    if options.json:
        print(orjson.dumps(report.summary()).decode())
    else:
        print_report(report)
    if options.plot:
        from tests.benchmarks.plot import plot  # matplotlib takes seconds to import

        plot(report.summary(), options.plot)


async def _run(servers: str, database_url: str, options: argparse.Namespace) -> Report:
    names = options.only or list(CONTESTANTS)
    report = Report(
        f"{options.events:,} events, {options.measurements:,} measurements, {options.partitions} partitions,"
        f" {options.rounds} rounds"
    )
    log = {"measurements": options.measurements, "partitions": options.partitions}
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("benchmark", total=len(names) * options.rounds + len(options.rates))
        for _ in range(options.rounds):
            for name in names:
                events = options.plain_events if name.startswith("plain") else options.events
                async with prepared(servers, database_url, events=events, **log) as bench:
                    report.results.setdefault(name, []).append(await CONTESTANTS[name](bench, events))
                progress.advance(task)
        for rate in options.rates:
            async with prepared(servers, database_url, events=0, **log) as bench:
                report.floor_latencies[rate] = await floor_latencies(
                    bench, rate, _LATENCY_SECONDS, options.measurements
                )
            async with prepared(servers, database_url, events=0, **log) as bench:
                report.latencies[rate] = await latencies(bench, rate, _LATENCY_SECONDS, options.measurements)
            progress.advance(task)
    return report


if __name__ == "__main__":
    main()
