"""The benchmark's figures, summed up and printed."""

import statistics
import sys
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.latency import Latencies
from tests.benchmarks.measure import Result

_WIDTH = 132


@dataclass(slots=True)
class Report:
    title: str
    results: dict[str, list[Result]] = field(default_factory=dict)
    latencies: dict[int, Latencies] = field(default_factory=dict)
    """By events/s."""
    floor_latencies: dict[int, Latencies] = field(default_factory=dict)
    """Of bare transactions, which the worker's can't be below."""

    def summary(self) -> dict[str, Any]:
        speeds = {name: [run.events_per_second for run in runs] for name, runs in self.results.items()}
        floor = statistics.median(speeds["floor"]) if "floor" in speeds else None
        throughput = {
            name: {
                "events_per_second": round(statistics.median(speeds[name])),
                "least": round(min(speeds[name])),
                "most": round(max(speeds[name])),
                "of_the_floor": round(statistics.median(speeds[name]) / floor, 2) if floor else None,
                "cpu_us_per_event": {
                    kind: round(statistics.median(run.cpu[kind] for run in runs), 1) for kind in runs[0].cpu
                },
                "wal_bytes_per_event": round(statistics.median(run.wal_bytes for run in runs)),
                "peak_mib": round(max(run.peak_mib for run in runs)),
            }
            for name, runs in self.results.items()
        }
        latency = {
            str(rate): {
                "answers": len(found.answers),
                "p50_ms": _quantile(found.answers, 0.5),
                "p99_ms": _quantile(found.answers, 0.99),
                "max_ms": round(found.answers[-1], 1),
                "sender_late_ms": round(found.sender_late, 1),
                "floor_p50_ms": _quantile(self.floor_latencies[rate].answers, 0.5),
                "floor_p99_ms": _quantile(self.floor_latencies[rate].answers, 0.99),
            }
            for rate, found in self.latencies.items()
        }
        return {"title": self.title, "throughput": throughput, "latency": latency}


def _quantile(found: list[float], share: float) -> float:
    return round(found[min(len(found) - 1, int(len(found) * share))], 1)


def print_report(report: Report) -> None:
    summary = report.summary()
    out = Console(width=None if sys.stdout.isatty() else _WIDTH)
    if summary["throughput"]:
        table = Table(
            "", "events/s (median)", "range", "of the floor", "CPU µs an event: itself", "Postgres", "broker",
            "WAL bytes an event", "peak MiB", title=report.title,
        )  # fmt: skip
        for name, row in summary["throughput"].items():
            spread = f"{row['least']:,} to {row['most']:,}"
            cells = (
                row["of_the_floor"],
                *row["cpu_us_per_event"].values(),
                row["wal_bytes_per_event"],
                row["peak_mib"],
            )
            table.add_row(name, f"{row['events_per_second']:,}", spread, *map(str, cells))
        out.print(table)
    if summary["latency"]:
        table = Table(
            "events/s", "answers", "p50 ms", "p99 ms", "max ms", "sender late at most, ms",
            "bare transactions: p50 ms", "p99 ms",
            title="from append to visible answer, open-loop",
        )  # fmt: skip
        for rate, row in summary["latency"].items():
            table.add_row(f"{int(rate):,}", *map(str, row.values()))
        out.print(table)
