"""What `replay` shows for people."""

from collections.abc import Iterable, Sequence

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from worker.cli.terminal import err, out
from worker.cli.watch import printable
from worker.replay.forecast import Change, Forecast
from worker.replay.runs import Run

_LONGEST_VALUE = 60


def show_run(run: Run) -> None:
    """How far it is, what became of its records, and what to do next."""
    counts = run.counts
    options = " ".join(f"--{name} {value}" for name, value in run.selection.as_json().items())
    out.print(f"replay {run.id}: {run.state}{_ended_by(run)}", markup=False)
    out.print(f"  by {run.started_by}: {printable(run.why)}", markup=False)
    out.print(f"  of {run.topic}: {printable(options)}{' --reapply' if run.reapply else ''}", markup=False)
    rows = [("read", counts.read, "records of the range"), ("published again", counts.published, "")]
    if counts.unpublishable:
        rows.append(("not published", counts.unpublishable, "can't be, byte for byte (see the warnings)"))
    if counts.missed:
        rows.append(("missed", counts.missed, "retention has taken them meanwhile"))
    out.print(_table([*rows, *_outcome(run)]), soft_wrap=False)
    match run.state:
        case "running":
            out.print(f"if no process is at it: measurement-updates replay resume {run.id}", markup=False)
        case "published":
            out.print(f"until it is decided: measurement-updates replay resume {run.id}", markup=False)
        case _:
            pass


def _ended_by(run: Run) -> str:
    return f" by {run.ended_by}" if run.ended_by else ""


def _outcome(run: Run) -> list[tuple[str, int, str]]:
    found = run.outcome
    # of one that was killed the outcome may be ahead of what it has noted
    if found is None or not (
        run.counts.published or found["pending"] or found["applied"] or found["rejected"]
    ):
        return []
    rows = [
        (
            "applied",
            found["applied"],
            f"of these {found['unchanged']:,} without a change" if found["unchanged"] else "",
        ),
        ("duplicates", found["duplicates"], "applied before"),
        *_codes(found["rejected"]),
    ]
    if found["pending"]:
        rows.append(("pending", found["pending"], "workers have yet to decide them"))
    return rows


def _codes(rejected: dict[str, int]) -> list[tuple[str, int, str]]:
    return [("rejected", count, code) for code, count in rejected.items()] or [("rejected", 0, "")]


def _table(rows: Iterable[tuple[str, int, str]]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 1))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for name, count, meaning in rows:
        table.add_row(name, f"{count:,}", meaning)
    return table


def show_runs(found: Sequence[Run]) -> None:
    """A line each, the last one first."""
    for run in found:
        begun = "" if run.started_at is None else f"{run.started_at:%Y-%m-%d %H:%M} "
        out.print(
            f"{run.id}  {run.state}, {begun}by {run.started_by}, {run.counts.published:,} published:"
            f" {printable(run.why)}",
            markup=False,
        )


def show_forecast(forecast: Forecast) -> None:
    """Counts, examples, and the rows that would change, as a diff."""
    out.print("nothing was published; this would happen, as the database is now:")
    rows = [
        ("read", forecast.read, "records of the range"),
        ("published", forecast.selected - forecast.unpublishable, "again"),
        ("applied", forecast.applied, "anew"),
        ("late", forecast.late, "of these: leave alone what something newer has written"),
        ("unchanged", forecast.unchanged, "of these: change nothing, and are answered"),
        ("duplicates", forecast.duplicates, "no answer"),
        *_codes(forecast.rejected),
        ("rows", forecast.rows, "would change"),
    ]
    if forecast.unpublishable:
        rows.append(("not published", forecast.unpublishable, "can't be, byte for byte"))
    out.print(_table(rows), soft_wrap=False)
    for name, listed in forecast.examples.items():
        if listed:
            out.print()
            out.print(f"[bold]{name}[/bold]")
            for line in listed:
                out.print(Padding(Text(printable(line)), (0, 0, 0, 2)), soft_wrap=False)
    if forecast.changes:
        out.print()
        out.print("[bold]rows[/bold]")
        for change in forecast.changes:
            _show_change(change)
        if forecast.rows > len(forecast.changes):
            out.print(f"  … and {forecast.rows - len(forecast.changes):,} more (--examples)", style="dim")
    if forecast.not_decided:
        err.print(
            f"[yellow]warning:[/yellow] {forecast.not_decided:,} of them aren't decided yet: workers will have applied"
            " them before a replay comes to them"
        )
    if forecast.stopped:
        err.print("[yellow]warning:[/yellow] ", end="")
        err.print(f"not the whole range: {forecast.stopped}", markup=False)


def _show_change(change: Change) -> None:
    before, after = change.revision
    out.print(
        Padding(Text(f"{printable(change.measurement)}: revision {before} → {after}"), (0, 0, 0, 2)),
        soft_wrap=False,
    )
    for name, (was, will_be) in change.fields.items():
        for sign, text, style in (("-", was, "red"), ("+", will_be, "green")):
            line = Text(f"{sign} {name}: {_short(text)}", style=style)
            out.print(Padding(line, (0, 0, 0, 4)), soft_wrap=False)


def _short(text: bytes | None) -> str:
    said = printable((text or b"null").decode())
    return said if len(said) <= _LONGEST_VALUE else f"{said[:_LONGEST_VALUE]}…"
