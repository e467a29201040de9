"""`verify`: is every record answered, once, in order, and do topics, database and rows say the same?"""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Annotated, Any

import orjson
import typer
from pydantic import TypeAdapter, ValidationError
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from worker.cli.terminal import err, fail, out
from worker.cli.watch import printable
from worker.settings import Duration, Settings, load_settings
from worker.verification import Finding, FindingName, Report
from worker.verification import verify as run_verification

_COUNTS = {
    "applied": "answered with a measurement updated event",
    "rejected": "answered with the reason",
    "duplicates": "of an applied event: no answer",
    "pending": "not decided, or not yet known to be answered",
    "repeated": "answers sent again, which is allowed here",
    "not_comparable": "answers between which something else wrote the row",
    "edited_elsewhere": "rows that something else wrote since",
    "not_checked": "what they belong to isn't there any more",
}
_FINDINGS: dict[FindingName, str] = {
    "unanswered": "records without an answer",
    "answered_twice": "records with two",
    "stray": "answers to records that aren't in the log",
    "applied_twice": "events that were applied twice",
    "out_of_order": "answers out of revision order",
    "unequal_answers": "not the answer before with its patch, or not as received",
    "unequal_stored": "not stored as they were sent",
    "unequal_rows": "rows that aren't what their last answer says",
}
_WHAT_TO_DO: dict[FindingName, str] = {
    "unanswered": "Those that are decided (applied, rejected) are stored: stop the workers, move the group back to before"
    " the first of them (kafka-consumer-groups --reset-offsets, all partitions), start the workers: they are sent again."
    " The others: publish them again.",
    "answered_twice": "Was the group rewound, or a database put back? Then --allow-repeats. Otherwise something else"
    " writes to the answer topics, or transactions don't hold: see who may write there.",
    "stray": "Something else than the worker writes to the answer topics: see who may.",
    "applied_twice": "Is WORKER_IDENTITY_RETENTION the workers'? Were rows of applied_updates deleted?",
    "out_of_order": "Was a database put back? Otherwise a subscriber that keeps the last answer may keep an old one: send"
    " an update with {} to these measurements.",
    "unequal_answers": "See who else writes to the answer topics, or to cell_measurements in sessions that say"
    " measurement_updates.applying = on.",
    "unequal_stored": "See who else writes to the answer topics or to the schema measurement_updates;"
    " WORKER_HISTORY_RETENTION has to be the workers'.",
    "unequal_rows": "Is the trigger measurement_updates_stamp_other_writer there and enabled? See who writes with"
    " measurement_updates.applying = on. An update with {} announces a row as it is.",
}


def verify(
    wait: Annotated[
        str | None,
        typer.Option(
            "--wait",
            metavar="DURATION",
            help="Let the workers answer first what is there now, for at most so long: 30s, 5m.",
            show_default=False,
        ),
    ] = None,
    allow_repeats: Annotated[
        bool,
        typer.Option("--allow-repeats", help="The group was rewound, or the database put back."),
    ] = False,
    examples: Annotated[int, typer.Option("--examples", min=0, help="So many places of each finding.")] = 5,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Verify that every record has its one answer, and that everything agrees.

    Reads the input, the answers (read_committed) and the database, and
    compares them by a judgement of its own: records without an answer, with
    two, events applied twice, answers out of revision order or unequal to
    the one before with its patch, stored otherwise than sent, rows unequal to
    their last answer. Nothing is written, no group is joined; workers may
    run meanwhile: it compares up to where the input ends when it starts.

    What retention has taken isn't held against anybody: it is counted as not
    checked. Memory stays bounded; a temporary file (TMPDIR) takes about
    400 bytes a record. WORKER_* settings must be the workers'.

    Exit code 0: nothing found; 1: something found, or not answered in --wait.

    [bold]Examples[/bold]

      measurement-updates verify
      measurement-updates verify --wait 30s
      measurement-updates verify --allow-repeats --examples 20
      measurement-updates verify --json | jq .findings
    """
    settings = load_settings(with_servers=True)
    duration = None if wait is None else _duration(wait)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with _progress() as progress:
        report = asyncio.run(
            run_verification(
                settings, allow_repeats=allow_repeats, wait=duration, examples=examples, progress=progress
            )
        )
    if json:
        print(orjson.dumps(report.as_json()).decode())
    else:
        _show(report, settings)
    if not report.ok:
        raise typer.Exit(1)


def _duration(wait: str) -> timedelta:
    try:
        duration: timedelta = TypeAdapter[Any](Duration).validate_python(wait)
    except ValidationError:
        fail(f"--wait: expected seconds, or a number with a unit: 20s, 15m; found {wait}", 2)
    return duration


@contextmanager
def _progress() -> Iterator[Any]:
    """A bar for each step on stderr, only where that is a terminal."""
    if not err.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def says(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            bars.update(tasks[what], completed=done, total=total)

        yield says


def _show(report: Report, settings: Settings) -> None:
    out.print(
        f"{report.records:,} records of {settings.worker_updates_topic}, answers in {settings.worker_updated_topic}"
        f" and {settings.worker_rejected_topic}",
        markup=False,
    )
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 1))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    counts = report.as_json()
    for name, meaning in _COUNTS.items():
        table.add_row(_words(name), f"{counts[name]:,}", meaning)
    table.add_row()
    for finding, meaning in _FINDINGS.items():
        found = report.findings[finding]
        style = "red" if found.count else "green"
        table.add_row(_words(finding), Text(f"{found.count:,}", style=style), meaning)
    out.print(table, soft_wrap=False)
    for finding, found in report.findings.items():
        if found.count:
            _show_finding(finding, found)
    _conclude(report)


def _show_finding(name: FindingName, found: Finding) -> None:
    out.print()
    out.print(f"[red]{_words(name)}[/red]: {_FINDINGS[name]}")
    for example in found.examples:
        out.print(Padding(Text(printable(example)), (0, 0, 0, 2)), soft_wrap=False)
    if found.count > len(found.examples):
        out.print(f"  … and {found.count - len(found.examples):,} more", style="dim")
    out.print(Padding(Text(_WHAT_TO_DO[name], style="dim"), (0, 0, 0, 2)), soft_wrap=False)


def _conclude(report: Report) -> None:
    found = sum(finding.count for finding in report.findings.values())
    out.print()
    if report.waited_in_vain:
        out.print(
            f"[red]{report.pending:,} still pending when the time to wait was over[/red]: do workers run?"
            " `measurement-updates lanes list` shows how far each partition is"
        )
    if found:
        out.print(f"[red]{found:,} found[/red]")
    elif report.ok:
        pending = f"; {report.pending:,} still pending (--wait)" if report.pending else ""
        out.print(f"[green]ok[/green]: nothing found{pending}")


def _words(name: str) -> str:
    return name.replace("_", " ")
