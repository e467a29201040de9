"""The demo, as users run it, on the session's Kafka and Postgres."""

import asyncio
import os
import signal
from collections.abc import Mapping

import asyncpg
import orjson
from aiokafka.admin import AIOKafkaAdminClient

from tests.system import COMMAND
from worker.stack import Stack


def environment(stack: Stack, database_url: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WORKER_")}
    return {
        **inherited,
        "KAFKA_BOOTSTRAP_SERVERS": stack.kafka_bootstrap_servers,
        "DATABASE_URL": database_url,
        "WORKER_PARTITIONS": "2",
    }


async def demo(*options: str, env: Mapping[str, str]) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    process = await started(*options, env=env)
    out, errors = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode is not None
    return process.returncode, out.decode(), errors.decode()


async def started(*options: str, env: Mapping[str, str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        COMMAND, "demo", *options, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )


async def demo_topics(stack: Stack) -> set[str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka_bootstrap_servers)
    await admin.start()
    try:
        return {topic for topic in await admin.list_topics() if topic.startswith("demo-")}
    finally:
        await admin.close()


async def rows_left(database_url: str) -> int:
    connection = await asyncpg.connect(database_url)
    try:
        return int(
            await connection.fetchval(
                """SELECT (SELECT count(*) FROM cell_measurements)
                        + (SELECT count(*) FROM measurement_updates.lanes)
                        + (SELECT count(*) FROM measurement_updates.applied_updates)
                        + (SELECT count(*) FROM measurement_updates.rejected_updates)"""
            )
        )
    finally:
        await connection.close()


async def test_the_demo_sees_what_had_to_become_of_each_update(stack: Stack, database_url: str) -> None:
    env = environment(stack, database_url)
    code, out, errors = await demo("--json", "--updates", "60", "--burst", "100", "--seconds", "1", env=env)
    assert code == 0, errors
    summary = orjson.loads(out)
    assert summary["mismatches"] == []
    assert summary["published"] == 60
    assert summary["seen"] == summary["expected"]
    assert summary["seen"]["duplicate"] == 4
    assert sum(summary["seen"].values()) == 60
    assert summary["answers"] == 56
    assert summary["burst"]["seen"] == {"applied": 100}
    assert 0 < summary["latency_ms"]["p50"] <= summary["latency_ms"]["p99"]
    assert summary["history"]["updates"] > 3

    # it has taken its own things out again, and a second run is as good as the first
    assert await rows_left(database_url) == 0
    assert await demo_topics(stack) == set()
    code, out, errors = await demo("--updates", "60", "--burst", "0", "--seconds", "1", env=env)
    assert code == 0, errors
    assert "\x1b" not in out
    for words in (
        "rejected invalid_json",
        "repaired and sent again, late",
        "p99",
        "Left behind: in Postgres",
    ):
        assert words in out


async def test_the_demo_refuses_a_database_with_other_measurements(stack: Stack, migrated_url: str) -> None:
    connection = await asyncpg.connect(migrated_url)
    await connection.execute("INSERT INTO cell_measurements (id, name) VALUES ('m-1', 'theirs')")
    try:
        code, out, errors = await demo("--json", env=environment(stack, migrated_url))
        assert code == 1
        assert out == ""
        assert "holds measurements that aren't the demo's (1 in cell_measurements)" in errors.replace(
            "\n", " "
        )
        assert await connection.fetchval("SELECT count(*) FROM cell_measurements") == 1
    finally:
        await connection.close()


async def test_an_interrupted_demo_leaves_nothing_behind(stack: Stack, database_url: str) -> None:
    process = await started("--updates", "400", env=environment(stack, database_url))
    assert process.stdout is not None
    async with asyncio.timeout(60):
        async for line in process.stdout:
            if b"rejected" in line:  # under way
                break
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert process.returncode == 130
    assert await rows_left(database_url) == 0
    assert await demo_topics(stack) == set()
