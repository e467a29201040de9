"""What the `rejected` commands have in common: their filters, times, ids."""

import getpass
import time
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

from contracts.events import REJECTION_CODES
from worker.case_list import CASE_STATES, Case, CaseFilter, cases, find_case, read_id
from worker.cli.terminal import fail
from worker.database import Connection, connect, schema_is_current
from worker.errors import Fatal
from worker.settings import Duration, Settings


class StateOption(StrEnum):
    open = "open"
    requeued = "requeued"
    resolved = "resolved"
    discarded = "discarded"
    all = "all"


Codes = Annotated[
    list[str] | None,
    typer.Option("--code", metavar="CODE", help="Only this code; may be given again.", show_default=False),
]
Measurement = Annotated[
    str | None, typer.Option("--measurement", metavar="ID", help="Only this one's.", show_default=False)
]
Organization = Annotated[
    str | None,
    typer.Option("--organization", metavar="ID", help="Events that name this one.", show_default=False),
]
Source = Annotated[
    str | None,
    typer.Option("--source", metavar="SOURCE", help="CloudEvents source.", show_default=False),
]
Since = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME", help="First seen then or later.", show_default=False),
]
Until = Annotated[
    str | None, typer.Option("--until", metavar="TIME", help="First seen before.", show_default=False)
]
States = Annotated[
    list[StateOption] | None,
    typer.Option("--state", help="May be given again. Default: open.", show_default=False),
]
By = Annotated[
    str | None, typer.Option("--by", help="Who does it (default: the present user).", show_default=False)
]


def read_filter(
    codes: Sequence[str] | None,
    measurement: str | None,
    organization: str | None,
    source: str | None,
    since: str | None,
    until: str | None,
    states: Sequence[StateOption] | None,
) -> CaseFilter:
    """Exits 2 where an option is none."""
    for code in codes or ():
        if code not in REJECTION_CODES:
            fail(f"--code: expected one of {', '.join(REJECTION_CODES)}; found {code}", 2)
    named = [str(state) for state in states or (StateOption.open,)]
    everything = CaseFilter()
    return CaseFilter(
        states=[state for state in CASE_STATES if state in named or "all" in named],
        codes=list(codes or ()),
        measurement=measurement,
        organization=organization,
        source=source,
        since=everything.since if since is None else instant("--since", since),
        until=everything.until if until is None else instant("--until", until),
    )


def is_narrowed(wanted: CaseFilter, states: Sequence[StateOption] | None) -> bool:
    """Whether any filter was given."""
    return bool(states) or wanted != CaseFilter(states=wanted.states, codes=[])


def instant(option: str, given: str) -> int:
    """`2h` ago, or an ISO date or time (without zone: local time) → ms since 1970. Exits 2 where it is neither."""
    try:
        ago = TypeAdapter[Any](Duration).validate_python(given)
        return max(0, int((time.time() - ago.total_seconds()) * 1000))
    except ValidationError:
        pass
    try:
        return max(0, int(datetime.fromisoformat(given).astimezone().timestamp() * 1000))
    except (ValueError, OverflowError):
        fail(f"{option}: expected 2h, 3d, 2026-01-31 or 2026-01-31T12:00+01:00; found {given}", 2)


def moment(arrival: int) -> str:
    """Milliseconds since 1970 → local time, for people."""
    return f"{datetime.fromtimestamp(arrival / 1000).astimezone():%Y-%m-%d %H:%M:%S}"


def short_id(case: Case, settings: Settings) -> str:
    """Without the topic, where it is the input's: what an operator types."""
    return case.id.removeprefix(f"{settings.worker_updates_topic}/")


def who(by: str | None) -> str:
    return by or getpass.getuser()


async def connected(settings: Settings) -> Connection:
    """Raises Fatal where the schema is older than this version."""
    connection = await connect(settings.dsn, application="measurement-updates rejected")
    if not await schema_is_current(connection):
        await connection.close()
        raise Fatal("the database's schema isn't this version's: run `measurement-updates migrate`")
    return connection


async def chosen(
    connection: Connection, settings: Settings, ids: Sequence[str], wanted: CaseFilter
) -> list[Case]:
    """The cases of these ids, or, without any, those that the filter lets through; each once, in order of arrival."""
    if not ids:
        return [case async for case in cases(connection, wanted)]
    found: dict[str, Case] = {}
    for id in ids:
        case = await find_case(connection, id, settings.worker_updates_topic)
        found.setdefault(case.first_position, case)
    return sorted(found.values(), key=lambda case: (case.arrival, case.partition, case.offset))


def check_choice(
    command: str, ids: Sequence[str], wanted: CaseFilter, states: Sequence[StateOption] | None, all_open: bool
) -> None:
    """Ids, filters, or --all: exactly one of them. Exits 2. Raises SettingsError where an id isn't one."""
    for id in ids:
        read_id(id, "")
    narrowed = is_narrowed(wanted, states)
    if ids and (narrowed or all_open):
        fail("expected ids or filters, found both: the ids alone say which", 2)
    if not ids and not narrowed and not all_open:
        fail(
            f"expected ids (0/17), filters (--code invalid_patch) or --all for every open case; `measurement-updates"
            f" rejected list` shows what {command} would take with the same filters",
            2,
        )
