"""`rejected`: what was rejected, why, and what is to become of it. Here: `list` and `discard`."""

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import aclosing
from typing import Annotated, Any

import orjson
import typer
from rich.padding import Padding
from rich.text import Text

from worker.case_acts import Actor, discard
from worker.case_list import (
    Case,
    CaseFilter,
    Group,
    add_to_groups,
    cases,
    largest_first,
)
from worker.cli.rejected_options import (
    By,
    Codes,
    Measurement,
    Organization,
    Since,
    Source,
    States,
    Until,
    check_choice,
    chosen,
    connected,
    moment,
    read_filter,
    short_id,
    who,
)
from worker.cli.rejected_requeue import requeue
from worker.cli.rejected_show import show
from worker.cli.sending import progress
from worker.cli.terminal import err, out
from worker.cli.watch import printable
from worker.database import close
from worker.settings import Settings, load_settings
from worker.sql import queries

app = typer.Typer(
    name="rejected",
    no_args_is_help=True,
    add_completion=False,
    help="Rejected updates: list, show, repair, send again, or discard.",
)

_LISTED = 100
_DISCARDED_AT_ONCE = 500

Json = Annotated[bool, typer.Option("--json", help="One JSON object; with --each one a line.")]


@app.command("list")
def list_cases(
    codes: Codes = None,
    measurement: Measurement = None,
    organization: Organization = None,
    source: Source = None,
    since: Since = None,
    until: Until = None,
    states: States = None,
    each: Annotated[bool, typer.Option("--each", help="Single cases, with their ids.")] = False,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="With --each: the newest so many (100; --json: all)."),
    ] = None,
    json: Json = False,
) -> None:
    """List what was rejected, by what is wrong.

    Grouped by code and message, the most frequent first; ids, numbers and
    what was found are left out of the message (…). A case is a rejected
    record; sent again and rejected again it is the same case, with one more
    attempt. Code and message are those of the newest attempt.

    --measurement looks at the key, else the subject; --organization and
    --source at the headers, or into the envelope of a structured event (one
    that can't be read has none; a bare event never has). Times are arrivals
    of first attempts: 2h, 3d (ago), 2026-01-31, 2026-01-31T12:00+01:00.

    [bold]Examples[/bold]

      measurement-updates rejected list
      measurement-updates rejected list --each --code invalid_patch --since 2h
      measurement-updates rejected list --state requeued --each
      measurement-updates rejected list --json --each | jq .id
    """
    settings = load_settings()
    wanted = read_filter(codes, measurement, organization, source, since, until, states)
    try:
        asyncio.run(
            _list_each(settings, wanted, limit, json) if each else _list_groups(settings, wanted, json)
        )
        sys.stdout.flush()
    except BrokenPipeError:
        # Who read our output has had enough (head): that is no failure. Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def _list_groups(settings: Settings, wanted: CaseFilter, json: bool) -> None:
    connection = await connected(settings)
    groups: dict[tuple[str, str], Group] = {}
    try:
        async with aclosing(cases(connection, wanted)) as found:
            async for case in found:
                add_to_groups(groups, case)
        waiting = {row["state"]: row["cases"] for row in await connection.fetch(_sql("count_states"))}
    finally:
        await close(connection)
    listed = largest_first(groups.values())
    total = sum(group.count for group in listed)
    if json:
        print(orjson.dumps({"cases": total, "groups": [_group_json(group) for group in listed]}).decode())
        return
    for group in listed:
        times = moment(group.first_seen)
        if group.last_seen != group.first_seen:
            times += f" to {moment(group.last_seen)}"
        out.print(Text.assemble((f"{group.count:>7,}  ", "bold"), (group.code, "red"), (f"  {times}", "dim")))
        _indented(group.message, 9)
    of = " and ".join(wanted.states)
    kinds = f" of {len(listed)} kinds" if len(listed) > 1 else ""
    out.print(f"{total:,} {of}{kinds}" if total else f"nothing {of} with these filters")
    if "requeued" not in wanted.states and (requeued := waiting.get("requeued", 0)):
        out.print(f"{requeued:,} requeued and not answered yet (--state requeued)", style="dim")


async def _list_each(settings: Settings, wanted: CaseFilter, limit: int | None, json: bool) -> None:
    connection = await connected(settings)
    newest: list[Case] = []
    most = limit or _LISTED
    count = 0
    try:
        async with aclosing(cases(connection, wanted)) as found:
            async for case in found:
                count += 1
                if json and limit is None:
                    print(orjson.dumps(case_json(case)).decode())
                    continue
                newest.append(case)
                if len(newest) > 2 * most:
                    del newest[:-most]
    finally:
        await close(connection)
    newest = newest[-most:]
    for case in newest:
        if json:
            print(orjson.dumps(case_json(case)).decode())
        else:
            _say(case, settings)
    if not json and count > len(newest):
        out.print(f"the newest {len(newest):,} of {count:,}: --limit shows more, filters fewer", style="dim")
    elif not json and not count:
        out.print(f"nothing {' and '.join(wanted.states)} with these filters")


def _say(case: Case, settings: Settings) -> None:
    state = "" if case.state == "open" else f", {case.state}"
    attempts = "" if case.attempts == 1 else f", {case.attempts} attempts"
    measurement = printable(case.attributes.measurement or "(no key)")
    out.print(
        Text.assemble(
            (short_id(case, settings), "bold"), "  ", (case.code, "red"), f"  {measurement}",
            (f"  {moment(case.last_arrival)}{state}{attempts}", "dim"),
        )
    )  # fmt: skip
    _indented(case.message, 4)


def _indented(message: str, indent: int) -> None:
    out.print(
        Padding(Text(printable(message), style="dim"), (0, 0, 0, indent), expand=False), soft_wrap=False
    )


def _group_json(group: Group) -> dict[str, Any]:
    return {
        "code": group.code,
        "message": group.message,
        "example": group.example,
        "cases": group.count,
        "states": group.states,
        "first_seen": group.first_seen,
        "last_seen": group.last_seen,
    }


def case_json(case: Case) -> dict[str, Any]:
    """Times in ms since 1970."""
    return {
        "id": case.first_position,
        "state": case.state,
        "attempts": case.attempts,
        "code": case.code,
        "message": case.message,
        "measurement": case.attributes.measurement,
        "organization": case.attributes.organization,
        "source": case.attributes.source,
        "first_seen": case.arrival,
        "last_seen": case.last_arrival,
    }


app.command()(show)
app.command()(requeue)


@app.command("discard")
def discard_cases(
    why: Annotated[str, typer.Option("--why", help="The reason, kept with your name.")],
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="As list --each shows them.")] = None,
    codes: Codes = None,
    measurement: Measurement = None,
    organization: Organization = None,
    source: Source = None,
    since: Since = None,
    until: Until = None,
    states: States = None,
    all_open: Annotated[bool, typer.Option("--all", help="Every open case.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which.")] = False,
    by: By = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Close cases that nobody will repair.

    By ids, or by the filters of `rejected list`: what that shows is what this
    takes. The records stay as they are, until retention removes them. One
    that is sent again later (--again) is judged anew.

    [bold]Examples[/bold]

      measurement-updates rejected discard 0/17 2/4 --why "test cells"
      measurement-updates rejected discard --code empty_event --since 3d \\
        --why "the exporter sent tombstones" --dry-run
    """
    settings = load_settings()
    wanted = read_filter(codes, measurement, organization, source, since, until, states)
    check_choice("discard", ids or (), wanted, states, all_open)
    refused = asyncio.run(_discard(settings, ids or (), wanted, Actor(who(by), why), dry_run, json))
    if refused:
        raise typer.Exit(1)


async def _discard(
    settings: Settings, ids: Sequence[str], wanted: CaseFilter, actor: Actor, dry_run: bool, json: bool
) -> bool:
    connection = await connected(settings)
    done: list[Case] = []
    refused: list[tuple[Case, str]] = []
    try:
        found = await chosen(connection, settings, ids, wanted)
        with progress("discarding", len(found)) as advance:
            for begin in range(0, 0 if dry_run else len(found), _DISCARDED_AT_ONCE):
                result = await discard(connection, found[begin : begin + _DISCARDED_AT_ONCE], actor)
                done += result.cases
                refused += result.refused
                for _ in result.cases:
                    advance()
    finally:
        await close(connection)
    if json:
        said = {
            "dry_run": dry_run,
            "discarded": [case.first_position for case in (found if dry_run else done)],
            "refused": [{"id": case.first_position, "why": why} for case, why in refused],
        }
        print(orjson.dumps(said).decode())
        return bool(refused)
    if dry_run:
        for case in found[:_LISTED]:
            _say(case, settings)
        if len(found) > _LISTED:
            out.print(f"… and {len(found) - _LISTED:,} more", style="dim")
        out.print(f"{len(found):,} would be discarded")
        return False
    out.print(f"discarded {len(done):,} of {len(found):,}")
    for case, why in refused:
        err.print(f"[red]error:[/red] {short_id(case, settings)}: {why}")
    return bool(refused)


def _sql(name: str) -> str:
    return queries("rejected.sql")[name]
