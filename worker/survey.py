"""What health and metrics ask Kafka and Postgres themselves, a few times a minute, and never while Prometheus waits."""

from collections.abc import Mapping
from dataclasses import dataclass

import asyncpg
from aiokafka.errors import KafkaError

from worker.database import POSTGRES_ERRORS, Connection
from worker.input_log import InputLog
from worker.retry import as_worker_error
from worker.sql import queries

_REPLAY_COUNTS = ("runs", "read", "selected", "published")


@dataclass(frozen=True, slots=True)
class Surveyed:
    """None: not known now. An old number would be taken for a present one."""

    away: str = ""
    """What Kafka or Postgres has said instead of an answer."""
    ends: Mapping[int, int] | None = None
    """Partition → the offset after its last stable record; empty where the topic is gone."""
    open_rejections: Mapping[str, int] | None = None
    """By code."""
    replays: Mapping[str, Mapping[str, int]] | None = None
    """State → what is counted → how many, of the runs that haven't ended."""


async def survey(pool: "asyncpg.Pool[asyncpg.Record]", input_log: InputLog, topic: str) -> Surveyed:
    """That a server is away is an answer, too: it isn't raised."""
    away = []
    ends = open_rejections = replays = None
    try:
        ends = await input_log.all_ends(topic)
    except (KafkaError, OSError, TimeoutError) as error:
        away.append(str(as_worker_error(error)))
    try:
        async with pool.acquire() as connection, connection.transaction(readonly=True):
            # what is only looked at must not hold up what is written
            await connection.execute("SET LOCAL statement_timeout = '5s'")
            rows = await connection.fetch(queries()["open_rejections"])
            open_rejections = {row["code"]: row["count"] for row in rows}
            replays = await _replays(connection)
    except (OSError, TimeoutError, *POSTGRES_ERRORS) as error:
        away.append(str(as_worker_error(error)))
    return Surveyed("; ".join(away), ends, open_rejections, replays)


async def _replays(connection: Connection) -> dict[str, dict[str, int]]:
    if not await connection.fetchval("SELECT to_regclass('measurement_updates.replays') IS NOT NULL"):
        return {}
    rows = await connection.fetch(queries()["unfinished_replays"])
    return {row["state"]: {counted: int(row[counted]) for counted in _REPLAY_COUNTS} for row in rows}
