"""`migrate`: planned, refused, and done while workers of an older version are at work."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from tests.commands import Ran, begun, run
from tests.faults.states import applied, applied_up_to, held
from tests.system import System, system, until
from worker.database import Connection, close, connect_lane
from worker.schema import migrate, plan_migration
from worker.sql import migrations, queries
from worker.stack import Stack

OLD = 2
"""Version of the schema from which workers are migrated under way."""


async def migrated_to(connection: Connection, version: int) -> None:
    """As the version of `migrate` left it that knew so many."""
    await connection.execute(
        """CREATE SCHEMA measurement_updates;
           CREATE TABLE measurement_updates.migrations (
               version integer PRIMARY KEY, name text NOT NULL, digest text NOT NULL,
               applied_at timestamptz NOT NULL DEFAULT clock_timestamp())"""
    )
    for migration in migrations():
        if migration.version <= version:
            await connection.execute(migration.text)
            await connection.execute(
                "INSERT INTO measurement_updates.migrations (version, name, digest) VALUES ($1, $2, $3)",
                migration.version,
                migration.name,
                migration.digest,
            )


@pytest_asyncio.fixture
async def old(stack: Stack, database_url: str) -> AsyncIterator[System]:
    """A system whose database is at version 2."""
    async with system(stack.kafka_bootstrap_servers, database_url) as built:
        await migrated_to(built.database, OLD)
        yield built


async def version(lab: System) -> int:
    return int(await lab.database.fetchval("SELECT max(version) FROM measurement_updates.migrations"))


async def migrate_command(lab: System, *arguments: str) -> Ran:
    return await run(lab, "migrate", *arguments)


async def test_the_plan_says_what_would_be_done_and_nothing_is(old: System) -> None:
    pending = [migration for migration in migrations() if migration.version > OLD]
    ran = await migrate_command(old, "--plan", "--json")
    assert (ran.code, ran.errors) == (0, "")
    assert ran.json == {
        "version": OLD,
        "wanted": pending[-1].version,
        "pending": [{"migration": f"{one.version:04}_{one.name}", "what": one.summary} for one in pending],
        "refused": None,
        "cell_measurements": "it has all columns",
    }
    shown = await migrate_command(old, "--plan")
    for one in pending:
        assert f"would apply {one.version:04}_{one.name} {one.summary}" in shown.words
    assert max(len(line) for line in shown.out.splitlines()) <= 80
    assert await version(old) == OLD
    done = await migrate_command(old, "--json")
    assert done.json["applied"] == [f"{one.version:04}_{one.name}" for one in pending]
    assert "nothing to do" in (await migrate_command(old, "--plan")).out
    assert "nothing to do" in (await migrate_command(old)).out


async def test_the_plan_for_an_empty_database_and_one_that_does_not_fit(
    old: System, stack: Stack, migrated_url: str
) -> None:
    connection = await asyncpg.connect(migrated_url)
    try:
        await connection.execute("DROP SCHEMA measurement_updates CASCADE; DROP TABLE cell_measurements")
        plan = await plan_migration(connection)
        assert [one.version for one in plan.pending] == [one.version for one in migrations()]
        assert (plan.present, plan.refused, plan.table) == (0, None, "it isn't there and will be made")
        assert await connection.fetchval("SELECT to_regnamespace('measurement_updates')") is None

        await connection.execute("CREATE TABLE cell_measurements (id text PRIMARY KEY, name integer)")
        ran = await run(old, "migrate", "--plan", DATABASE_URL=migrated_url)
        assert ran.code == 1
        assert "column name: expected text, found integer" in ran.errors
    finally:
        await connection.close()
    await old.database.execute("INSERT INTO measurement_updates.migrations VALUES (999, 'next', 'x')")
    for arguments in (("--plan",), ()):
        ran = await migrate_command(old, *arguments)
        assert (ran.code, "the database is at migration 999" in ran.errors) == (1, True)


@asynccontextmanager
async def updates_coming_in(lab: System) -> AsyncIterator[None]:
    """To both partitions, each one after the one before it is acknowledged."""
    enough = asyncio.Event()  # not cancelled: wait_for swallows that where its future is done at once

    async def publish(partition: int) -> None:
        number = 0
        while not enough.is_set():
            number += 1
            await lab.publish(f"m-{partition}", {"notes": f"{number}"}, partition=partition)

    publishing = [asyncio.create_task(publish(partition)) for partition in (0, 1)]
    try:
        yield
    finally:
        enough.set()
        await asyncio.gather(*publishing)


@asynccontextmanager
async def older_worker(lab: System, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """A worker that runs on the schema of version 2, and finds it changed under way. It is this version's: what its
    statements call is there."""
    [called] = (one for one in migrations() if one.name == "all_or_nothing")
    await lab.database.execute(called.text)

    async def as_it_is(_: Connection) -> bool:
        return True

    with monkeypatch.context() as patched:
        patched.setattr("worker.app.schema_is_current", as_it_is)
        async with lab.worker():
            yield


async def owners(lab: System) -> set[str]:
    rows = await lab.database.fetch("SELECT owner FROM measurement_updates.lanes WHERE owner IS NOT NULL")
    return {row["owner"] for row in rows}


async def test_workers_go_on_while_the_schema_is_migrated_and_newer_ones_join_them(
    old: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = old
    for partition in (0, 1):
        await lab.seed(f"m-{partition}")
    async with older_worker(lab, monkeypatch), updates_coming_in(lab):
        await applied(lab, 50)
        before = {row["lane"]: row["epoch"] for row in await lanes(lab)}
        assert (await migrate_command(lab)).code == 0
        assert await version(lab) == migrations()[-1].version
        await applied(lab, 50)
        assert {row["lane"]: row["epoch"] for row in await lanes(lab)} == before, "no lane was disturbed"

        async def states_are_kept() -> bool:
            return [row["state"] for row in await lanes(lab)] == ["running", "running"]

        await until(states_are_kept, "what could not be written before is written now")
        with lab.process() as newer:

            async def both_work() -> bool:
                found = await owners(lab)
                return len(found) == 2 and any(owner.endswith(f":{newer.pid}") for owner in found)

            await until(both_work, "an older and a newer worker have a partition each", timeout=60)
            await applied(lab, 50)
    async with lab.worker():
        await lab.settled()
    answers = await lab.answers()
    assert len(answers) == len({answer.place for answer in answers}) == await applied_up_to(lab)
    assert not any(answer.rejected for answer in answers)
    verified = await run(lab, "verify")
    assert verified.code == 0, verified.out


async def lanes(lab: System) -> list[Any]:
    return list(await lab.database.fetch("SELECT * FROM measurement_updates.lanes ORDER BY lane"))


async def test_a_table_in_use_is_waited_for_without_holding_the_lanes_up(
    old: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = old
    for partition in (0, 1):
        await lab.seed(f"m-{partition}")
    async with older_worker(lab, monkeypatch), updates_coming_in(lab):
        await applied(lab, 20)
        tables = "measurement_updates.lanes, measurement_updates.rejected_updates"
        async with held(lab, f"LOCK TABLE {tables} IN ACCESS SHARE MODE"), begun(lab, "migrate") as process:
            assert process.stderr is not None
            said = b""
            while said.count(b"tried again") < 3:
                said += await asyncio.wait_for(process.stderr.read(1000), 60)
            assert b"canceling statement due to lock timeout" in said
            assert b"whose transaction is open for" in b" ".join(said.split())
            assert await version(lab) < migrations()[-1].version
            await applied(lab, 50)  # while it still tries
        async with begun(lab, "migrate") as process:
            await asyncio.wait_for(process.communicate(), 60)
            assert process.returncode == 0
        await applied(lab, 20)


async def test_a_lock_that_cannot_be_had_is_given_up_with_who_has_it(old: System) -> None:
    connection = await asyncpg.connect(old.settings.dsn)
    waited: list[str] = []
    tables = "measurement_updates.lanes, measurement_updates.rejected_updates"
    try:
        async with held(old, f"LOCK TABLE {tables} IN ACCESS SHARE MODE"):
            with pytest.raises(Exception, match="End that transaction and run `measurement-updates migrate`"):
                await migrate(connection, waited.append, patience=0.1)
        assert await version(old) < migrations()[-1].version
        assert len((await migrate(connection)).applied) > 0
    finally:
        await connection.close()
    assert await version(old) == migrations()[-1].version


async def test_a_lanes_session_goes_on_reading_a_table_that_got_a_column(migrated_url: str) -> None:
    """What it has prepared is of the table as it was."""
    connection, other = (
        await connect_lane(migrated_url, application="test"),
        await asyncpg.connect(migrated_url),
    )
    try:
        for _ in range(3):
            await connection.fetchrow(queries()["find_lane"], "t", 0)
        await other.execute("ALTER TABLE measurement_updates.lanes ADD COLUMN of_a_later_version text")
        assert await connection.fetchrow(queries()["find_lane"], "t", 0) is None
    finally:
        await close(connection)
        await other.close()
