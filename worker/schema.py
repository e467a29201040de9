"""The migrations: what `migrate` does to the database, and what it would do.

Each is a transaction of its own, so that what it locks is free again before the next one begins. Workers may run
meanwhile: a change of a table waits for the transactions that use it, and whoever comes after it would wait behind it; so it
waits only for a moment at a time, and tries again.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

from worker.database import Connection, describe
from worker.errors import DependencyAway, Fatal
from worker.retry import backoff
from worker.sql import Migration, migrations, queries

_MIGRATION_LOCK = 0x6D75_7064  # 'mupd': one migration at a time in this database
_LOCK_TIMEOUT = "300ms"
"""So long, at most, the lanes stand behind a migration that can't have its lock."""
_PATIENCE = 120.0

MODEL_COLUMNS = {
    "id": "text",
    "cell_instance_id": "text",
    "name": "text",
    "protocol": "jsonb",
    "start_time": "timestamp with time zone",
    "test_setup": "jsonb",
    "step_labels_validated": "boolean",
    "notes": "text",
    "measurement_type": "text",
    "properties": "jsonb",
    "file_metadata": "jsonb",
    "organization_id": "text",
    "created_by": "text",
    "created_by_email": "text",
    "created_at": "timestamp with time zone",
    "updated_at": "timestamp with time zone",
}
OUR_COLUMNS = {
    "revision": "bigint",
    **{f"{field}_position": "bytea" for field in ("name", "protocol", "test_setup", "notes", "properties")},
}


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """What `migrate` did."""

    applied: Sequence[Migration]
    present: int
    """Version of the schema now."""


@dataclass(frozen=True, slots=True)
class MigrationPlan:
    """What `migrate` would do."""

    present: int
    """Version of the schema now, 0 where there is none."""
    wanted: int
    pending: Sequence[Migration]
    refused: str | None
    """Why `migrate` would refuse, None where it wouldn't."""
    table: str
    """What becomes of `cell_measurements`, in words."""


async def migrate(
    connection: Connection, waiting: Callable[[str], None] | None = None, patience: float = _PATIENCE
) -> MigrationReport:
    """Bring the schema up to date, under an advisory lock: safe to run twice, by two at once, and while workers run.

    `waiting` hears what it waits for; after `patience` seconds without a lock it gives up. What is applied by then stays
    applied: run it again.

    Raises Fatal where the database is ahead of this version, or where a table that is there differs in its types (nothing is
    changed then); DependencyAway where a lock couldn't be had in time.
    """
    async with _alone(connection):
        done = await _done(connection)
        _refuse_other_history(done)
        if differences := await _differences(connection):
            raise Fatal(_differs(differences))
        new = [migration for migration in migrations() if migration.version not in done]
        if new:
            await _begin(connection)
        for migration in new:
            await _apply(connection, migration, waiting or (lambda _: None), patience)
    return MigrationReport(new, migrations()[-1].version)


async def plan_migration(connection: Connection) -> MigrationPlan:
    """What `migrate` would do now; changes nothing. Raises what asyncpg raises."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        done = await _done(connection)
        refused = None
        try:
            _refuse_other_history(done)
        except Fatal as error:
            refused = str(error)
        columns = await _columns(connection)
        if differences := await _differences(connection):
            refused = refused or _differs(differences)
    known = migrations()
    pending = [] if refused else [migration for migration in known if migration.version not in done]
    return MigrationPlan(max(done, default=0), known[-1].version, pending, refused, _fate(columns))


def _fate(columns: Mapping[str, str]) -> str:
    if not columns:
        return "it isn't there and will be made"
    missing = [name for name in (*OUR_COLUMNS, "answer_lane", "answer_offset") if name not in columns]
    if not missing:
        return "it has all columns"
    return f"it is there and gets {len(missing)} columns: {', '.join(missing)}"


@asynccontextmanager
async def _alone(connection: Connection) -> AsyncIterator[None]:
    """For the whole run, over several transactions. A session that ends gives the lock back, however it ends."""
    await connection.execute("SELECT pg_advisory_lock($1)", _MIGRATION_LOCK)
    try:
        yield
    finally:
        if not connection.is_closed():
            await connection.execute("SELECT pg_advisory_unlock($1)", _MIGRATION_LOCK)


async def _done(connection: Connection) -> dict[int, Any]:
    """Version → name and digest of what is applied."""
    if not await connection.fetchval("SELECT to_regclass('measurement_updates.migrations') IS NOT NULL"):
        return {}
    rows = await connection.fetch("SELECT version, name, digest FROM measurement_updates.migrations")
    return {row["version"]: row for row in rows}


def _refuse_other_history(done: Mapping[int, Any]) -> None:
    known = {migration.version: migration for migration in migrations()}
    if ahead := sorted(done.keys() - known.keys()):
        raise Fatal(
            f"the database is at migration {ahead[-1]}, this version knows {max(known)}:"
            " use the newer version of measurement-updates"
        )
    for version, row in done.items():
        if row["digest"] != known[version].digest:
            raise Fatal(
                f"migration {version} ({row['name']}) was applied with another text than this version's"
            )


async def _begin(connection: Connection) -> None:
    async with connection.transaction():
        await connection.execute("CREATE SCHEMA IF NOT EXISTS measurement_updates")
        await connection.execute(
            """CREATE TABLE IF NOT EXISTS measurement_updates.migrations (
                   version integer PRIMARY KEY, name text NOT NULL, digest text NOT NULL,
                   applied_at timestamptz NOT NULL DEFAULT clock_timestamp())"""
        )


async def _apply(
    connection: Connection, migration: Migration, waiting: Callable[[str], None], patience: float
) -> None:
    ends = time.monotonic() + patience
    for seconds in backoff(first=0.2):
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
                await connection.execute(migration.text)
                await connection.execute(
                    "INSERT INTO measurement_updates.migrations (version, name, digest) VALUES ($1, $2, $3)",
                    migration.version,
                    migration.name,
                    migration.digest,
                )
            return
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            why = (
                f"migration {migration.version:04} ({migration.name}) can't have its lock: {describe(error)};"
                f" {await _holders(connection)}"
            )
            if time.monotonic() + seconds > ends:
                raise DependencyAway(
                    f"{why}\nEnd that transaction and run `measurement-updates migrate` again: what is applied so far"
                    " stays applied, and workers go on as they are"
                ) from error
            waiting(f"{why}: tried again")
        await asyncio.sleep(seconds)


async def _holders(connection: Connection) -> str:
    """Who has used one of the tables for longest, in words."""
    row = await connection.fetchrow(queries("status.sql")["lock_holder"])
    if row is None:
        return "whoever held it has let it go meanwhile"
    return (
        f"table {row['table']} is in use by session {row['pid']} ({row['application'] or 'without a name'},"
        f" {row['user']}), whose transaction is open for {row['seconds']:.0f} s"
    )


async def _columns(connection: Connection) -> dict[str, str]:
    """Name → type of the columns of `cell_measurements`; none where it isn't there."""
    rows = await connection.fetch(
        """SELECT attname, format_type(atttypid, NULL) AS type FROM pg_attribute
           WHERE attrelid = to_regclass('cell_measurements') AND attnum > 0 AND NOT attisdropped"""
    )
    return {row["attname"]: row["type"] for row in rows}


async def _differences(connection: Connection) -> list[str]:
    """How a `cell_measurements` that is there isn't what the model needs: it must have its columns with our types."""
    found = await _columns(connection)
    if not found:
        return []
    return [
        f"column {name}: expected {expected}, found {found.get(name, 'none')}"
        for name, expected in MODEL_COLUMNS.items()
        if found.get(name) != expected
    ] + [
        f"column {name}: expected {expected}, found {found[name]}"
        for name, expected in OUR_COLUMNS.items()
        if name in found and found[name] != expected
    ]


def _differs(differences: Sequence[str]) -> str:
    return (
        "table cell_measurements is there, but isn't what the response model needs:\n  "
        + "\n  ".join(differences)
        + "\nAlter these columns, then run `measurement-updates migrate` again; nothing was changed"
    )
