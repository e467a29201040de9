"""How far each partition of the input is applied, and what became of its records."""

from dataclasses import dataclass

from worker.database import Connection
from worker.errors import Fatal
from worker.replay.selection import Decided
from worker.settings import Settings
from worker.sql import queries


@dataclass(frozen=True, slots=True)
class Lane:
    """How far a partition is applied."""

    lane: int
    partition: int
    cluster: str
    consumer_group: str
    next_to_apply: int
    latest_arrival: int


async def present_lanes(connection: Connection, settings: Settings, cluster: str) -> dict[int, Lane]:
    """By partition. Raises Fatal where the database applies the topic from elsewhere."""
    topic = settings.worker_updates_topic
    rows = await connection.fetch(queries("replay.sql")["present_lanes"], topic)
    lanes = {row["partition"]: Lane(**row) for row in rows}
    for lane in lanes.values():
        if (lane.cluster, lane.consumer_group) != (cluster, settings.worker_group):
            raise Fatal(
                f"this database applies {topic} from Kafka cluster {lane.cluster} in group {lane.consumer_group};"
                f" expected cluster {cluster} and group {settings.worker_group}: look at KAFKA_BOOTSTRAP_SERVERS,"
                " WORKER_GROUP and DATABASE_URL"
            )
    return lanes


async def arrival_before(connection: Connection, lane: Lane | None, offset: int) -> int:
    """Of the record before this one, as far as the database knows it; ms since 1970."""
    if lane is None:
        return 0
    found = await connection.fetchval(queries("replay.sql")["arrival_before"], lane.lane, offset)
    return int(found or 0)


async def decided_between(
    connection: Connection, lane: Lane | None, begin: int, end: int
) -> dict[int, Decided]:
    """By offset."""
    if lane is None:
        return {}
    rows = await connection.fetch(queries("replay.sql")["decided_between"], lane.lane, begin, end)
    return {row["log_offset"]: Decided(row["arrival"], row["state"]) for row in rows}
