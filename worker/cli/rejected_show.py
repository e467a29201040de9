"""`rejected show`: one case, whole: the record, what is wrong with it, the measurement now, what was done."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
import typer
from rich.padding import Padding
from rich.text import Text

from contracts.cloudevents import UpdateRejected
from contracts.events import Violation
from worker.case_list import Case, find_case, message_of, newest_records, read_id, rejected_record
from worker.cli.marked_body import Marked, mark, rendered
from worker.cli.rejected_options import connected, moment, short_id
from worker.cli.terminal import out
from worker.cli.watch import as_bytes, printable
from worker.database import close
from worker.errors import Fatal
from worker.repair import is_structured
from worker.settings import Settings, load_settings
from worker.sql import queries

_LONGEST_HEADER = 400


@dataclass(frozen=True, slots=True)
class Shown:
    """All that there is about a case."""

    case: Case
    record: UpdateRejected
    measurement: Mapping[str, Any] | None
    attempts: Sequence[Mapping[str, Any]]
    acts: Sequence[Mapping[str, Any]]


def show(
    id: Annotated[str, typer.Argument(metavar="ID", help="PARTITION/OFFSET or TOPIC/PARTITION/OFFSET.")],
    whole: Annotated[
        bool, typer.Option("--whole", help="A long body whole, not only around what is wrong.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show a rejected record: what is wrong with it, marked where it is.

    Besides: the measurement as it is now, every attempt, and who did what.
    An id is where the record stood first, as `rejected list --each` shows it;
    that of a later attempt will do. Where a log was begun anew, the newest
    one's is meant: with @ARRIVAL (rejection-timestamp) another's.

    [bold]Examples[/bold]

      measurement-updates rejected show 0/17
      measurement-updates rejected show measurement-updates/0/17@1772357400123
      measurement-updates rejected show 0/17 --json | jq -r .value
    """
    settings = load_settings()
    read_id(id, settings.worker_updates_topic)  # before anything is connected to
    shown = asyncio.run(_look(settings, id))
    if json:
        print(orjson.dumps(_as_json(shown)).decode())
    else:
        _print(shown, settings, whole)


async def _look(settings: Settings, id: str) -> Shown:
    sql = queries("rejected.sql")
    connection = await connected(settings)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            case = await find_case(connection, id, settings.worker_updates_topic)
            row = (await newest_records(connection, [case])).get((case.lane, case.offset))
            if row is None:
                raise Fatal(f"{id}: retention has just removed it")
            measurement = None
            if case.attributes.measurement is not None and "\0" not in case.attributes.measurement:
                measurement = await connection.fetchrow(sql["measurement_now"], case.attributes.measurement)
            attempts = await connection.fetch(sql["attempts_of_case"], case.lane, case.offset)
            acts = await connection.fetch(sql["acts_of_case"], case.lane, case.offset)
    finally:
        await close(connection)
    return Shown(case, rejected_record(row), measurement, attempts, acts)


# For people -------------------------------------------------------------------------------------------------


def _print(shown: Shown, settings: Settings, whole: bool) -> None:
    case, record = shown.case, shown.record
    attempts = "" if case.attempts == 1 else f", {case.attempts} attempts"
    out.print(
        Text.assemble((case.id, "bold"), "  ", (case.code, "red"), f"  {case.state}{attempts}"),
        soft_wrap=False,
    )
    _wrapped(record.message, 0)
    marked = mark(
        record.value or b"",
        structured=is_structured(record),
        violations=record.violations,
        total=record.total,
    )
    _print_envelope(record, marked)
    _print_value(record, marked, whole)
    _print_measurement(shown)
    _print_history(shown, settings)
    _print_what_to_do(case, settings)


def _print_envelope(record: UpdateRejected, marked: Marked) -> None:
    wrong: dict[str, list[str]] = {}
    for one in marked.elsewhere:
        wrong.setdefault(one.path, []).append(one.expected)
    _heading("record")
    _line("key", _shown(record.key), wrong.pop("key", []))
    for name, content in record.headers:
        _line(name, _shown(content), wrong.pop(name, []))
    for path, expected in wrong.items():
        if not path.startswith("$") or not record.value:
            _line(path, "(not there)", expected)
    _line("arrival", f"{moment(record.timestamp)} ({record.timestamp} ms)", [])
    if record.truncated is not None:
        left_out = "".join(f", without {part}" for part in record.truncated.get("left_out", []))
        _line("cut", f"of {record.truncated.get('length', 0):,} bytes{left_out}", [])


def _line(name: str, text: str, expected: Sequence[str]) -> None:
    mark = ("  ✗ ", "bold red") if expected else "    "
    out.print(Text.assemble(mark, (printable(name), "cyan"), f": {text}"), soft_wrap=False)
    for one in expected:
        out.print(
            Padding(Text(f"↑ expected {printable(one)}", style="yellow"), (0, 0, 0, 6), expand=False),
            soft_wrap=False,
        )


def _print_value(record: UpdateRejected, marked: Marked, whole: bool) -> None:
    if record.value is None or not record.value:
        _heading("no value" if record.value is None else "value of no bytes")
        return
    _heading(f"value, {len(record.value):,} bytes")
    for line in rendered(marked, whole=whole):
        out.print(line, soft_wrap=False)
    for one in _not_shown(marked.elsewhere):
        _wrapped(f"{one.path}: expected {one.expected}", 4)
    described = len(record.violations)
    if record.total > described and not any(line.expected for line in marked.lines):
        _wrapped(f"… and {record.total - described:,} more", 4)


def _not_shown(elsewhere: Sequence[Violation]) -> list[Violation]:
    return [one for one in elsewhere if one.path.startswith("$")]


def _print_measurement(shown: Shown) -> None:
    row = shown.measurement
    if row is None:
        _heading("there is no such measurement now")
        return
    _heading(f"the measurement now: revision {row['revision']}, updated {row['updated_at']}")
    for name in (
        "name",
        "measurement_type",
        "organization_id",
        "protocol",
        "test_setup",
        "notes",
        "properties",
    ):
        value = row[name]
        _line(name, "null" if value is None else _cut(printable(value)), [])


def _print_history(shown: Shown, settings: Settings) -> None:
    def own(text: str) -> str:
        return text.replace(f"{settings.worker_updates_topic}/", "")

    _heading("what happened (local time)")
    happened = [
        (attempt["arrival"], f"arrived at {own(_place(attempt))}, rejected: {attempt['code']}")
        for attempt in shown.attempts
    ]
    for act in shown.acts:
        at = int(act["acted_at"].timestamp() * 1000)
        text = f"{act['act']} by {printable(act['acted_by'])}"
        if act["detail"]:
            text += f": {printable(own(act['detail']))}"
        if act["why"]:
            text += f" ({printable(act['why'])})"
        happened.append((at, text))
    for at, text in sorted(happened, key=lambda one: one[0]):
        out.print(
            Padding(Text.assemble((moment(at), "dim"), f"  {text}"), (0, 0, 0, 4), expand=False),
            soft_wrap=False,
        )


def _place(attempt: Mapping[str, Any]) -> str:
    return f"{attempt['topic']}/{attempt['partition']}/{attempt['log_offset']}"


def _print_what_to_do(case: Case, settings: Settings) -> None:
    id = short_id(case, settings)
    if case.state == "open":
        out.print()
        way = f"measurement-updates rejected requeue {id} --edit"
        if case.code == "invalid_event":
            way = "by its producer, as a new event: key and headers can't be repaired here"
        out.print(f"repair and send: {way}", style="dim")
        out.print(f"or close:        measurement-updates rejected discard {id} --why …", style="dim")
    elif case.state == "requeued":
        out.print()
        out.print("sent again, and not answered yet: do workers run? See `lanes list`", style="dim")


def _heading(text: str) -> None:
    out.print()
    out.print(Text(text, style="bold"), soft_wrap=False)


def _wrapped(text: str, indent: int) -> None:
    out.print(Padding(Text(printable(text)), (0, 0, 0, indent), expand=False), soft_wrap=False)


def _shown(content: bytes | None) -> str:
    return "null" if content is None else _cut(printable(content.decode("utf-8", "backslashreplace")))


def _cut(text: str) -> str:
    if len(text) <= _LONGEST_HEADER:
        return text
    return f"{text[: _LONGEST_HEADER - 40]}… ({len(text):,} characters)"


# For machines -----------------------------------------------------------------------------------------------


def _as_json(shown: Shown) -> dict[str, Any]:
    case, record, row = shown.case, shown.record, shown.measurement
    objects = ("protocol", "test_setup", "properties")
    return {
        "id": case.first_position,
        "state": case.state,
        "attempts": case.attempts,
        "code": record.code,
        "message": record.message,
        "violations": [
            {"path": one.path, "expected": one.expected, "found": one.found} for one in record.violations
        ],
        "total": record.total,
        "truncated": record.truncated,
        **as_bytes("key", record.key),
        **as_bytes("value", record.value),
        "headers": [{"name": name, **as_bytes("value", content)} for name, content in record.headers],
        "measurement": None
        if row is None
        else {
            name: orjson.Fragment(value) if name in objects and value is not None else value
            for name, value in row.items()
        },
        "rejections": [
            {
                "place": f"{_place(attempt)}@{attempt['arrival']}",
                "code": attempt["code"],
                "message": message_of(attempt["message"]),
            }
            for attempt in shown.attempts
        ],
        "acts": [dict(act) for act in shown.acts],
    }
