"""What `doctor` asks of Postgres: version, schema, rights, triggers, the table, sessions."""

from collections.abc import AsyncGenerator, Iterator
from functools import partial
from typing import Any

import asyncpg

from worker.checks import Check
from worker.database import POSTGRES_ERRORS, Connection, close, connect_lane, describe
from worker.kafka_state import KafkaState
from worker.measurement import PATCHABLE
from worker.schema import MODEL_COLUMNS, OUR_COLUMNS, MigrationPlan, plan_migration
from worker.settings import Settings
from worker.sql import queries

_LEAST_VERSION = 140_000
_WRITTEN = (
    *PATCHABLE, *(f"{name}_position" for name in PATCHABLE), "updated_at", "revision", "answer_lane", "answer_offset",
)  # fmt: skip
_MANY = 10_000
"""Rows, from which on proportions mean something."""


async def postgres_checks(
    settings: Settings, connection: Connection, kafka: KafkaState | None
) -> AsyncGenerator[Check, None]:
    """Raises what asyncpg raises. `kafka`: None where it is away."""
    server = await connection.fetchrow(_sql("server"))
    assert server is not None
    yield _version(server)
    yield _primary(server)
    yield await _lane_session(settings)
    if kafka is not None:
        yield _sessions(server, kafka)
    lacking = [found async for found in _lacking(connection, server["role"])]
    for said, mend in lacking:
        yield Check("postgres", "rights", "failed", said, mend)
    try:
        plan = await plan_migration(connection)
    except asyncpg.InsufficientPrivilegeError:
        return  # said above: the rest can't be looked at
    yield _schema(plan)
    if plan.pending or (plan.refused and plan.present <= plan.wanted):
        return
    if not lacking:
        yield Check("postgres", "rights", "ok", f"role {server['role']} may do all that a worker does")
    async for check in _triggers(connection):
        yield check
    async for check in _table(connection):
        yield check
    yield await _backups(connection)


def _schema(plan: MigrationPlan) -> Check:
    check = partial(Check, "postgres", "schema")
    if plan.present > plan.wanted:  # workers of this version run on it
        said = f"version {plan.present}, this version's is {plan.wanted}"
        return check("warning", said, "use the newer version of measurement-updates here, too")
    if plan.refused:
        return check("failed", plan.refused, "as it says; see measurement-updates migrate --plan")
    if plan.pending:
        return check(
            "failed", f"version {plan.present}, expected {plan.wanted}", "measurement-updates migrate"
        )
    return check("ok", f"version {plan.present}; cell_measurements: {plan.table}")


def _version(server: Any) -> Check:
    if server["version_number"] < _LEAST_VERSION:
        return Check(
            "postgres", "version", "failed", f"{server['version']}, expected 14 or newer", "upgrade it"
        )
    return Check("postgres", "version", "ok", f"{server['version']}, database {server['database']}")


def _primary(server: Any) -> Check:
    if server["standby"] or server["read_only"]:
        return Check(
            "postgres", "writable", "failed", "this is a standby, or read-only: workers wait until it isn't",
            "point DATABASE_URL at the primary (several hosts: target_session_attrs=primary)",
        )  # fmt: skip
    return Check("postgres", "writable", "ok", "it takes writes")


async def _lane_session(settings: Settings) -> Check:
    """A session as a lane has it: a proxy that pools transactions refuses its settings, or loses them."""
    mend = "give workers direct sessions: no proxy that pools transactions or statements"
    try:
        connection = await connect_lane(settings.dsn, application="measurement-updates doctor")
    except (OSError, TimeoutError, *POSTGRES_ERRORS) as error:
        return Check("postgres", "sessions", "failed", f"a lane's can't be opened: {describe(error)}", mend)
    try:
        marked = await connection.fetchval("SELECT current_setting('measurement_updates.applying', true)")
    finally:
        await close(connection)
    if marked != "on":
        return Check(
            "postgres", "sessions", "failed", "a session's settings don't arrive at the server", mend
        )
    return Check("postgres", "sessions", "ok", "they are direct")


def _sessions(server: Any, kafka: KafkaState) -> Check:
    """One for each partition, two for each worker."""
    workers = max(1, kafka.members)
    needed = len(kafka.logs) + 2 * workers
    limits = [server["max_connections"] - server["reserved"]]
    limits += [limit for limit in (server["role_limit"], server["database_limit"]) if limit >= 0]
    said = (
        f"{needed} needed ({len(kafka.logs)} partitions, {workers} worker(s)), {min(limits)} allowed,"
        f" {server['others']} used by others"
    )
    mend = "raise max_connections, or the role's or database's CONNECTION LIMIT"
    if needed > min(limits):
        return Check("postgres", "connections", "failed", said, mend)
    if needed + server["others"] > min(limits):
        return Check("postgres", "connections", "warning", said, mend)
    return Check("postgres", "connections", "ok", said)


async def _lacking(connection: Connection, role: str) -> AsyncGenerator[tuple[str, str], None]:
    """What the role lacks, and the statement that grants it."""
    other = await connection.fetchrow(_sql("other_rights"))
    assert other is not None
    if other["schema"] is None:
        return  # not migrated yet
    if not other["schema"]:
        yield "schema measurement_updates: no USAGE", f"GRANT USAGE ON SCHEMA measurement_updates TO {role}"
    for row in await connection.fetch(_sql("table_rights")):
        table = f"measurement_updates.{row['table']}"
        yield f"{table}: no {row['missing']}", f"GRANT {row['missing']} ON {table} TO {role}"
    read = [*MODEL_COLUMNS, *OUR_COLUMNS, "answer_lane", "answer_offset", "xmin"]
    columns = await connection.fetch(_sql("column_rights"), read, list(_WRITTEN))
    for wanted in ("SELECT", "UPDATE"):
        if names := ", ".join(row["column"] for row in columns if row["wanted"] == wanted):
            yield (
                f"cell_measurements: no {wanted} on {names}",
                f"GRANT {wanted} ON cell_measurements TO {role}",
            )
    if functions := other["functions"]:
        yield f"functions {functions}: no EXECUTE", f"GRANT EXECUTE ON FUNCTION {functions} TO {role}"
    if not other["terminate"]:
        yield (
            "pg_terminate_backend: no EXECUTE, so no former owner's session can be ended",
            f"GRANT EXECUTE ON FUNCTION pg_terminate_backend(integer, bigint) TO {role}",
        )
    if not other["schema"] or not other["lanes"]:
        return  # they can't be looked at
    for row in await connection.fetch(_sql("sessions_of_others")):
        yield (
            f"lanes are owned by sessions of role {row['role']}, which {role} may not end",
            f"let all workers be one role, or: GRANT pg_signal_backend TO {role}",
        )


async def _triggers(connection: Connection) -> AsyncGenerator[Check, None]:
    enabled = await connection.fetchval(_sql("trigger"))
    name = "measurement_updates_stamp_other_writer"
    if enabled is None:
        yield Check(
            "postgres", "trigger", "failed",
            f"{name} isn't there: changes made elsewhere get no revision, and late events undo them",
            f"CREATE TRIGGER {name} BEFORE UPDATE ON cell_measurements FOR EACH ROW"
            " WHEN (current_setting('measurement_updates.applying', true) IS DISTINCT FROM 'on')"
            " EXECUTE FUNCTION measurement_updates.stamp_other_writer()",
        )  # fmt: skip
    elif enabled not in ("O", "A"):
        yield Check(
            "postgres", "trigger", "failed",
            f"{name} is disabled: changes made elsewhere get no revision, and late events undo them",
            f"ALTER TABLE cell_measurements ENABLE TRIGGER {name}",
        )  # fmt: skip
    else:
        yield Check("postgres", "trigger", "ok", f"{name} is enabled")
    for row in await connection.fetch(_sql("other_triggers")):
        if row["sets_updated_at"]:
            yield Check(
                "postgres", f"trigger {row['name']}", "warning",
                "it seems to set updated_at on the worker's updates too: rows differ from answers",
                "leave the worker's sessions out of it: WHEN (current_setting('measurement_updates.applying', true)"
                " IS DISTINCT FROM 'on')",
            )  # fmt: skip


async def _table(connection: Connection) -> AsyncGenerator[Check, None]:
    table = await connection.fetchrow(_sql("table_state"), list(_WRITTEN))
    if table is None:
        return
    hints = [*_hints(table)]
    for said, mend in hints:
        yield Check("postgres", "cell_measurements", "warning", said, mend)
    if not hints:
        hot = 100 * table["hot_updates"] // max(1, table["updates"])
        said = f"{table['live']:,} rows" + (f", {hot} % of updates are HOT" if table["updates"] else "")
        yield Check("postgres", "cell_measurements", "ok", said)


def _hints(table: Any) -> Iterator[tuple[str, str]]:
    """What makes updates dear, or lets them come to nothing."""
    if table["row_security"]:
        yield (
            "row security applies to this role: rows that it hides are measurement_not_found",
            "ALTER ROLE … BYPASSRLS, or a policy for the worker's role",
        )
    if table["rules"]:
        yield f"it has rules ({table['rules']}): they may swallow updates", "use triggers instead of rules"
    if table["kind"] == "r" and table["fillfactor"] > 90:
        yield (
            f"fillfactor is {table['fillfactor']}: no room beside a row for its next version, indexes are written too",
            "ALTER TABLE cell_measurements SET (fillfactor = 80)",
        )
    if table["indexes"]:
        yield (
            f"indexes on columns that events write ({table['indexes']}): no update is a HOT one",
            "drop those that nobody needs",
        )
    if table["autovacuum"] not in ("true", "on", "1"):
        yield "autovacuum is off for it", "ALTER TABLE cell_measurements RESET (autovacuum_enabled)"
    if table["dead"] > _MANY and table["dead"] > table["live"] / 2:
        yield (
            f"{table['dead']:,} dead rows beside {table['live']:,}: is a transaction open for long?",
            "end old transactions (pg_stat_activity), then VACUUM cell_measurements",
        )


async def _backups(connection: Connection) -> Check:
    """How old base backups are the server doesn't know; whether its log is archived, it does."""
    archiver = await connection.fetchrow(_sql("archiver"))
    assert archiver is not None
    failed, archived = archiver["last_failed_time"], archiver["last_archived_time"]
    if archiver["mode"] == "off":
        return Check(
            "postgres", "backups", "ok", "no WAL is archived here; how old backups are isn't known here"
        )
    if failed is not None and (archived is None or failed > archived):
        return Check(
            "postgres", "backups", "warning", f"archiving WAL has failed since {failed:%Y-%m-%d %H:%M} UTC",
            "see archive_command and the server's log",
        )  # fmt: skip
    return Check(
        "postgres",
        "backups",
        "ok",
        f"WAL was last archived at {archived:%Y-%m-%d %H:%M} UTC"
        if archived
        else "WAL archiving is on, nothing archived yet",
    )


def _sql(name: str) -> str:
    return queries("doctor.sql")[name]
