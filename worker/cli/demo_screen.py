"""What the demo shows: live on a terminal, plain lines elsewhere, and the same report at the end of both."""

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from contracts.cloudevents import MeasurementUpdated, UpdateRejected
from worker.cli.watch import printable
from worker.lab.day import Day
from worker.lab.exports import INTEGRATIONS
from worker.lab.history import Entry
from worker.lab.updates import LabUpdate

Answer = MeasurementUpdated | UpdateRejected

_LATEST = 10
_SHOWN_ENTRIES = 8


class Screen:
    """Plain lines: stages, rejections as they come, and where things stand now and then."""

    def __init__(self, console: Console, names: dict[str, str]) -> None:
        self._console = console
        self._names = names
        """Measurement id → name."""
        self._said = 0

    def stage(self, text: str) -> None:
        self.print(text)

    def print(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def showing(self) -> Iterator[None]:
        """While a day runs."""
        self._said = 0
        yield

    def shown(self, day: Day) -> None:
        """A day is over."""
        self.print("  " + self._standing(day))

    def answered(self, update: LabUpdate | None, answer: Answer) -> None:
        if isinstance(answer, UpdateRejected):
            self._console.print(self._line(update, answer), soft_wrap=True)

    def moved(self, day: Day) -> None:
        step = max(1, len(day.updates) // 4)
        if self._said < day.judged.total // step < 4:
            self._said = day.judged.total // step
            self.print("  " + self._standing(day))

    def _standing(self, day: Day) -> str:
        judged = day.judged
        return (
            f"published {len(day.published):,} of {len(day.updates):,}: applied {judged.applied:,},"
            f" duplicate {judged.duplicates:,}, rejected {judged.rejected:,}"
        )

    def _line(self, update: LabUpdate | None, answer: Answer) -> Text:
        """One answer: from whom, about what, what became of it."""
        origin, about = ("?", "?") if update is None else (update.integration, update.about)
        line = Text.assemble("  ", (f"{origin:<9}", "cyan"))
        if isinstance(answer, UpdateRejected):
            return line.append(f"rejected {answer.code}: ", "red").append(about)
        name = self._names.get(answer.measurement_id, answer.measurement_id)
        changed = ", ".join(answer.changed) or "nothing changed"
        line.append(f"{printable(name)} ", "bold").append(f"r{answer.revision} {changed}", "green")
        return line.append(f"  {about}", "dim")


class LiveScreen(Screen):
    """Redrawn in place, on a terminal."""

    def __init__(self, console: Console, names: dict[str, str]) -> None:
        super().__init__(console, names)
        self._latest: deque[Text] = deque(maxlen=_LATEST)
        self._day: Day | None = None
        self._latencies: tuple[float, list[float]] = (0.0, [])

    def stage(self, text: str) -> None:
        self._console.print(f"[bold]{text}[/bold]")

    @contextlib.contextmanager
    def showing(self) -> Iterator[None]:
        self._day = None
        self._latest.clear()
        with Live(
            get_renderable=self._render,
            console=self._console,
            refresh_per_second=10,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        ):
            yield

    def answered(self, update: LabUpdate | None, answer: Answer) -> None:
        line = self._line(update, answer)
        line.no_wrap, line.overflow = True, "ellipsis"
        self._latest.append(line)

    def moved(self, day: Day) -> None:
        self._day = day

    def _render(self) -> Group:
        day = self._day
        if day is None:
            return Group(Text("  …"))
        at, latencies = self._latencies
        if time.monotonic() - at > 0.5:
            latencies = day.latencies()
            self._latencies = time.monotonic(), latencies
        judged = day.judged
        standing = Text.assemble(
            "  applied ", (f"{judged.applied:,}", "bold green"),
            "   duplicate ", (f"{judged.duplicates:,}", "bold yellow"),
            "   rejected ", (f"{judged.rejected:,}", "bold red"),
            f"   answers {len(day.seen):,}",
            (f"   p50 {percentile(latencies, 50):.0f} ms" if latencies else "", "dim"),
        )  # fmt: skip
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            "  published",
            ProgressBar(total=len(day.updates), completed=len(day.published), width=40),
            f"{len(day.published):,}/{len(day.updates):,}",
        )
        blank = [Text("")] * (_LATEST - len(self._latest))
        return Group(bar, standing, Text(""), *self._latest, *blank)


def percentile(ascending: Sequence[float], percent: float) -> float:
    """Nearest rank."""
    return ascending[min(len(ascending) - 1, int(len(ascending) * percent / 100))]


# The report -------------------------------------------------------------------------------------------------


def show_rejections(console: Console, day: Day) -> None:
    """Each code once, with the reason that its first one was given."""
    examples: dict[str, tuple[LabUpdate | None, UpdateRejected]] = {}
    for one in day.seen:
        if isinstance(one.answer, UpdateRejected):
            examples.setdefault(one.answer.code, (day.find(one.answer), one.answer))
    console.print("\nRejected, and why (the first of each kind)", style="bold")
    for code, (update, answer) in sorted(examples.items()):
        origin = "" if update is None else f"{update.integration}: {update.about}"
        count = day.outcomes[code]
        console.print(Text.assemble(f"  {count:>2} ", (code, "red"), (f"  {origin}", "cyan")))
        message = printable(answer.message)
        _print_indented(console, 5, Text(message if len(message) <= 200 else message[:199] + "…", "dim"))


def _print_indented(console: Console, columns: int, text: Text) -> None:
    """Folded under itself on a terminal, one line elsewhere."""
    if console.is_terminal:
        console.print(Padding(text, (0, 0, 0, columns)), soft_wrap=False)
    else:
        console.print(" " * columns, text, sep="", soft_wrap=True)


def show_history(
    console: Console, name: str, measurement_id: str, entries: Sequence[Entry], late: str
) -> None:
    """The first and the last of them. `late`: the id of an event that came late."""
    console.print(f"\nHistory of {name} ({measurement_id})", style="bold")
    hidden = max(0, len(entries) - _SHOWN_ENTRIES)
    for number, entry in enumerate(entries):
        if 2 <= number < 2 + hidden:
            if number == 2:
                console.print(f"      … {hidden} more …", style="dim")
            continue
        at = entry.at.astimezone().strftime("%H:%M:%S.%f")[:-3]
        lines = [
            Text.assemble(f"{one.path} ", (one.before, "red"), " → ", (one.after, "green"))
            for one in entry.changes
        ]
        if entry.id == late:
            lines.insert(0, Text("repaired and sent again, late: what is newer stays", "yellow"))
        console.print(
            Text.assemble(
                f"{f'r{entry.revision}':>5} ", (at, "dim"), " ", (integration_of(entry.source), "cyan"), "  "
            ),
            end="",
        )
        if entry.id == late:
            console.print("repaired and sent again, late: what is newer stays", style="yellow")
        elif not entry.changes:
            console.print("nothing changed", style="dim")
        else:
            console.print(
                ", ".join(dict.fromkeys(one.path.partition(".")[0] for one in entry.changes)), style="bold"
            )
        for one in entry.changes:
            line = Text.assemble(f"{one.path}: ", (one.before, "red"), " → ", (one.after, "green"))
            _print_indented(console, 7, line)


def integration_of(source: str) -> str:
    """Who sends with this CloudEvents source; a bare event's is its topic."""
    if source.startswith("kafka:"):
        return "maccor"
    return next((one.name for one in INTEGRATIONS if one.source == source), source)


def show_summary(console: Console, day: Day, rush: Day | None, seconds: float) -> None:
    """Expected and seen, side by side; latency and throughput of this run."""
    console.print("\nSummary", style="bold")
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    table.add_column("  outcome")
    table.add_column("expected", justify="right")
    table.add_column("seen", justify="right")
    table.add_column("")
    order = ["applied", "duplicate", *sorted(set(day.expected | day.outcomes) - {"applied", "duplicate"})]
    for outcome in order:
        expected, seen = day.expected[outcome], day.outcomes[outcome]
        right = expected == seen
        table.add_row(
            f"  {outcome}",
            f"{expected:,}",
            f"{seen:,}",
            "" if right else "differs",
            style="" if right else "bold red",
        )
    console.print(table)
    latencies = day.latencies()
    if latencies:
        console.print(
            f"  latency     append to visible answer: p50 {percentile(latencies, 50):.0f} ms,"
            f" p99 {percentile(latencies, 99):.0f} ms, at {rate(day):,.0f} updates/s"
        )
    if rush is not None:
        console.print(
            f"  throughput  {len(rush.updates):,} updates at once: {rate(rush):,.0f}/s applied and answered,"
            f" in {rush.ended - rush.began:.1f} s"
        )
    console.print(f"  duration    {seconds:.0f} s in all")


def rate(day: Day) -> float:
    """Updates a second, from the first publish to the last visible answer."""
    return len(day.updates) / max(day.ended - day.began, 0.001)
