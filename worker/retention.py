"""Retention: what is older than its time is removed, in small steps that disturb no lane.

An applied update is its measurement's history, repeats its answer, and makes its event known again: it stays for the
longer of the two retentions, and always until its answer is known to be sent. A rejected one stays until somebody has
closed it. Time is counted in arrivals, as the slowest lane sees it: a lane that lags may still meet an old identity.
"""

import asyncio

import asyncpg
import structlog

from worker.retry import as_worker_error
from worker.settings import Settings
from worker.sql import queries

_ROWS_AT_ONCE = 1_000
_PAUSE_SECONDS = 0.05
_EVERY_SECONDS = 60.0

log = structlog.get_logger()


async def keep_retention(pool: "asyncpg.Pool[asyncpg.Record]", settings: Settings) -> None:
    """For ever, once a minute. Several workers may do it at once: each removes what the others don't."""
    while True:
        try:
            await remove_expired(pool, settings)
        except Exception as error:
            known = as_worker_error(error)
            if known is None:
                raise
            log.warning("retention waits", why=str(known))
        await asyncio.sleep(_EVERY_SECONDS)


async def remove_expired(pool: "asyncpg.Pool[asyncpg.Record]", settings: Settings) -> int:
    """Returns how many rows were removed. Raises what asyncpg raises."""
    sql = queries()
    kept = max(settings.worker_history_retention, settings.worker_identity_retention)
    horizon = await pool.fetchval(sql["retention_horizon"], int(kept.total_seconds() * 1000))
    removed = 0
    if horizon is None:
        return removed
    for lane in await pool.fetch(sql["answered_lanes"]):
        for query in ("remove_applied", "remove_closed_rejections"):
            gone = _ROWS_AT_ONCE
            while gone == _ROWS_AT_ONCE:
                status = await pool.execute(
                    sql[query], lane["lane"], lane["next_to_answer"], horizon, _ROWS_AT_ONCE
                )
                gone = int(status.rpartition(" ")[2])
                removed += gone
                await asyncio.sleep(_PAUSE_SECONDS)
    return removed
