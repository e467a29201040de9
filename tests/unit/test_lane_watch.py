"""What is known of a lane: whether it hangs, how far it is, how old its oldest record is."""

from dataclasses import dataclass, field

import asyncpg
import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError

from tests.unit.test_plan import LogRecord
from worker.answer import PlainAnswer
from worker.consumer import Fetched
from worker.errors import DependencyAway
from worker.health import HUNG_SECONDS, WorkerFacts, judge
from worker.lane_watch import LaneWatch
from worker.metrics import LaneGauges, Metrics
from worker.pipeline import Decided

TP = TopicPartition("updates", 0)
T0 = 1_700_000_000_000


@dataclass
class Watched:
    """A watch with a clock of its own."""

    now: float = 0.0
    metrics: Metrics = field(default_factory=Metrics)
    watch: LaneWatch = field(init=False)

    def __post_init__(self) -> None:
        self.watch = LaneWatch(TP, self.metrics, clock=lambda: self.now)

    def fetch(self, position: int, *stamps: int) -> None:
        records = [
            LogRecord("updates", 0, position + at, stamp, 1, b"k", b"v", ())
            for at, stamp in enumerate(stamps)
        ]
        self.watch.fetched(Fetched("updates", 0, position, position + len(stamps), records))

    def decide(self, next_offset: int, arrival: int) -> None:
        self.watch.decided(Decided([], next_offset, 1, 0, []), arrival)

    def emit(self, next_offset: int, arrival: int) -> None:
        with self.watch.emitting(
            [PlainAnswer(next_offset - 1, "t", None, None, arrival, None, [])], next_offset
        ):
            pass

    def hangs(self) -> bool:
        return not judge(WorkerFacts("working"), [self.watch.facts()]).live

    def gauges(self, log_end: int | None = None) -> LaneGauges:
        return self.watch.gauges(log_end, T0 / 1000 + 100)

    def counted(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"measurement_updates_{name}", labels)


@pytest.fixture
def one() -> Watched:
    return Watched()


def test_a_take_over_that_gives_no_sign_hangs_and_one_that_is_tried_again_does_not(one: Watched) -> None:
    one.now = HUNG_SECONDS + 1
    assert one.hangs()
    one.watch.retried(KafkaConnectionError())
    one.watch.said("waiting", "Kafka is away")
    assert not one.hangs()
    one.now += HUNG_SECONDS + 1
    assert one.hangs()


def test_after_trouble_taking_over_anew_is_work_even_where_nothing_was_left_to_do(one: Watched) -> None:
    one.watch.taken_over(5, 5)
    one.watch.retried(DependencyAway("Postgres is away"))
    one.watch.said("waiting", "Postgres is away")
    one.now = HUNG_SECONDS + 1
    assert one.hangs()


def test_what_is_fetched_and_not_answered_is_work(one: Watched) -> None:
    one.watch.taken_over(5, 5)
    one.watch.said("running")
    one.now = HUNG_SECONDS + 1
    assert not one.hangs()
    one.fetch(5, T0, T0)
    assert one.hangs()
    one.decide(7, T0)
    one.emit(7, T0)
    assert not one.hangs()
    one.now *= 3
    assert not one.hangs()


def test_a_wait_for_another_partition_is_no_hang_while_it_is_asked_about(one: Watched) -> None:
    one.watch.taken_over(0, 0)
    one.fetch(0, T0)
    one.watch.said("waiting", "the answer before it")
    for _ in range(10):
        one.now += HUNG_SECONDS - 1
        one.watch.alive()
        assert not one.hangs()
    assert one.watch.facts().seconds_in_state == 10 * (HUNG_SECONDS - 1)


def test_a_log_that_has_more_while_nothing_is_fetched_hangs_unless_it_moves_or_is_being_read(
    one: Watched,
) -> None:
    one.watch.taken_over(5, 5)
    one.watch.said("running")
    one.watch.log_ends_at(6, reading=False)
    one.now = HUNG_SECONDS + 1
    assert one.hangs()
    one.watch.log_ends_at(6, reading=True)
    assert not one.hangs()
    one.watch.log_ends_at(6, reading=False)
    one.now += HUNG_SECONDS - 1
    one.watch.log_ends_at(6, reading=False)
    assert not one.hangs()
    one.fetch(5, T0)
    one.decide(6, T0)
    one.emit(6, T0)
    one.watch.log_ends_at(8, reading=False)
    one.now += HUNG_SECONDS - 1
    assert not one.hangs()
    one.watch.log_ends_at(None, reading=False)
    one.now += 2
    assert not one.hangs()


def test_ages_are_of_the_oldest_record_that_is_not_decided_and_not_answered(one: Watched) -> None:
    one.watch.taken_over(0, 0)
    assert (one.gauges().undecided_age, one.gauges().unanswered_age) == (0, 0)
    one.fetch(0, T0, T0 + 10_000)
    one.fetch(2, T0 + 50_000)
    assert (one.gauges().undecided_age, one.gauges().unanswered_age) == (100, 100)
    one.decide(2, T0 + 10_000)
    assert (one.gauges().undecided_age, one.gauges().unanswered_age) == (90, 100)
    one.emit(2, T0 + 10_000)
    assert (one.gauges().undecided_age, one.gauges().unanswered_age) == (90, 90)
    one.decide(3, T0 + 50_000)
    assert (one.gauges().undecided_age, one.gauges().unanswered_age) == (0, 90)
    one.emit(3, T0 + 50_000)
    assert (one.gauges().undecided_age, one.gauges().unanswered_age) == (0, 0)


def test_trouble_does_not_make_records_younger(one: Watched) -> None:
    one.watch.taken_over(0, 0)
    one.fetch(0, T0)
    one.watch.retried(DependencyAway("Postgres is away"))
    assert (one.gauges().undecided_age, one.gauges().unanswered_age) == (100, 100)
    assert one.watch.facts().has_work


def test_lag_is_up_to_the_latest_end_that_is_known(one: Watched) -> None:
    assert one.gauges(5).lag is None
    one.watch.taken_over(3, 3)
    assert one.gauges().lag is None
    assert one.gauges(5).lag == 2
    one.watch.log_ends_at(9, reading=False)
    assert one.gauges(5).lag == 6
    one.fetch(3, *[T0] * 7)
    one.decide(10, T0)
    one.emit(10, T0)
    assert one.gauges(9).lag == 0
    assert (one.gauges().applied, one.gauges().answered) == (10, 10)


def test_a_stage_that_fails_is_counted_and_what_the_transaction_tries_again_by_its_sqlstate(
    one: Watched,
) -> None:
    for error in (asyncpg.LockNotAvailableError("locked"), asyncpg.DeadlockDetectedError("deadlock")):
        with pytest.raises(asyncpg.PostgresError), one.watch.stage("apply"):
            raise error
    with pytest.raises(asyncpg.PostgresError), one.watch.stage("apply"):
        raise asyncpg.AdminShutdownError("gone")  # counted as the lane's own retry
    one.watch.retried(ExceptionGroup("", [asyncpg.AdminShutdownError("gone")]))
    assert one.counted("stage_failures_total", stage="apply") == 3
    assert one.counted("stage_seconds_count", stage="apply") == 3
    assert one.counted("retries_total", cause="postgres 55") == 1
    assert one.counted("retries_total", cause="postgres 40") == 1
    assert one.counted("retries_total", cause="postgres 57") == 1
