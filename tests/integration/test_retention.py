"""What is older than its time is removed; what may still be needed stays."""

from datetime import timedelta

import asyncpg

from tests.system import System
from worker.retention import remove_expired


async def lane(lab: System, partition: int, *, answered: int, latest_arrival: int) -> int:
    return int(
        await lab.database.fetchval(
            """INSERT INTO measurement_updates.lanes
                   (topic, partition, cluster, consumer_group, next_to_apply, next_to_answer, latest_arrival)
               VALUES ('updates', $1, 'c', 'g', 5000, $2, $3) RETURNING lane""",
            partition,
            answered,
            latest_arrival,
        )
    )


async def no_ends() -> dict[int, int]:
    """Kafka doesn't know the topic: then no lane counts as having read it to its end."""
    return {}


async def test_old_updates_go_unless_they_are_unanswered_or_open(lab: System) -> None:
    first = await lane(lab, 0, answered=3000, latest_arrival=1_000_000)
    await lane(lab, 1, answered=0, latest_arrival=900_000)  # the slowest lane: the horizon is 800,000
    for number, offset in ((2500, 100), (10, 2600), (10, 3100)):
        # 2,500 rows long ago, 10 of late, and 10 old ones that aren't known to be answered
        arrival = 850_000 if offset == 2600 else 1
        await lab.database.execute(
            """INSERT INTO measurement_updates.applied_updates
                   (lane, log_offset, arrival, identity, content, measurement_id, event_source, event_id, revision,
                    changed, answer_source, answer)
               SELECT $1, $2 + n, $4, '', '', 'm', 's', n::text, 1, '', 's', '{}'
               FROM generate_series(0, $3 - 1) AS n""",
            first,
            offset,
            number,
            arrival,
        )
    for offset, state in ((1, "open"), (2, "resolved"), (3, "discarded"), (4, "requeued")):
        await lab.database.execute(
            """INSERT INTO measurement_updates.rejected_updates
                   (lane, log_offset, arrival, header_names, header_values, code, detail, state)
               VALUES ($1, $2, 1, '{}', '{}', 'invalid_json', '{}', $3)""",
            first,
            offset,
            state,
        )
    settings = lab.settings.model_copy(
        update={
            "worker_history_retention": timedelta(seconds=50),
            "worker_identity_retention": timedelta(seconds=100),
        }
    )
    async with asyncpg.create_pool(lab.settings.dsn, min_size=1, max_size=1) as pool:
        assert await remove_expired(pool, settings, no_ends) == {
            "applied_updates": 2500,
            "rejected_updates": 2,
        }
        assert not any((await remove_expired(pool, settings, no_ends)).values())
    left = await lab.database.fetch(
        "SELECT log_offset FROM measurement_updates.applied_updates ORDER BY log_offset"
    )
    assert [row["log_offset"] for row in left] == [*range(2600, 2610), *range(3100, 3110)]
    states = await lab.database.fetch(
        "SELECT state FROM measurement_updates.rejected_updates ORDER BY log_offset"
    )
    assert [row["state"] for row in states] == ["open", "requeued"]
