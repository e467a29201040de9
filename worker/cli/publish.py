"""`publish FILE`: a file of updates, checked as a whole, then sent."""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated, Any, cast

import orjson
import typer
from aiokafka.errors import KafkaError

from worker.cli.sending import Sending, progress
from worker.cli.terminal import err, fail, out
from worker.cli.update_file import Rules, Updates, describe, violations
from worker.cli.update_rows import Format, read_rows
from worker.errors import DependencyAway, with_what_to_do
from worker.retry import as_worker_error
from worker.settings import load_settings

SOURCE = "measurement-updates/publish"
_LISTED = 1_000  # violations in --json; on stderr all of them


class FileFormat(StrEnum):
    jsonl = "jsonl"
    csv = "csv"


class EventForm(StrEnum):
    binary = "binary"
    structured = "structured"
    bare = "bare"


def publish(
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON Lines or CSV; - reads standard input.")],
    format: Annotated[
        FileFormat | None,
        typer.Option("--format", help="Of standard input and unusual names.", show_default=False),
    ] = None,
    source: Annotated[
        str, typer.Option("--source", help="CloudEvents source of rows that name none.")
    ] = SOURCE,
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch",
            help="Part of the event ids: in another batch the same rows are new updates. Default: the file's name (-).",
            show_default=False,
        ),
    ] = None,
    form: Annotated[
        EventForm,
        typer.Option("--form", help="bare events have no id: sent again, they count again."),
    ] = EventForm.binary,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file, send nothing.")] = False,
    skip_validation: Annotated[
        bool, typer.Option("--skip-validation", help="Send rows that break the schema, too.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    r"""Publish the measurement updates of a file.

    Every row is checked first: if one is wrong, all that is wrong is listed
    and nothing is sent. Running the same command again is safe: its events
    have the same ids, so the worker counts them as duplicates.

    [bold]JSON Lines[/bold]: one object a line, the PATCH body in patch, or its fields
    beside measurement_id.

      {"measurement_id": "m-1", "patch": {"notes": "vented at 45 °C"}}
      {"measurement_id": "m-1", "notes": null, "expectedrevision": 7}

    Optional beside them: id, source, expectedrevision, organizationid,
    traceparent.

    [bold]CSV[/bold]: a header, then one update a row; comma, semicolon or tab.

      measurement_id,notes,test_setup.cycler,test_setup.channel_number
      m-1,vented at 45 °C,BCS-815,25
      m-2,\N,,

    An empty cell leaves the field alone, \N writes null. A quantity has two
    columns, properties.thickness.value and properties.thickness.unit; other
    properties are texts, or true and false. protocol, test_setup, properties
    and protocol.definition also take a JSON object. As with PATCH, a field
    that is present replaces the whole field: test_setup.channel_number alone
    drops the cycler.

    [bold]Examples[/bold]

      measurement-updates publish updates.jsonl
      measurement-updates publish export.csv --dry-run
      jq -c '.[]' all.json | measurement-updates publish - --format jsonl
    """
    settings = load_settings()
    kind = _format(file, format)
    rules = Rules(source, batch or Path(file).name, cast(Any, form.value), settings.worker_max_event_bytes)
    if not source:
        fail("--source: expected a text that isn't empty", 2)
    if not dry_run:
        _ = settings.bootstrap_servers  # say that it is missing before reading a large file
    with _opened(file) as opened:
        checked = _check(opened, kind, rules, quiet=json)
        summary: dict[str, Any] = {
            "file": file,
            "rows": checked.rows,
            "measurements": len(checked.measurements),
            "wrong_rows": checked.wrong_rows,
            "violations": checked.listed,
            "published": 0,
        }
        if checked.unsendable or (checked.wrong_rows and not skip_validation):
            _say_json(summary, json)
            hint = "" if checked.unsendable else "; --skip-validation sends them all the same"
            fail(f"{checked.wrong_rows:,} of {checked.rows:,} rows are wrong: nothing was sent{hint}")
        if dry_run:
            _say_json(summary, json)
            if not json:
                measurements = _count(len(checked.measurements), "measurement")
                out.print(f"{file}: {_count(checked.rows, 'update')} of {measurements}, all right")
            return
        opened.seek(0)
        sending = Sending(settings, opened, kind, rules, checked.rows)
        failure: BaseException | None = None
        try:
            asyncio.run(sending.run())
        except (DependencyAway, KafkaError, KeyboardInterrupt) as error:
            failure = error
    summary |= {
        "topic": settings.worker_updates_topic,
        "published": sending.acknowledged,
        "seconds": round(sending.seconds, 3),
        "per_second": round(sending.acknowledged / sending.seconds) if sending.seconds else 0,
    }
    _say_json(summary, json)
    if failure is not None:
        again = "running it again sends all of them once more, as new updates"
        if form != "bare":
            again = "running the same command again is safe: what has arrived is a duplicate then"
        interrupted = isinstance(failure, KeyboardInterrupt)
        known = as_worker_error(failure)
        why = "interrupted" if known is None else with_what_to_do(known)
        fail(
            f"{why}\n{sending.acknowledged:,} of {checked.rows:,} updates were acknowledged; {again}",
            130 if interrupted else 1,
        )
    if not json:
        out.print(
            f"published {_count(sending.acknowledged, 'update')} of {_count(len(checked.measurements), 'measurement')} to"
            f" {settings.worker_updates_topic} in {sending.seconds:.1f} s ({summary['per_second']:,}/s)"
        )


def _format(file: str, format: FileFormat | None) -> Format:
    if format is not None:
        return format.value
    suffix = Path(file).suffix.lower()
    if suffix in (".jsonl", ".ndjson", ".json"):
        return "jsonl"
    if suffix in (".csv", ".tsv"):
        return "csv"
    found = "standard input" if file == "-" else f"{Path(file).name}"
    return fail(f"expected a name that ends in .jsonl or .csv, or --format jsonl|csv; found {found}", 2)


@contextmanager
def _opened(file: str) -> Iterator[IO[bytes]]:
    """The file, to be read twice: standard input is kept in a temporary one."""
    if file == "-":
        with _spooled(sys.stdin.buffer) as spool:
            yield spool
        return
    with ExitStack() as closing:
        try:
            opened: IO[bytes] = closing.enter_context(Path(file).open("rb"))
        except OSError as error:
            fail(f"{file}: expected a file to read, found: {error.strerror}", 2)
        if not opened.seekable():  # a pipe by name, <(…) of a shell
            opened = closing.enter_context(_spooled(opened))
        yield opened


@contextmanager
def _spooled(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as spool:
        shutil.copyfileobj(stream, spool)
        spool.seek(0)
        yield spool


# Checking ---------------------------------------------------------------------------------------------------


class _Checked:
    def __init__(self) -> None:
        self.rows = 0
        self.wrong_rows = 0
        self.unsendable = 0
        """Rows that can't be made an update at all."""
        self.measurements: set[str] = set()
        self.listed: list[dict[str, Any]] = []


def _check(file: IO[bytes], kind: Format, rules: Rules, *, quiet: bool) -> _Checked:
    """The whole file, before anything is sent; what is wrong is said as it is found."""
    checked = _Checked()
    updates = Updates(rules)
    with progress("checking", None) as advance:
        for row in read_rows(file, kind):
            checked.rows += 1
            message = updates.message(row)
            checked.unsendable += message is None
            if isinstance(row.measurement_id, str):
                checked.measurements.add(row.measurement_id)
            if found := violations(row, message, rules):
                checked.wrong_rows += 1
                room = _LISTED - len(checked.listed)
                checked.listed += [
                    {"line": row.line, "path": one.path, "expected": one.expected, "found": one.found}
                    for one in found[:room]
                ]
                if not quiet:
                    for line in describe(row.line, found):
                        err.print(line, markup=False)
            advance()
    if not checked.rows:
        fail("expected at least one update, found none: the file is empty")
    return checked


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _say_json(summary: dict[str, Any], wanted: bool) -> None:
    if wanted:
        print(orjson.dumps(summary).decode(), flush=True)
