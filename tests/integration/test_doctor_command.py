"""`doctor`: everything that a deployment needs is looked at, and each thing that is wrong is found, with what mends it."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from tests.commands import Ran, run
from tests.faults.states import administering
from tests.system import System, until
from worker.topics import wanted_topics

TRIGGER = "measurement_updates_stamp_other_writer"


async def doctor(lab: System, *arguments: str, **environment: str) -> Ran:
    return await run(lab, "doctor", *arguments, **environment)


def findings(ran: Ran) -> list[dict[str, Any]]:
    """What isn't ok."""
    return [check for check in ran.json["checks"] if check["verdict"] != "ok"]


async def finds(lab: System, name: str, verdict: str, said: str, mend: str, **environment: str) -> None:
    """Just this, and the exit code that belongs to it."""
    ran = await doctor(lab, "--json", **environment)
    [found] = findings(ran)
    assert (found["name"], found["verdict"]) == (name, verdict), found
    assert said in found["said"]
    assert mend in found["mend"]
    assert ran.code == (1 if verdict == "failed" else 0)


async def alter(lab: System, topic: str, **settings: str) -> None:
    """The topic's settings as `topics` makes them, with these instead (`_` for `.`)."""
    changed = {name.replace("_", "."): value for name, value in settings.items()}
    config = {**wanted_topics(lab.settings)[topic], **changed}
    async with administering(lab) as admin:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=config)])

        async def in_force() -> bool:  # the broker answers before it has taken the change up
            return (await config_of(admin, topic)).items() >= config.items()

        await until(in_force, f"{topic} has its new settings")


async def config_of(admin: AIOKafkaAdminClient, topic: str) -> dict[str, str]:
    [response] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    return {entry[0]: entry[1] for entry in response.resources[0][4]}


async def worked(lab: System) -> None:
    """A worker has been here."""
    await lab.seed("m-0")
    async with lab.worker():
        for number in range(3):
            await lab.publish("m-0", {"notes": f"{number}"}, partition=0)
        await lab.settled()


async def test_a_deployment_that_is_well_has_no_finding(lab: System) -> None:
    before = await doctor(lab, "--json")
    assert (before.code, findings(before)) == (0, []), "before the first worker, too"
    await worked(lab)
    ran = await doctor(lab, "--json")
    assert (ran.code, ran.errors, findings(ran), ran.json["ok"]) == (0, "", [], True)
    areas = {(check["area"], check["name"]) for check in ran.json["checks"]}
    assert areas >= {
        ("kafka", "version"), ("kafka", "rights"), ("kafka", "settings"), ("kafka", "group"),
        ("topics", lab.updates), ("topics", f"{lab.updates} replicas"), ("topics", "sizes"), ("topics", "retention"),
        ("postgres", "version"), ("postgres", "writable"), ("postgres", "sessions"), ("postgres", "connections"),
        ("postgres", "schema"), ("postgres", "rights"), ("postgres", "trigger"), ("postgres", "cell_measurements"),
        ("postgres", "backups"), ("lanes", "lanes"), ("clocks", "host"), ("clocks", "broker"),
    }  # fmt: skip
    shown = await doctor(lab)
    assert shown.code == 0
    assert shown.out.rstrip().endswith("ok, 0 warnings, 0 failed")
    assert max(len(line) for line in shown.out.splitlines()) <= 80
    assert "\x1b" not in shown.out


async def test_the_brokers_clock_is_measured_by_a_record_that_comes_in_meanwhile(lab: System) -> None:
    quiet = next(check for check in (await doctor(lab, "--json")).json["checks"] if check["name"] == "broker")
    assert quiet["said"].startswith("not measured: ")
    clocks: list[str] = []

    async def is_measured() -> bool:
        ran = await run(lab, "doctor", "--json")
        clocks.extend(check["said"] for check in ran.json["checks"] if check["name"] == "broker")
        return clocks[-1].startswith("a record that came in just now has the database's time")

    async with updates_coming_in(lab):
        await until(is_measured, lambda: f"the broker's clock is measured: {clocks}", timeout=90)


@asynccontextmanager
async def updates_coming_in(lab: System) -> AsyncIterator[None]:
    enough = asyncio.Event()

    async def publish() -> None:
        while not enough.is_set():
            await lab.publish("m-0", {"notes": "x"}, partition=0)
            await asyncio.wait([asyncio.ensure_future(enough.wait())], timeout=0.1)

    publishing = asyncio.create_task(publish())
    try:
        yield
    finally:
        enough.set()
        await publishing


async def test_topics_that_are_not_as_they_should_be_are_found(lab: System) -> None:
    updates = lab.updates
    for setting, found, name, verdict, said, wanted in (
        ("message_timestamp_type", "CreateTime", updates, "failed", "found CreateTime", "LogAppendTime"),
        ("cleanup_policy", "compact", updates, "failed", "found compact", "delete"),
        ("max_message_bytes", "1000000", updates, "warning", "found 1000000", "2359296"),
        ("retention_bytes", "1000000", "retention", "warning", "retention.bytes is 1,000,000", "-1"),
        ("min_insync_replicas", "2", f"{updates} replicas", "failed", "is 2, but there are 1", "1"),
    ):
        await alter(lab, updates, **{"retention_bytes": "-1", "min_insync_replicas": "1", setting: found})
        mend = f"--entity-name {updates} --add-config {setting.replace('_', '.')}={wanted}"
        await finds(lab, name, verdict, said, mend)
    await alter(lab, updates, retention_bytes="-1", min_insync_replicas="1", retention_ms="86400000")
    short = findings(await doctor(lab, "--json"))
    assert [check["name"] for check in short] == [updates, "retention"]
    assert "the input keeps 24 hours, WORKER_HISTORY_RETENTION is 90 days" in short[1]["said"]


async def test_a_topic_that_is_missing_and_a_server_that_is_away_are_found(lab: System) -> None:
    await finds(
        lab, f"{lab.updates}-no", "failed", "it doesn't exist", "measurement-updates topics",
        WORKER_REJECTED_TOPIC=f"{lab.updates}-no",
    )  # fmt: skip
    for name, away in (
        ("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1"),
        ("DATABASE_URL", "postgresql://a@127.0.0.1:1/b"),
    ):
        await finds(lab, "reachable", "failed", "can't be reached", name, **{name: away})


async def test_what_is_wrong_with_the_table_is_found(lab: System) -> None:
    execute = lab.database.execute
    await execute(f"ALTER TABLE cell_measurements DISABLE TRIGGER {TRIGGER}")
    await finds(lab, "trigger", "failed", "is disabled", f"ENABLE TRIGGER {TRIGGER}")
    await execute(f"DROP TRIGGER {TRIGGER} ON cell_measurements")
    gone = findings(await doctor(lab, "--json"))
    assert [(check["name"], check["verdict"]) for check in gone] == [("trigger", "failed")]
    await execute(gone[0]["mend"])
    assert findings(await doctor(lab, "--json")) == [], "what it says mends it"

    await execute(
        """CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN NEW.updated_at := now(); RETURN NEW; END $$;
           CREATE TRIGGER touch BEFORE UPDATE ON cell_measurements FOR EACH ROW EXECUTE FUNCTION touch()"""
    )
    await finds(lab, "trigger touch", "warning", "updated_at", "measurement_updates.applying")
    await execute(
        """CREATE OR REPLACE TRIGGER touch BEFORE UPDATE ON cell_measurements FOR EACH ROW
           WHEN (current_setting('measurement_updates.applying', true) IS DISTINCT FROM 'on') EXECUTE FUNCTION touch()"""
    )
    assert findings(await doctor(lab, "--json")) == []

    for statement, said, mend in (
        ("ALTER TABLE cell_measurements SET (fillfactor = 100)", "fillfactor is 100", "SET (fillfactor = 80)"),
        ("CREATE INDEX by_time ON cell_measurements (updated_at)", "(by_time)", "drop"),
        ("ALTER TABLE cell_measurements SET (autovacuum_enabled = off)", "autovacuum", "RESET"),
        (
            "CREATE RULE nothing AS ON UPDATE TO cell_measurements WHERE old.id = '' DO INSTEAD NOTHING",
            "(nothing)", "triggers",
        ),
    ):  # fmt: skip
        before = len(findings(await doctor(lab, "--json")))
        await execute(statement)
        ran = await doctor(lab, "--json")
        found = [check for check in findings(ran) if said in check["said"]]
        assert len(findings(ran)) == before + 1
        assert [(check["name"], check["verdict"]) for check in found] == [("cell_measurements", "warning")]
        assert mend in found[0]["mend"]
        assert ran.code == 0


async def test_a_schema_that_is_older_is_found(lab: System) -> None:
    await lab.database.execute(
        """DELETE FROM measurement_updates.migrations
           WHERE version = (SELECT max(version) FROM measurement_updates.migrations)"""
    )
    await finds(lab, "schema", "failed", "expected", "measurement-updates migrate")


async def test_a_schema_that_is_newer_is_a_warning(lab: System) -> None:
    await lab.database.execute("INSERT INTO measurement_updates.migrations VALUES (999, 'next', 'x')")
    await finds(lab, "schema", "warning", "version 999, this version's is", "newer version")


async def test_rights_that_the_databases_role_lacks_are_found_and_what_grants_them(lab: System) -> None:
    role = f"r_{uuid.uuid4().hex[:12]}"
    parts = urlsplit(lab.settings.dsn)
    host = parts.netloc.rpartition("@")[2]
    dsn = urlunsplit(parts._replace(netloc=f"{role}:secret@{host}"))
    await lab.database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    try:
        await lab.database.execute(
            "REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA measurement_updates FROM PUBLIC"
        )
        ran = await doctor(lab, "--json", DATABASE_URL=dsn)
        assert ran.code == 1
        lacking = findings(ran)
        assert {check["name"] for check in lacking} == {"rights"}
        said = " ".join(check["said"] for check in lacking)
        for words in (
            "schema measurement_updates: no USAGE",
            "measurement_updates.lanes: no DELETE, INSERT, SELECT, UPDATE",
            "measurement_updates.applied_updates: no DELETE, INSERT, SELECT, UPDATE",
            "measurement_updates.migrations: no SELECT",
            "cell_measurements: no SELECT on id,",
            "cell_measurements: no UPDATE on name,",
            "measurement_updates.lock_measurements",
        ):
            assert words in said
        for check in lacking:
            await lab.database.execute(check["mend"])
        mended = await doctor(lab, "--json", DATABASE_URL=dsn)
        assert (mended.code, findings(mended)) == (0, [])

        names = ", ".join(
            row["attname"]
            for row in await lab.database.fetch(
                "SELECT attname FROM pg_attribute WHERE attrelid = 'cell_measurements'::regclass AND attnum > 0"
            )
        )
        await lab.database.execute(
            f"REVOKE SELECT ON cell_measurements FROM {role}; GRANT SELECT ({names}) ON cell_measurements TO {role}"
        )
        [found] = findings(await doctor(lab, "--json", DATABASE_URL=dsn))
        assert "cell_measurements: no SELECT on xmin" in found["said"]
    finally:
        await lab.database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_sessions_that_are_too_few_are_found(lab: System) -> None:
    name = urlsplit(lab.settings.dsn).path.removeprefix("/")
    await lab.database.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 3")
    ran = await doctor(lab, "--json")
    [found] = findings(ran)
    assert (found["name"], found["verdict"], ran.code) == ("connections", "failed", 1)
    assert "4 needed (2 partitions, 1 worker(s)), 3 allowed" in found["said"]
    assert "CONNECTION LIMIT" in found["mend"]


async def test_lanes_that_cannot_go_on_are_found(lab: System) -> None:
    await worked(lab)
    foreign = findings(await doctor(lab, "--json", WORKER_GROUP="another"))
    assert [(check["name"], check["verdict"]) for check in foreign] == [
        ("partition 0", "failed"),
        ("partition 1", "failed"),
    ]
    assert f"measurement-updates lanes restart {lab.updates}/0" in foreign[0]["mend"]
    await lab.database.execute(
        "UPDATE measurement_updates.lanes SET last_digest = '\\x00' WHERE partition = 0"
    )
    await finds(lab, "partition 0", "failed", "is another one than the one that was applied", "lanes --help")
    for _ in range(4):
        await lab.publish("m-0", {"notes": "x"}, partition=0)
    async with administering(lab) as admin:
        await admin.delete_records({TopicPartition(lab.updates, 0): RecordsToDelete(5)})
    await finds(lab, "partition 0", "failed", "retention has taken the records 3 to 4", "lanes --help")
