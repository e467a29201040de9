"""Postgres goes away, refuses, or is an older one: under load, and nothing is lost, doubled or out of order."""

import contextlib
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from tests.faults.drill import Drill
from tests.faults.servers import Servers
from tests.faults.states import held, lanes_wait
from tests.system import System, until

LANES = "datname = current_database() AND application_name LIKE 'measurement-updates lane%'"


@pytest.mark.thorough
@pytest.mark.own_servers
async def test_postgres_is_stopped_at_once_and_started(drill: Drill, servers: Servers) -> None:
    async with drill.under_load("Postgres stopped in immediate mode"):
        drill.start_worker()
        for _ in drill.rounds:
            await drill.flowing()
            async with servers.without("postgres"):
                await drill.says("lane waiting")
            await drill.recovered()
        await drill.system.reconnect()


async def test_sessions_are_ended(drill: Drill) -> None:
    async with drill.under_load("Postgres sessions ended (pg_terminate_backend)"):
        drill.start_worker()
        for _ in drill.rounds:
            await drill.flowing(more=drill.chance.randrange(100, 1_000))
            ended = await drill.system.database.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid()"
            )
            assert len(ended) >= 2
            await drill.recovered()


@pytest.mark.thorough
async def test_rows_are_locked_for_longer_than_the_lock_timeout(drill: Drill) -> None:
    """The lanes' own timeout: a session says it when it is opened, whatever the database's is."""
    async with drill.under_load("rows locked past lock_timeout"):
        drill.start_worker()
        for _ in drill.rounds:
            await drill.flowing()
            async with held(drill.system, "SELECT FROM cell_measurements WHERE id < 'm-12' FOR UPDATE"):
                await drill.says("canceling statement due to lock timeout")
            await drill.recovered()


async def test_another_writer_and_the_worker_lock_each_other_out(drill: Drill) -> None:
    async def deadlocks() -> int:
        await drill.system.database.execute("SELECT pg_stat_clear_snapshot()")
        return int(
            await drill.system.database.fetchval(
                "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
            )
        )

    async with drill.under_load("deadlock with another writer"):
        drill.start_worker()
        for _ in drill.rounds:
            await drill.flowing()
            before = await deadlocks()
            async with held(
                drill.system, "SELECT FROM cell_measurements WHERE id = 'm-9' FOR UPDATE"
            ) as other:
                await lanes_wait(drill.system)
                # lanes that wait for m-9 hold the rows before it
                with contextlib.suppress(asyncpg.DeadlockDetectedError):  # one of the two is chosen
                    await other.execute("SELECT FROM cell_measurements WHERE id < 'm-9' FOR UPDATE")

            async def happened(before: int = before) -> bool:
                return await deadlocks() > before

            await until(happened, "a deadlock")
            await drill.recovered()


async def test_the_database_is_read_only_for_a_while(drill: Drill) -> None:
    """As a server that was demoted."""
    database = drill.system.database
    name = database_of(drill.system)
    async with drill.under_load("database read-only"):
        drill.start_worker()
        for _ in drill.rounds:
            await drill.flowing()
            await database.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
            await database.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {LANES}")
            await drill.says("in a read-only transaction (SQLSTATE 25006)")
            await database.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
            await drill.recovered()


@pytest.mark.parametrize(
    "backup", ["from a backup taken a while ago", pytest.param("by a fresh one", marks=pytest.mark.thorough)]
)
async def test_the_database_is_replaced(drill: Drill, backup: str) -> None:
    """It catches up by itself to equal rows; that stretch is answered again."""
    fresh = await back_up(drill.system)
    async with drill.under_load(f"database replaced {backup}", allow_repeats=True):
        drill.start_worker()
        for number in drill.rounds:
            await drill.flowing()
            kept = fresh if backup == "by a fresh one" else await back_up(drill.system)
            await drill.flowing(more=1_000 * (1 + number % 3))
            await put_back(drill.system, kept)
            await drill.system.reconnect()
            await drill.recovered(applied_again(drill))


async def applied_again(drill: Drill) -> None:
    """The records that the replaced database doesn't know are applied again."""
    ends = dict(drill.load.ends)

    async def are_applied() -> bool:
        rows = await drill.system.database.fetch(
            "SELECT partition, next_to_apply FROM measurement_updates.lanes WHERE retired_at IS NULL"
        )
        return all(
            {row["partition"]: row["next_to_apply"] for row in rows}.get(at, 0) >= end
            for at, end in ends.items()
        )

    await until(are_applied, f"the database is applied up to {ends}", 60)


async def back_up(system: System) -> str:
    """A copy of the database; its name."""
    copy = f"backup_{uuid.uuid4().hex[:12]}"
    async with alone(system) as admin:
        await admin.execute(f"CREATE DATABASE {copy} TEMPLATE {database_of(system)}")
    await system.reconnect()
    return copy


async def put_back(system: System, copy: str) -> None:
    async with alone(system) as admin:
        await admin.execute(f"DROP DATABASE {database_of(system)}")
        await admin.execute(f"CREATE DATABASE {database_of(system)} TEMPLATE {copy}")


@asynccontextmanager
async def alone(system: System) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """Nobody else is in the database, and nobody comes in."""
    name = database_of(system)
    admin = await asyncpg.connect(urlunsplit(urlsplit(system.settings.dsn)._replace(path="/postgres")))
    try:
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await admin.execute(
            f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'"
        )
        yield admin
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    finally:
        await admin.close()


def database_of(system: System) -> str:
    return urlsplit(system.settings.dsn).path.removeprefix("/")
