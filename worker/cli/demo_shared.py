"""The demo in somebody else's Kafka or Postgres: what it doesn't touch, and how it leaves them."""

import asyncio
from typing import TYPE_CHECKING

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from worker.database import POSTGRES_ERRORS, Connection, describe
from worker.errors import Fatal
from worker.settings import Settings
from worker.stack import Stack

if TYPE_CHECKING:
    from worker.lab.measurements import Measurement

_LOCK = 0x64656D6F  # 'demo': one at a time in a database


async def look_at_database(database: Connection, rows: "list[Measurement]") -> None:
    """Refuse what isn't ours to write to. Raises Fatal."""
    refusal = "the demo doesn't write there. Name an empty database, or unset DATABASE_URL for one of its own"
    if not await database.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
        raise Fatal("another demo is running in the database of DATABASE_URL: wait for its end")
    sessions = await database.fetchval(
        """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
           AND pid <> pg_backend_pid() AND application_name LIKE 'measurement-updates%'"""
    )
    if sessions:
        raise Fatal(f"a worker is connected to the database of DATABASE_URL: {refusal}")
    if await database.fetchval("SELECT to_regclass('cell_measurements') IS NOT NULL"):
        from worker.lab.measurements import foreign_measurements

        foreign = await foreign_measurements(database, rows)
        if foreign:
            raise Fatal(
                "the database of DATABASE_URL holds measurements that aren't the demo's"
                f" ({foreign:,} in cell_measurements): {refusal}"
            )
    if await database.fetchval("SELECT to_regclass('measurement_updates.lanes') IS NOT NULL"):
        topic = await database.fetchval(
            """SELECT topic FROM measurement_updates.lanes
               WHERE retired_at IS NULL AND topic !~ '^demo-[0-9a-f]{8}-' LIMIT 1"""
        )
        if topic is not None:
            raise Fatal(f"the database of DATABASE_URL follows the topic {topic}: {refusal}")


async def clean_up(
    stack: Stack, settings: Settings, database: Connection, rows: "list[Measurement]"
) -> list[str]:
    """Take out of shared servers what this run put there; bounded, and best effort: something failed already,
    or the report is out.

    Returns what is left behind.
    """
    from worker.lab.measurements import remove_measurements

    left = []
    if stack.postgres_origin == "settings":
        try:
            async with asyncio.timeout(10):
                await remove_measurements(database, rows)
                await _forget_lanes(database, settings.worker_updates_topic)
            left.append("in Postgres the schema measurement_updates and an empty table cell_measurements")
        except (OSError, TimeoutError, *POSTGRES_ERRORS) as error:
            left.append(f"in Postgres the demo's measurements and its bookkeeping ({describe(error)})")
    if stack.kafka_origin == "settings":
        names = [
            settings.worker_updates_topic, settings.worker_updated_topic, settings.worker_rejected_topic,
        ]  # fmt: skip
        try:
            async with asyncio.timeout(10):
                await _delete_topics(settings.bootstrap_servers, names)
            left.append(f"in Kafka the offsets of the group {settings.worker_group}, which expire")
        except (OSError, TimeoutError, KafkaError) as error:
            left.append(f"in Kafka the topics {', '.join(names)} ({error or type(error).__name__})")
    return left


async def _forget_lanes(database: Connection, topic: str) -> None:
    async with database.transaction():
        lanes = "(SELECT lane FROM measurement_updates.lanes WHERE topic = $1)"
        for table in ("applied_updates", "rejected_updates", "lane_decisions", "lanes"):
            await database.execute(f"DELETE FROM measurement_updates.{table} WHERE lane IN {lanes}", topic)


async def _delete_topics(bootstrap_servers: str, names: list[str]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        present = set(await admin.list_topics())
        await admin.delete_topics([name for name in names if name in present])
    finally:
        await admin.close()
