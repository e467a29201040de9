"""What every partition does, and whether something needs attention, judged from what database and Kafka say. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from worker.kafka_state import KafkaState, LogState
from worker.settings import Settings

PartitionState = Literal["running", "waiting", "stopped", "taking_over", "unowned", "unknown"]

_LONG_SECONDS = 60.0
"""Who waits longer than this needs attention."""


@dataclass(frozen=True, slots=True)
class LaneRow:
    """A row of `lanes_now`."""

    partition: int
    lane: int
    cluster: str
    consumer_group: str
    next_to_apply: int
    next_to_answer: int
    epoch: int
    owner: str | None
    state: str | None
    """As its worker said it last; None: by a worker of an older version, or not yet."""
    state_since: datetime | None
    waits_for: str | None
    last_error: str | None
    last_error_at: datetime | None
    session: Literal["alive", "gone", "hidden"]
    """Its owner's in the database; hidden: this role may not see that of another."""


@dataclass(frozen=True, slots=True)
class DatabaseState:
    """At one moment."""

    now: datetime
    version: str
    latency_ms: float
    current: bool
    """Whether the schema is what this version needs; the rest is empty where it isn't."""
    lanes: Mapping[int, LaneRow]
    """By partition of the input."""
    open_rejections: int
    """Counted up to 10,001."""
    replays: Sequence[Mapping[str, Any]]
    """Those that run."""


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """One partition of the input. Offsets are None where the server that knows them is away."""

    partition: int
    state: PartitionState
    owner: str | None
    """Host and process of its worker, or host alone."""
    lag: int | None
    """Records (and transaction markers) that aren't decided."""
    lag_seconds: float | None
    """How long the first of them has been there; 0 without any."""
    applied: int | None
    answered: int | None
    rate: float | None
    """Records decided in a second, since the sample before."""
    since: datetime | None
    waits_for: str | None
    last_error: str | None
    last_error_at: datetime | None
    log_first: int | None
    log_end: int | None


@dataclass(frozen=True, slots=True)
class Status:
    """At one moment; `attention` says what somebody has to do, in words."""

    now: datetime
    topic: str
    group: str
    partitions: Sequence[PartitionStatus]
    database: DatabaseState | str
    """Why there is none, where it is away."""
    kafka: KafkaState | str
    attention: Sequence[str] = field(default=())


def undecided_from(lane: LaneRow | None, log: LogState) -> int:
    """The offset from which on nothing is decided, as far as is known."""
    if lane is not None:
        return lane.next_to_apply
    return log.first if log.committed is None else log.committed


def judge(
    partition: int,
    lane: LaneRow | None,
    log: LogState | None,
    *,
    database: DatabaseState | str,
    kafka: KafkaState | str,
    rate: float | None,
    stamp: int | None,
    now: datetime,
) -> PartitionStatus:
    """Pure. `stamp`: of its first undecided record, in ms."""
    state = _state(lane, log, database, kafka)
    has_worker = state in ("running", "waiting", "stopped", "taking_over")
    owner = lane.owner if lane is not None and state in ("running", "waiting", "stopped") else None
    if owner is None and has_worker and log is not None:
        owner = log.member
    lag = None if log is None else max(0, log.end - undecided_from(lane, log))
    behind = None
    if lag == 0:
        behind = 0.0
    elif stamp is not None:
        behind = max(0.0, now.timestamp() - stamp / 1000)
    says = lane if lane is not None and state in ("running", "waiting", "stopped") else None
    return PartitionStatus(
        partition,
        state,
        owner,
        lag,
        behind,
        None if lane is None else lane.next_to_apply,
        None if lane is None else lane.next_to_answer,
        rate,
        None if says is None else says.state_since,
        None if says is None else says.waits_for,
        None if lane is None else lane.last_error,
        None if lane is None else lane.last_error_at,
        None if log is None else log.first,
        None if log is None else log.end,
    )


def _state(
    lane: LaneRow | None,
    log: LogState | None,
    database: DatabaseState | str,
    kafka: KafkaState | str,
) -> PartitionState:
    """A worker that was killed leaves `running` behind: its session and its place in the group say more.

    A lane that waits or has stopped has no session meanwhile; a session may outlive its process where a host has gone.
    """
    said = lane.state if lane is not None else None
    session = lane.session if lane is not None else "gone"
    if isinstance(kafka, str):
        return _said(said) if session == "alive" else "unknown"
    if log is None:
        return "unknown"  # a lane of a topic or partition that Kafka doesn't know
    if log.member is None:
        return "taking_over" if kafka.rebalancing else "unowned"
    if isinstance(database, str) or not database.current:
        return "unknown"
    if session == "gone" and said not in ("waiting", "stopped"):
        return "taking_over"
    return _said(said)


def _said(state: str | None) -> PartitionState:
    """None: a worker of an older version, which doesn't say."""
    return "waiting" if state == "waiting" else "stopped" if state == "stopped" else "running"


def needs_attention(status: Status, settings: Settings) -> Iterator[str]:
    """What somebody has to look at, in words. Pure."""
    kafka, database = status.kafka, status.database
    if isinstance(database, str):
        yield database
    elif not database.current:
        yield "the database's schema isn't this version's: run `measurement-updates migrate`"
    if isinstance(kafka, str):
        yield kafka
    else:
        for topic in (status.topic, settings.worker_updated_topic, settings.worker_rejected_topic):
            if topic not in kafka.topics:
                yield f"topic {topic} doesn't exist: create it with `measurement-updates topics`"
    if isinstance(database, DatabaseState) and isinstance(kafka, KafkaState):
        yield from _foreign(database, kafka, status.group)
    for partition in status.partitions:
        if words := _attention(partition, status.now):
            yield f"partition {partition.partition} {words}"


def _foreign(database: DatabaseState, kafka: KafkaState, group: str) -> Iterator[str]:
    for lane in database.lanes.values():
        if (lane.cluster, lane.consumer_group) != (kafka.cluster, group):
            yield (
                f"partition {lane.partition} is applied from Kafka cluster {lane.cluster} in group {lane.consumer_group}:"
                f" expected {kafka.cluster} and {group} (KAFKA_BOOTSTRAP_SERVERS, WORKER_GROUP, DATABASE_URL)"
            )


def _attention(partition: PartitionStatus, now: datetime) -> str | None:
    waits = (now - partition.since).total_seconds() if partition.since else 0.0
    behind = partition.lag_seconds or 0.0
    match partition.state:
        case "stopped":
            return f"has stopped: {partition.waits_for}"
        case "unowned" if partition.lag:
            return f"has no worker, and {partition.lag:,} records wait: start one (measurement-updates run)"
        case "waiting" if waits > _LONG_SECONDS:
            return f"has waited for {waits:.0f} s: {partition.waits_for}"
        case "taking_over" if behind > _LONG_SECONDS:
            return "is being taken over, and its records wait: see the worker's log for what it waits for"
    return None
