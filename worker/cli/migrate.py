"""`migrate`: the database's schema."""

import asyncio
from typing import Annotated

import orjson
import typer
from rich.padding import Padding
from rich.text import Text

from worker.cli.terminal import err, out
from worker.database import close, connect
from worker.schema import MigrationPlan, MigrationReport, plan_migration
from worker.schema import migrate as migrate_database
from worker.settings import load_settings
from worker.sql import Migration


def migrate(
    plan: Annotated[
        bool, typer.Option("--plan", help="Change nothing, only say what would be done.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Create or bring up to date what the worker needs in Postgres.

    Makes table cell_measurements, or adds the worker's columns to the one
    that is there. Safe to run again, by two at once, and while workers run,
    older ones too: a change that can't have its lock at once lets them pass
    and tries again, for two minutes at most.

    Exit code 0: done, or planned; 1: refused (columns of other types, a
    database that is ahead of this version), or no lock in time.

    [bold]Examples[/bold]

      measurement-updates migrate --plan
      measurement-updates migrate
    """
    dsn = load_settings().dsn
    if plan:
        planned = asyncio.run(_plan(dsn))
        _show_plan(planned, json)
        if planned.refused:
            raise typer.Exit(1)
        return
    report = asyncio.run(_migrate(dsn))
    if json:
        applied = [_called(migration) for migration in report.applied]
        print(orjson.dumps({"applied": applied, "version": report.present}).decode())
        return
    for migration in report.applied:
        out.print(f"applied {_called(migration)}")
    if not report.applied:
        out.print(f"nothing to do: the schema is at version {report.present}")


def _show_plan(plan: MigrationPlan, json: bool) -> None:
    if json:
        pending = [{"migration": _called(migration), "what": migration.summary} for migration in plan.pending]
        found = {"version": plan.present, "wanted": plan.wanted, "pending": pending, "refused": plan.refused}
        print(orjson.dumps({**found, "cell_measurements": plan.table}).decode())
        return
    out.print(f"the schema is at version {plan.present}, this version's is {plan.wanted}")
    out.print(Text(f"cell_measurements: {plan.table}"), soft_wrap=False)
    for migration in plan.pending:
        out.print(f"would apply {_called(migration)}")
        out.print(Padding(Text(migration.summary, style="dim"), (0, 0, 0, 2)), soft_wrap=False)
    if plan.refused:
        err.print("[red]migrate would refuse:[/red] ", end="")
        err.print(plan.refused, markup=False)
    elif not plan.pending:
        out.print("nothing to do")


def _called(migration: Migration) -> str:
    return f"{migration.version:04}_{migration.name}"


async def _plan(dsn: str) -> MigrationPlan:
    connection = await connect(dsn, application="measurement-updates migrate")
    try:
        return await plan_migration(connection)
    finally:
        await close(connection)


async def _migrate(dsn: str) -> MigrationReport:
    connection = await connect(dsn, application="measurement-updates migrate")
    try:
        return await migrate_database(connection, lambda why: err.print(why, markup=False))
    finally:
        await close(connection)
