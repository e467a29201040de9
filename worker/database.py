"""Sessions with Postgres: how they are opened, and whether the schema is what this version needs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import asyncpg
import asyncpg.protocol.protocol as asyncpg_protocol

from worker.errors import BY_ITSELF, DependencyAway, Fatal
from worker.sql import migrations

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# Of each element of an array asyncpg asks whether it is an array itself: two abstract base classes, which takes longer than
# to send it. What is sent as an array from here is a list or a tuple.
asyncpg_protocol.IterableABC = (list, tuple)

POSTGRES_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    # asyncpg loses count of its own state where the server ends a session that is just being used again
    asyncpg.InternalClientError,
)
"""What asyncpg raises, connection errors of the system (OSError, TimeoutError) aside."""

COMMAND_TIMEOUT = 15.0
"""Seconds for a statement of the worker: more than it waits for a lock. A connection that has died without a word is noticed
by nothing else, where something in between keeps it open."""

_ANY_POSTGRES_AWAY = f"{BY_ITSELF}see that the database (DATABASE_URL) is up, and reachable from here"
_POSTGRES_AWAY = {  # SQLSTATE class
    "28": "see that user and password in DATABASE_URL are right, and that pg_hba.conf lets this worker in",
    "42": "see that the user in DATABASE_URL may use schema measurement_updates and update cell_measurements, and that"
    " `measurement-updates migrate` has been run on this database",
    "53": "give the database what it lacks: disk, memory, or connections (one for each partition, and two a worker)",
}


async def connect(dsn: str, *, application: str, timeout: float = 10) -> Connection:
    """A session for commands. Raises DependencyAway where the database can't be reached or refuses for now."""
    try:
        return await asyncpg.connect(
            dsn, timeout=timeout, server_settings={"application_name": application, "timezone": "UTC"}
        )
    except ValueError as error:  # the DSN's form
        raise Fatal(f"DATABASE_URL: expected postgresql://user:password@host:port/name: {error}") from error
    except (OSError, TimeoutError, *POSTGRES_ERRORS) as error:
        raise DependencyAway(f"Postgres can't be reached: {describe(error)}", do=what_to_do(error)) from error


async def connect_lane(dsn: str, *, application: str, timeout: float = 10) -> Connection:
    """A lane's own session: marked as the worker's for the trigger, jsonb as text, times as microseconds since 2000.

    lock_timeout: a REST transaction that stays open is waited for in slices, so that the lane can say so.
    enable_seqscan: what a batch names is found by key. Of a table that is being filled Postgres has no statistics for up to
    a minute, and would read all of it for every batch.
    idle_in_transaction_session_timeout: a stopped process frees its rows even where nobody takes its lane over.
    """
    connection = await asyncpg.connect(
        dsn,
        timeout=timeout,
        command_timeout=COMMAND_TIMEOUT,
        server_settings={
            "application_name": application,
            "timezone": "UTC",
            "measurement_updates.applying": "on",
            "lock_timeout": "10s",
            "idle_in_transaction_session_timeout": "60s",
            "jit": "off",
            "enable_seqscan": "off",
            "plan_cache_mode": "force_generic_plan",
        },
    )
    try:
        # as integers they can be infinite or beyond year 9999 without an error here
        await connection.set_type_codec(
            "timestamptz", schema="pg_catalog", encoder=_to_tuple, decoder=_from_tuple, format="tuple"
        )
    except BaseException:
        connection.terminate()
        raise
    return connection


def _to_tuple(microseconds: int) -> tuple[int]:
    return (microseconds,)


def _from_tuple(value: tuple[int]) -> int:
    return value[0]


@asynccontextmanager
async def transaction(connection: Connection) -> AsyncIterator[None]:
    """asyncpg's own, but a session that hasn't answered in time is ended: its ROLLBACK would first wait as long again for
    the end of that statement (asyncpg issue 1356). Raises what asyncpg raises, TimeoutError."""
    running = connection.transaction()
    await running.start()
    try:
        yield
    except TimeoutError:
        connection.terminate()
        raise
    except BaseException:
        await running.rollback()
        raise
    await running.commit()


async def close(connection: Connection) -> None:
    """Whatever state it is in; bounded."""
    try:
        async with asyncio.timeout(2):
            await connection.close()
    except (OSError, TimeoutError, *POSTGRES_ERRORS):
        connection.terminate()


def describe(error: BaseException) -> str:
    """One line for people: the SQLSTATE and what the server said, or the exception's own words."""
    if isinstance(error, asyncpg.PostgresError) and error.sqlstate:
        return f"{str(error).splitlines()[0] if str(error) else type(error).__name__} (SQLSTATE {error.sqlstate})"
    return str(error) or type(error).__name__


def what_to_do(error: BaseException) -> str:
    """What an operator does about a database that doesn't answer as it should."""
    sqlstate = getattr(error, "sqlstate", None) or ""
    return _POSTGRES_AWAY.get(sqlstate[:2], _ANY_POSTGRES_AWAY)


async def schema_is_current(connection: Connection) -> bool:
    """Every migration that this version needs is there (later ones may be, too: they stay readable for us)."""
    if not await connection.fetchval("SELECT to_regclass('measurement_updates.migrations') IS NOT NULL"):
        return False
    present: Any = await connection.fetchval("SELECT max(version) FROM measurement_updates.migrations")
    return present is not None and present >= max(migration.version for migration in migrations())
