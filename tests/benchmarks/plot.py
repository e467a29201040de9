"""The benchmark's picture."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

_INK = "#1f3a5f"
_PALE = "#b8c4d6"


def plot(summary: dict[str, Any], to: Path) -> None:
    """Throughput as bars with their range, latency as p50 to p99."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=(3, 2))
    rows = summary["throughput"]
    names = list(rows)[::-1]
    speeds = [rows[name]["events_per_second"] for name in names]
    spread = [
        [rows[name]["events_per_second"] - rows[name]["least"] for name in names],
        [rows[name]["most"] - rows[name]["events_per_second"] for name in names],
    ]
    colours = [_INK if name == "worker" else _PALE for name in names]
    bars = left.barh(names, speeds, xerr=spread, color=colours, error_kw={"elinewidth": 1, "capsize": 2})
    left.bar_label(bars, [f"{speed:,}" for speed in speeds], padding=6)
    left.set_xlim(0, max(speeds) * 1.2)
    left.set_xlabel("events/s: median and range")

    rates = [f"{int(rate):,}" for rate in summary["latency"]]
    for name, marker, colour, label in (
        ("p50_ms", "o", _INK, "p50"),
        ("p99_ms", "^", _INK, "p99"),
        ("floor_p50_ms", "o", _PALE, "p50 of bare transactions"),
        ("floor_p99_ms", "^", _PALE, "p99 of bare transactions"),
    ):
        values = [row[name] for row in summary["latency"].values()]
        right.plot(rates, values, marker=marker, color=colour, linestyle="none", label=label)
        for place, value in zip(rates, values, strict=True):
            # the worker's at the right, the floor's at the left: they may be near each other
            beside, side = ((8, -3), "left") if colour == _INK else ((-8, -3), "right")
            right.annotate(
                f"{value:,.0f}", (place, value), xytext=beside, textcoords="offset points", ha=side
            )
    right.margins(x=0.25)
    right.set_yscale("log")
    right.set_xlabel("events/s, open-loop")
    right.set_ylabel("ms from append to visible answer")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(summary["title"], fontsize=10)
    figure.tight_layout()
    figure.savefig(to, dpi=150)
