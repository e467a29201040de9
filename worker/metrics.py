"""What Prometheus is told. Every name is a literal here, with its unit and meaning; labels take bounded values only
(partition, code, state, stage, cause, table), never an id.

Counters and histograms are moved once a batch. What a lane is and how far it lags isn't kept here: it is looked at when
Prometheus asks, so that a partition that has gone to another worker is gone from here, too.
"""

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from worker.health import LANE_STATES, LaneState
from worker.stages import Stage

_PREFIX = "measurement_updates_"
_STAGE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_RECORDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
_BYTES = tuple(1024 * 4**power for power in range(10))


@dataclass(frozen=True, slots=True)
class LaneGauges:
    """One assigned partition when Prometheus asks. Times are in seconds; None is not known, and not told."""

    partition: int
    state: LaneState
    seconds_in_state: float
    applied: int | None
    answered: int | None
    lag: int | None
    undecided_age: float | None
    unanswered_age: float | None


@dataclass(frozen=True, slots=True)
class Gauges:
    """Everything that is looked at when Prometheus asks."""

    live: bool
    ready: bool
    lanes: Sequence[LaneGauges] = ()
    open_rejections: Mapping[str, int] | None = None
    """By code; None where the database wasn't asked, or hasn't answered."""
    replays: Mapping[str, Mapping[str, int]] | None = field(default=None)
    """Of the replay runs that haven't ended: state → what is counted → how many."""


class Metrics:
    """One a process, built by the composition root."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(_PREFIX + name, meaning, labels, registry=registry)

        def histogram(name: str, meaning: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(_PREFIX + name, meaning, labels, buckets=buckets, registry=registry)

        self.events = counter(
            "events",
            "Records decided, by outcome (applied, duplicate, rejected) and, where rejected, code",
            "outcome",
            "code",
        )
        self.answers = counter("answers", "Records sent to the two answer topics, those sent again included")
        self.batch_records = histogram("batch_records", "Records taken for a batch", _RECORDS)
        self.batch_bytes = histogram(
            "batch_bytes", "Bytes of a batch, as WORKER_BATCH_BYTES counts them", _BYTES
        )
        self.stage_seconds = histogram(
            "stage_seconds",
            "Time of a stage of a batch: decode, plan, apply (one Postgres transaction, plan included), emit (one Kafka"
            " transaction)",
            _STAGE_SECONDS,
            "stage",
        )
        self.stage_failures = counter("stage_failures", "Stages that ended in an error", "stage")
        self.retries = counter(
            "retries",
            "What was tried again, by what it failed of: a SQLSTATE class, a Kafka error's class",
            "cause",
        )
        self.take_overs = counter("take_overs", "Partitions taken over, anew after trouble included")
        for stage in get_args(Stage):  # so that they are there before the first batch
            self.stage_seconds.labels(stage)
        self.removed = counter("retention_removed_rows", "Rows past their time that were removed", "table")

    def decided(self, applied: int, duplicates: int, rejected: Iterable[str]) -> None:
        """Of one Postgres transaction; `rejected`: the codes."""
        if applied:
            self.events.labels("applied", "").inc(applied)
        if duplicates:
            self.events.labels("duplicate", "").inc(duplicates)
        for code, count in Tally(rejected).items():
            self.events.labels("rejected", code).inc(count)

    def look_at(self, look: Callable[[], Gauges]) -> None:
        """What `look` finds is told with the rest from now on."""
        self.registry.register(_Looking(look))

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)


class _Looking(Collector):
    """Gauges that are looked at, not kept."""

    def __init__(self, look: Callable[[], Gauges]) -> None:
        self._look = look

    def collect(self) -> Iterable[GaugeMetricFamily | InfoMetricFamily]:
        gauges = self._look()
        yield InfoMetricFamily(_PREFIX + "worker", "This worker", {"version": version("measurement-updates")})
        yield GaugeMetricFamily(_PREFIX + "live", "1 unless a restart would help", float(gauges.live))
        yield GaugeMetricFamily(
            _PREFIX + "ready", "1 while all that is assigned is taken over and goes on", float(gauges.ready)
        )
        yield from _lane_families(gauges.lanes)
        yield from _database_families(gauges)


def _lane_families(lanes: Sequence[LaneGauges]) -> Iterable[GaugeMetricFamily]:
    def family(name: str, meaning: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(_PREFIX + name, meaning, labels=("partition", *labels))

    state = family("lane_state", "1 for the state that a partition's lane is in", "state")
    in_state = family("lane_state_seconds", "How long a partition's lane is in its state")
    offset = family(
        "next_offset",
        "Every record of the partition below is applied (decided in Postgres), or answered (in Kafka)",
        "point",
    )
    lag = family("lag_records", "Offsets between the end of the partition's log and what is answered")
    undecided = family(
        "lag_seconds", "Age of the partition's oldest record that isn't decided yet, as far as it is read"
    )
    unanswered = family(
        "unanswered_seconds",
        "Age of the partition's oldest record that isn't answered yet, as far as it is read",
    )
    for lane in lanes:
        partition = str(lane.partition)
        for one in LANE_STATES:
            state.add_metric((partition, one), float(one == lane.state))
        in_state.add_metric((partition,), lane.seconds_in_state)
        for at, point in ((lane.applied, "applied"), (lane.answered, "answered")):
            if at is not None:
                offset.add_metric((partition, point), at)
        for told, value in (
            (lag, lane.lag),
            (undecided, lane.undecided_age),
            (unanswered, lane.unanswered_age),
        ):
            if value is not None:
                told.add_metric((partition,), value)
    return state, in_state, offset, lag, undecided, unanswered


def _database_families(gauges: Gauges) -> Iterable[GaugeMetricFamily]:
    """The same from every worker of a database: take one of them, not their sum."""
    rejections = GaugeMetricFamily(
        _PREFIX + "open_rejections", "Rejected records that nobody has closed, by code", labels=("code",)
    )
    for code, count in (gauges.open_rejections or {}).items():
        rejections.add_metric((code,), count)
    replays = GaugeMetricFamily(
        _PREFIX + "replay_records",
        "Of the replay runs that haven't ended: how many records, by the runs' state and what is counted",
        labels=("state", "counted"),
    )
    for state, counts in (gauges.replays or {}).items():
        for counted, count in counts.items():
            replays.add_metric((state, counted), count)
    known = GaugeMetricFamily(
        _PREFIX + "database_known", "1 where the database has answered when it was last asked for these"
    )
    known.add_metric((), float(gauges.open_rejections is not None))
    return rejections, replays, known
