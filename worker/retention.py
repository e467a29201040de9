"""Retention: what is older than its time is removed, in small steps that disturb no lane.

An applied update is its measurement's history, repeats its answer, and makes its event known again: it stays for the
longer of the two retentions, and always until its answer is known to be sent. A rejected one stays until somebody has
closed it. Time is counted in arrivals, as the slowest lane sees it: a lane that lags may still meet an old identity.
One that has read its log to the end can't: what it meets next arrives later than all that there is. So a partition to
which nobody writes keeps nothing.

What people have decided (`lanes` that were retired, `lane_decisions`) stays: a few rows for each time that somebody did.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping

import asyncpg
import structlog

from worker.metrics import Metrics
from worker.retry import as_worker_error
from worker.settings import Settings
from worker.sql import queries

_ROWS_AT_ONCE = 1_000
_PAUSE_SECONDS = 0.05
_EVERY_SECONDS = 60.0
_HIDDEN_MS = 3600 * 1000
"""A record of a transaction that is still open lies beyond the log's stable end, and may have arrived some time ago: a
broker lets none be open for longer than 15 minutes, by default. And the clocks of two brokers aren't one."""
_TABLES = {"remove_applied": "applied_updates", "remove_closed_rejections": "rejected_updates"}

LogEnds = Callable[[], Awaitable[Mapping[int, int]]]
"""Partition of the input → the offset after its last stable record."""

log = structlog.get_logger()


async def keep_retention(
    pool: "asyncpg.Pool[asyncpg.Record]", settings: Settings, log_ends: LogEnds, metrics: Metrics
) -> None:
    """For ever, once a minute. Several workers may do it at once: each removes what the others don't."""
    said = ""
    while True:
        try:
            removed = await remove_expired(pool, settings, log_ends)
            for table, rows in removed.items():
                metrics.removed.labels(table).inc(rows)
            said = ""
        except Exception as error:
            known = as_worker_error(error)
            if known is None:
                raise
            if str(known) != said:
                said = str(known)
                log.warning("retention waits", why=said, do=known.do)
        await asyncio.sleep(_EVERY_SECONDS)


async def remove_expired(
    pool: "asyncpg.Pool[asyncpg.Record]", settings: Settings, log_ends: LogEnds
) -> dict[str, int]:
    """Returns how many rows were removed, by table. Raises what asyncpg and aiokafka raise."""
    sql = queries()
    kept = max(settings.worker_history_retention, settings.worker_identity_retention)
    lanes = await pool.fetch(sql["applied_lanes"], settings.worker_updates_topic)
    # asked after the lanes: who has applied all that there is now had applied it then
    horizon = horizon_of(lanes, await log_ends(), int(kept.total_seconds() * 1000))
    removed = dict.fromkeys(_TABLES.values(), 0)
    if horizon is None:
        return removed
    for lane in await pool.fetch(sql["answered_lanes"]):
        for query, table in _TABLES.items():
            gone = _ROWS_AT_ONCE
            while gone == _ROWS_AT_ONCE:
                status = await pool.execute(
                    sql[query], lane["lane"], lane["next_to_answer"], horizon, _ROWS_AT_ONCE
                )
                gone = int(status.rpartition(" ")[2])
                removed[table] += gone
                await asyncio.sleep(_PAUSE_SECONDS)
    return removed


def horizon_of(lanes: Iterable[Mapping[str, int]], ends: Mapping[int, int], kept: int) -> int | None:
    """What arrived before this many ms is past its time; None where nothing is. `kept`: ms.

    `lanes`: rows of the query `applied_lanes`.
    """
    lanes = list(lanes)
    begun = {lane["partition"] for lane in lanes if lane["is_ours"]}
    if not lanes or any(end > 0 for partition, end in ends.items() if partition not in begun):
        return None  # nobody knows yet what a partition that isn't taken over holds
    latest = max(lane["latest_arrival"] for lane in lanes)
    seen = []
    for lane in lanes:
        end = ends.get(lane["partition"]) if lane["is_ours"] else None
        at_its_end = end is not None and lane["next_to_apply"] >= end
        seen.append(
            max(lane["latest_arrival"], latest - _HIDDEN_MS) if at_its_end else lane["latest_arrival"]
        )
    return min(seen) - kept
