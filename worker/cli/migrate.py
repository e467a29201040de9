"""`migrate`: the database's schema."""

import asyncio
from typing import Annotated

import orjson
import typer

from worker.cli.terminal import out
from worker.database import MigrationReport, close, connect
from worker.database import migrate as migrate_database
from worker.settings import load_settings


def migrate(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Create or bring up to date what the worker needs in Postgres.

    Makes table cell_measurements, or adds the worker's columns to the one that is there. Safe to run again, by two at
    once, and while workers run.
    """
    report = asyncio.run(_migrate(load_settings().dsn))
    if json:
        applied = [f"{migration.version:04}_{migration.name}" for migration in report.applied]
        print(orjson.dumps({"applied": applied, "version": report.present}).decode())
        return
    for migration in report.applied:
        out.print(f"applied {migration.version:04}_{migration.name}")
    if not report.applied:
        out.print(f"nothing to do: the schema is at version {report.present}")


async def _migrate(dsn: str) -> MigrationReport:
    connection = await connect(dsn, application="measurement-updates migrate")
    try:
        return await migrate_database(connection)
    finally:
        await close(connection)
