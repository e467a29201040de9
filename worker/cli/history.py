"""`history`: what became of one measurement, and what it was."""

import asyncio
import os
import signal
import sys
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import orjson
import typer
from pydantic import TypeAdapter, ValidationError
from rich.padding import Padding
from rich.text import Text

from worker.cli.terminal import err, fail, stream
from worker.cli.watch import printable
from worker.differences import Difference, NotThere
from worker.history import Applied, Begins, Elsewhere, Entry, Link, first_values, measurement_history
from worker.model_at import ModelAt, model_at
from worker.settings import Duration, load_settings

_MOST_DIFFERENCES = 20
_VALUE_CHARACTERS = 60
_BEGINS = {
    "first_event": "its first event",
    "retention": "earlier events are past WORKER_HISTORY_RETENTION: no longer kept",
    "limit": "earlier events aren't shown (--limit)",
    "no_event": "no event was ever applied to it",
}


def history(
    measurement: Annotated[str, typer.Argument(metavar="MEASUREMENT", help="The measurement's id.")],
    at: Annotated[
        str | None,
        typer.Option(
            "--at",
            metavar="TIME|REVISION",
            help="Print the model as it was: at a revision (7), a time (2026-01-31T12:00, local without a zone) or 3d ago.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=0, help="At most so many events, the newest; 0: all.")
    ] = 50,
    everything: Annotated[
        bool, typer.Option("--all", help="Show applied events too that changed nothing.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line; with --at one object.")
    ] = False,
) -> None:
    """Show every revision of a measurement: when, by which event, what changed.

    The newest comes last. What something else than an event has written (the
    REST API) is shown as changed elsewhere, where an answer differs from the
    one before it. It goes back as far as WORKER_HISTORY_RETENTION lets it.

    [bold]Examples[/bold]

      measurement-updates history m-1
      measurement-updates history m-1 --all --limit 0
      measurement-updates history m-1 --at 2026-01-31T12:00:00Z
      measurement-updates history m-1 --json | jq .differences
    """
    moment = None if at is None else _moment(at)
    settings = load_settings()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if moment is not None:
            asyncio.run(_show_model(settings.dsn, measurement, moment, json))
        else:
            asyncio.run(_show_entries(settings.dsn, measurement, limit or None, everything, json))
        sys.stdout.flush()
    except BrokenPipeError:
        # who read our output has had enough (head): that is no failure. Python would complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _moment(at: str) -> int | datetime:
    if at.isdecimal():
        return int(at)
    try:
        ago: timedelta = TypeAdapter[Any](Duration).validate_python(at)
        return datetime.now(UTC) - ago
    except (ValidationError, OverflowError):
        pass
    try:
        moment = datetime.fromisoformat(at)
        return moment.astimezone() if moment.tzinfo is None else moment
    except (ValueError, OverflowError, OSError):
        fail(
            f"--at: expected a revision (7), a time (2026-01-31T12:00:00Z) or how long ago (90m, 3d), found {at}",
            2,
        )


async def _show_entries(dsn: str, measurement: str, limit: int | None, everything: bool, json: bool) -> None:
    async with measurement_history(dsn, measurement) as found:
        if not json:
            stream.print(f"{printable(measurement)}, at revision {found.measurement.revision}", markup=False)
        async with aclosing(found.entries(limit, everything)) as entries:
            async for entry in entries:
                if json:
                    sys.stdout.write(orjson.dumps(_as_json(entry)).decode() + "\n")
                else:
                    _show(entry)
        if not json and found.present is None:
            stream.print(
                "[yellow]as it is now it can't be expressed in the response model[/yellow]: something else has written it"
                " so; what changed since its last answer isn't shown",
                soft_wrap=False,
            )


async def _show_model(dsn: str, measurement: str, moment: int | datetime, json: bool) -> None:
    async with measurement_history(dsn, measurement) as found:
        model = await model_at(found, moment)
    if json:
        event = None if model.link is None else _event(model.link)
        whole = {
            "measurement_id": measurement,
            "revision": model.revision,
            "event": event,
            "note": model.note,
        }
        sys.stdout.write(orjson.dumps({**whole, "measurement": orjson.Fragment(model.model)}).decode() + "\n")
        return
    err.print(_left_by(model), style="dim", markup=False)
    if model.note:
        err.print(f"[yellow]note:[/yellow] {model.note}")
    try:
        text = orjson.dumps(orjson.loads(model.model), option=orjson.OPT_INDENT_2)
    except orjson.JSONDecodeError:  # numbers that only jsonb holds
        text = model.model
    sys.stdout.write(text.decode() + "\n")


def _left_by(model: ModelAt) -> str:
    if model.link is None:
        return f"revision {model.revision}, as it is now"
    return f"revision {model.revision}, as event {_named(model.link)} left it at {_time(model.link.arrival)}"


def _show(entry: Entry) -> None:
    match entry:
        case Begins():
            stream.print(f"({_BEGINS[entry.why]})", style="dim", markup=False)
        case Elsewhere():
            stream.print(_elsewhere(entry), soft_wrap=False)
            _show_differences(entry.differences)
        case Applied():
            link = entry.link
            line = Text.assemble((f"r{link.revision}", "bold"), "  ", _time(link.arrival), "  ")
            line.append(", ".join(link.changed) or "nothing changed", "green" if link.changed else "dim")
            stream.print(line, soft_wrap=False)
            place = f"{link.topic}/{link.partition}/{link.offset}"
            stream.print(
                Padding(Text(f"{_named(link)}  {place}", style="dim"), (0, 0, 0, 4)), soft_wrap=False
            )
            if link.traceparent is not None:
                trace = Text(f"traceparent {printable(link.traceparent)}", style="dim")
                stream.print(Padding(trace, (0, 0, 0, 4)), soft_wrap=False)
            _show_differences(first_values(link) if entry.differences is None else entry.differences)


def _elsewhere(entry: Elsewhere) -> Text:
    first, last = entry.first_revision, entry.last_revision
    # the same revision again: other columns than those that events write
    revisions = f"r{first} to r{last}" if last > first else f"r{last}"
    if last < first - 1:
        revisions = f"back to {revisions}"  # a database put back
    line = Text.assemble((revisions, "bold"), "  ", ("changed elsewhere", "yellow"), "  ")
    if entry.after is not None and entry.before is not None:
        line.append(f"between {_time(entry.after)} and {_time(entry.before)}")
    elif entry.before is not None:
        line.append(f"before {_time(entry.before)}")
    elif entry.after is not None:
        line.append(f"after {_time(entry.after)}")
    return line


def _show_differences(found: Any) -> None:
    for one in found[:_MOST_DIFFERENCES]:
        line = Text.assemble(
            (printable(one.path), "cyan"),
            ": ",
            (_value(one.before), "red"),
            " → ",
            (_value(one.after), "green"),
        )
        stream.print(Padding(line, (0, 0, 0, 4)), soft_wrap=False)
    if len(found) > _MOST_DIFFERENCES:
        stream.print(f"    … and {len(found) - _MOST_DIFFERENCES} more (--json has all)", style="dim")


def _value(value: Any) -> str:
    if value is NotThere.ABSENT:
        return "(none)"
    if value is NotThere.UNKNOWN:
        return "(not known)"
    text = printable(_dumped(value).decode("utf-8", "replace"))
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[: _VALUE_CHARACTERS - 1]}…"


def _dumped(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except (
        TypeError,
        RecursionError,
    ):  # nested deeper than orjson writes, or an integer beyond 64 bits: as text
        return orjson.dumps(repr(value).encode("utf-8", "backslashreplace").decode())


def _named(link: Link) -> str:
    return f"{printable(link.source)} {printable(link.id)}"


def _time(arrival: int) -> str:
    """Local time."""
    try:
        moment = datetime.fromtimestamp(arrival / 1000, UTC).astimezone()
    except (OverflowError, ValueError, OSError):
        return f"{arrival} ms"
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _as_json(entry: Entry) -> dict[str, Any]:
    match entry:
        case Begins():
            return {"entry": "begins", "why": entry.why}
        case Elsewhere():
            return {
                "entry": "changed_elsewhere",
                "first_revision": entry.first_revision,
                "last_revision": entry.last_revision,
                "after": entry.after,
                "before": entry.before,
                "differences": [_difference(one) for one in entry.differences],
            }
        case Applied():
            found = first_values(entry.link) if entry.differences is None else entry.differences
            return {
                "entry": "applied",
                **_event(entry.link),
                "changed": entry.link.changed,
                "compared": entry.differences is not None,
                "differences": [_difference(one) for one in found],
            }


def _event(link: Link) -> dict[str, Any]:
    return {
        "revision": link.revision,
        "arrival": link.arrival,
        "source": link.source,
        "id": link.id,
        "topic": link.topic,
        "partition": link.partition,
        "offset": link.offset,
        "traceparent": link.traceparent,
    }


def _difference(one: Difference) -> dict[str, Any]:
    """`before` and `after` are left out where there was nothing, or it isn't known."""
    found: dict[str, Any] = {"path": one.path}
    for name, value in (("before", one.before), ("after", one.after)):
        if not isinstance(value, NotThere):
            found[name] = orjson.Fragment(_dumped(value))
    return found
