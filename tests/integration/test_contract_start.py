"""Before the first record: topics, migrations, and what a worker refuses to start on."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from tests.system import COMMAND, System, until
from worker.app import Worker
from worker.errors import Fatal
from worker.schema import migrate
from worker.sql import migrations
from worker.topics import check_topics, create_topics, wanted_topics

REST_TABLE = """
CREATE TABLE cell_measurements (
    id text PRIMARY KEY, organization_id text, cell_instance_id text NOT NULL, name text NOT NULL,
    measurement_type text NOT NULL DEFAULT 'time_series', protocol jsonb, test_setup jsonb, notes text, properties jsonb,
    file_metadata jsonb, start_time timestamptz, step_labels_validated boolean NOT NULL DEFAULT false, created_by text,
    created_by_email text, created_at timestamptz NOT NULL DEFAULT now(), updated_at timestamptz NOT NULL DEFAULT now(),
    of_rest_alone integer DEFAULT 7
);
INSERT INTO cell_measurements (id, cell_instance_id, name, notes) VALUES ('m-1', 'c-1', 'formation', 'kept');
"""
PATCHABLE = ("name", "protocol", "test_setup", "notes", "properties")


async def alter(lab: System, topic: str, **settings: str) -> None:
    """The topic's settings as `topics` makes them, with these instead (`_` for `.`)."""
    config = {
        **wanted_topics(lab.settings)[topic],
        **{name.replace("_", "."): value for name, value in settings.items()},
    }
    admin = AIOKafkaAdminClient(bootstrap_servers=lab.settings.bootstrap_servers)
    await admin.start()
    try:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=config)])
    finally:
        await admin.close()

    async def in_force() -> bool:  # the broker answers before it has taken the change up
        return (await config_of(lab, topic)).items() >= config.items()

    await until(in_force, f"{topic} has its new settings")


async def config_of(lab: System, topic: str) -> dict[str, str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=lab.settings.bootstrap_servers)
    await admin.start()
    try:
        [response] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    finally:
        await admin.close()
    return {entry[0]: entry[1] for entry in response.resources[0][4]}


async def refusal(lab: System, **overrides: Any) -> str:
    """Why a worker doesn't start."""
    worker = Worker(lab.settings.model_copy(update=overrides))
    with pytest.raises(Fatal) as refused:
        await asyncio.wait_for(worker.run(), 20)
    return str(refused.value)


async def test_topics_are_made_as_the_contract_wants_them_and_left_alone_after_that(lab: System) -> None:
    updates = await config_of(lab, lab.updates)
    assert updates["message.timestamp.type"] == "LogAppendTime"
    assert updates["cleanup.policy"] == "delete"
    assert int(updates["retention.ms"]) == 90 * 24 * 3600 * 1000
    assert updates["unclean.leader.election.enable"] == "false"
    # a whole event and 64 KiB of headers, and some that is over
    assert int(updates["max.message.bytes"]) > lab.settings.worker_max_event_bytes + 64 * 1024
    updated = await config_of(lab, lab.settings.worker_updated_topic)
    assert (updated["cleanup.policy"], int(updated["max.message.bytes"])) == ("delete", 8 * 1024**2)
    rejected = await config_of(lab, lab.settings.worker_rejected_topic)
    assert int(rejected["max.message.bytes"]) > int(updates["max.message.bytes"])

    await alter(lab, lab.updates, retention_ms="123456")
    states = await create_topics(lab.settings.model_copy(update={"worker_partitions": 7}))
    assert [state.created for state in states] == [False] * 3
    assert [state.partitions for state in states] == [2] * 3
    assert (await config_of(lab, lab.updates))["retention.ms"] == "123456"


async def test_a_worker_refuses_topics_that_it_could_not_keep_its_promises_on(lab: System) -> None:
    missing = {
        f"worker_{purpose}_topic": f"{lab.updates}-no-{purpose}"
        for purpose in ("updates", "updated", "rejected")
    }
    said = await refusal(lab, **missing)
    for name in missing.values():
        assert f"topic {name}: it doesn't exist" in said
    assert "measurement-updates topics" in said
    for settings, expected in (
        ({"message_timestamp_type": "CreateTime"}, "expected LogAppendTime, found CreateTime"),
        ({"cleanup_policy": "compact"}, "expected delete, found compact"),
        ({"unclean_leader_election_enable": "true"}, "expected false, found true"),
    ):
        await alter(lab, lab.updates, **settings)
        said = await refusal(lab)
        assert lab.updates in said
        assert expected in said
    await alter(lab, lab.updates)
    _, topics = await check_topics(lab.settings)
    assert [topic.faults for topic in topics] == [[], [], []]


async def test_a_compacted_topic_of_answers_is_welcome(lab: System) -> None:
    await lab.seed("m-1")
    await alter(lab, lab.settings.worker_updated_topic, cleanup_policy="compact")
    async with lab.worker():
        assert await lab.verdicts(await lab.publish("m-1", {"notes": "a"})) == ["1 notes"]


async def test_a_worker_refuses_a_database_that_belongs_to_another_group_or_cluster(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        await lab.publish("m-1", {"notes": "a"})
        await lab.settled()
    said = await refusal(lab, worker_group="another")
    for part in (lab.settings.worker_group, "another", "WORKER_GROUP", f"lanes restart {lab.updates}/0"):
        assert part in said
    await lab.database.execute("UPDATE measurement_updates.lanes SET cluster = 'elsewhere'")
    said = await refusal(lab)
    assert "cluster elsewhere" in said
    assert "KAFKA_BOOTSTRAP_SERVERS" in said
    assert len(await lab.answers(1)) == 1


@pytest_asyncio.fixture
async def empty(database_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A session with an empty database, not migrated."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def test_run_exits_1_and_says_why_where_the_schema_is_not_there(lab: System, database_url: str) -> None:
    run = await asyncio.create_subprocess_exec(
        COMMAND, "run", env={**lab.environment, "DATABASE_URL": database_url}, stderr=subprocess.PIPE
    )
    _, said = await asyncio.wait_for(run.communicate(), 30)
    assert run.returncode == 1
    assert "measurement-updates migrate" in said.decode()
    assert "Traceback" not in said.decode()


async def test_run_exits_2_and_names_every_wrong_setting(lab: System) -> None:
    wrong = {"WORKER_PARTITIONS": "none", "WORKER_DRAIN_TIMEOUT": "soon", "WORKER_MAX_EVENT_BYTES": "-1"}
    run = await asyncio.create_subprocess_exec(
        COMMAND, "run", env={**lab.environment, **wrong}, stderr=subprocess.PIPE
    )
    _, said = await asyncio.wait_for(run.communicate(), 30)
    assert run.returncode == 2
    for name in wrong:
        assert name in said.decode()


async def test_migrate_makes_the_table_with_the_models_defaults(
    empty: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    first, second = await migrate(empty), await migrate(empty)
    assert len(first.applied) == len(migrations())
    assert first.present == second.present == migrations()[-1].version
    assert second.applied == []
    await empty.execute("INSERT INTO cell_measurements (id, cell_instance_id, name) VALUES ('m', 'c', 'n')")
    row: Any = await empty.fetchrow("SELECT * FROM cell_measurements")
    assert (row["step_labels_validated"], row["measurement_type"], row["revision"]) == (
        False,
        "time_series",
        0,
    )
    assert abs((row["created_at"] - datetime.now(UTC)).total_seconds()) < 60
    assert row["updated_at"] == row["created_at"]


async def test_migrate_adds_to_a_table_that_rest_serves_and_keeps_its_rows(
    lab: System, empty: "asyncpg.Connection[asyncpg.Record]", database_url: str
) -> None:
    await empty.execute(REST_TABLE)
    before: Any = await empty.fetchrow("SELECT * FROM cell_measurements")
    await migrate(empty)
    row: Any = await empty.fetchrow("SELECT * FROM cell_measurements")
    added = dict(row.items())
    assert {name: added.pop(name) for name in before.keys()} == dict(before.items())  # noqa: SIM118  # a row's own iterator gives values
    assert added.pop("revision") == 0
    assert set(added) == {f"{name}_position" for name in PATCHABLE} | {"answer_lane", "answer_offset"}
    assert set(added.values()) == {None}
    # REST goes on as before: it needn't know of ours
    await empty.execute("INSERT INTO cell_measurements (id, cell_instance_id, name) VALUES ('m-2', 'c', 'n')")
    await empty.execute("UPDATE cell_measurements SET notes = 'rest' WHERE id = 'm-2'")
    assert await empty.fetchval("SELECT revision FROM cell_measurements WHERE id = 'm-2'") == 1

    lab.settings = lab.settings.model_copy(update={"database_url": _secret(lab, database_url)})
    async with lab.worker():
        sent = await lab.publish("m-1", {"name": "aging"})
        [answer] = await lab.answers_to(sent)
    assert (answer.model["name"], answer.model["notes"], len(answer.model)) == ("aging", "kept", 16)
    assert await empty.fetchval("SELECT of_rest_alone FROM cell_measurements WHERE id = 'm-1'") == 7


async def test_migrate_makes_a_revision_that_rest_has_already_start_at_0(
    empty: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    await empty.execute(REST_TABLE + "ALTER TABLE cell_measurements ADD revision bigint")
    await migrate(empty)
    await empty.execute("INSERT INTO cell_measurements (id, cell_instance_id, name) VALUES ('m-2', 'c', 'n')")
    rows = await empty.fetch("UPDATE cell_measurements SET notes = 'x' RETURNING revision")
    assert [row["revision"] for row in rows] == [1, 1]


def _secret(lab: System, url: str) -> Any:
    assert lab.settings.database_url is not None
    return type(lab.settings.database_url)(url)


async def test_migrate_says_exactly_which_columns_differ_and_changes_nothing(
    empty: "asyncpg.Connection[asyncpg.Record]", database_url: str
) -> None:
    await empty.execute(REST_TABLE)
    await empty.execute(
        """ALTER TABLE cell_measurements ALTER protocol TYPE json, DROP created_by, ADD revision integer,
           ALTER created_at TYPE timestamp, ALTER name TYPE varchar(255), ADD notes_position text"""
    )
    with pytest.raises(Fatal) as refused:
        await migrate(empty)
    differences = [line.strip() for line in str(refused.value).splitlines() if line.startswith("  ")]
    assert sorted(differences) == [
        "column created_at: expected timestamp with time zone, found timestamp without time zone",
        "column created_by: expected text, found none",
        "column name: expected text, found character varying",
        "column notes_position: expected bytea, found text",
        "column protocol: expected jsonb, found json",
        "column revision: expected bigint, found integer",
    ]
    assert await empty.fetchval("SELECT to_regnamespace('measurement_updates')") is None
    command = await asyncio.create_subprocess_exec(
        COMMAND, "migrate", env={**os.environ, "DATABASE_URL": database_url}, stderr=subprocess.PIPE
    )
    _, said = await asyncio.wait_for(command.communicate(), 30)
    assert command.returncode == 1
    assert differences[0] in said.decode()


async def test_migrate_refuses_a_database_that_is_ahead_of_it_or_was_made_otherwise(
    empty: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    await migrate(empty)
    await empty.execute("INSERT INTO measurement_updates.migrations VALUES (999, 'from_the_future', 'x')")
    with pytest.raises(Fatal, match="at migration 999"):
        await migrate(empty)
    await empty.execute("DELETE FROM measurement_updates.migrations WHERE version = 999")
    await empty.execute("UPDATE measurement_updates.migrations SET digest = 'x'")
    with pytest.raises(Fatal, match="another text"):
        await migrate(empty)


async def test_two_migrations_at_once_do_it_once(
    empty: "asyncpg.Connection[asyncpg.Record]", database_url: str
) -> None:
    await empty.execute(REST_TABLE)
    other = await asyncpg.connect(database_url)
    try:
        reports = await asyncio.gather(migrate(empty), migrate(other))
    finally:
        await other.close()
    assert sorted(len(report.applied) for report in reports) == [0, len(migrations())]


async def test_records_of_a_producers_clock_take_the_arrival_of_the_record_before_them(lab: System) -> None:
    """The topic's setting was changed under way: what is stamped by producers counts for nothing."""
    await lab.seed("m-1", updated_at=datetime(2026, 1, 1, tzinfo=UTC))
    now = int(datetime.now(UTC).timestamp() * 1000)

    async def stamped(value: bytes, timestamp: int) -> Any:
        sent = await lab.producer.send(
            lab.updates, value, key=b"m-1", partition=0, timestamp_ms=timestamp, headers=[]
        )
        return await sent

    await alter(lab, lab.updates, message_timestamp_type="CreateTime")
    first = await stamped(b'{"notes":"a"}', now - 1_000)
    await alter(lab, lab.updates)
    known = await lab.publish("m-1", {"notes": "b"}, partition=0)
    await alter(lab, lab.updates, message_timestamp_type="CreateTime")
    future = await stamped(b'{"notes":"c"}', now + 3_000_000)
    past = await stamped(b"{", 1)
    await alter(lab, lab.updates)
    last = await lab.publish("m-1", {"notes": "d"}, partition=0)
    assert known.timestamp < last.timestamp < future.timestamp
    async with lab.worker():
        answers = await lab.answers_to(first, known, future, past, last)
    arrivals = [answer.text("ce_id").partition("@")[2] for answer in answers if not answer.rejected]
    assert arrivals == [str(time) for time in (0, known.timestamp, known.timestamp, last.timestamp)]
    assert answers[3].text("rejection-timestamp") == str(known.timestamp)
    times = [
        int(datetime.fromisoformat(answer.model["updated_at"]).timestamp() * 1000)
        for answer in answers
        if not answer.rejected
    ]
    assert times[1:] == [known.timestamp, known.timestamp, last.timestamp]
    assert answers[0].model["updated_at"] == "2026-01-01T00:00:00.000000Z", "never back"
    assert [answer.revision for answer in answers if not answer.rejected] == [1, 2, 3, 4]
