"""Live, ready, and why not: judged from facts."""

import pytest

from worker.health import HUNG_SECONDS, LaneFacts, LaneState, Phase, WorkerFacts, judge

WORKING = WorkerFacts("working")


def lane(
    state: LaneState = "running",
    why: str = "",
    *,
    partition: int = 0,
    has_work: bool = False,
    without_sign: float = 0,
    unread: float = 0,
) -> LaneFacts:
    return LaneFacts("updates", partition, state, why, "", 1, has_work, without_sign, unread)


def test_all_lanes_running_is_live_and_ready() -> None:
    health = judge(WORKING, [lane(), lane(partition=1, has_work=True, without_sign=HUNG_SECONDS)])
    assert (health.live, health.ready) == (True, True)


@pytest.mark.parametrize(
    ("worker", "reason"),
    [
        (WorkerFacts("starting", "Kafka can't be reached"), "the worker starts: Kafka can't be reached"),
        (WorkerFacts("starting"), "the worker starts"),
        (WorkerFacts("joining"), "the consumer group hasn't assigned partitions yet"),
        (WorkerFacts("stopping"), "the worker stops: it finishes what is in flight"),
    ],
)
def test_until_partitions_are_assigned_and_once_it_stops_it_is_live_and_not_ready(
    worker: WorkerFacts, reason: str
) -> None:
    health = judge(worker, [])
    assert (health.live, health.ready) == (True, False)
    assert health.unready == (reason,)


@pytest.mark.parametrize(
    ("state", "words"),
    [("taking_over", "is being taken over"), ("waiting", "waits"), ("stopped", "has stopped")],
)
def test_one_lane_that_does_not_run_makes_it_unready_with_its_reason(state: LaneState, words: str) -> None:
    health = judge(WORKING, [lane(), lane(state, "Postgres is away", partition=1, has_work=True)])
    assert (health.live, health.ready) == (True, False)
    assert health.unready == (f"updates/1 {words}: Postgres is away",)


@pytest.mark.parametrize("state", ["taking_over", "running", "waiting"])
def test_a_lane_with_work_that_gives_no_sign_hangs(state: LaneState) -> None:
    health = judge(WORKING, [lane(state, has_work=True, without_sign=HUNG_SECONDS + 1)])
    assert (health.live, health.ready) == (False, False)
    assert "updates/0 has work and has given no sign for 301 s" in health.hung[0]
    assert "restart this worker" in health.hung[0]
    assert health.hung[0] in health.unready


def test_a_lane_without_work_may_be_silent_for_ever() -> None:
    assert judge(WORKING, [lane(without_sign=10 * HUNG_SECONDS)]).live


@pytest.mark.parametrize("state", ["waiting", "stopped"])
def test_who_waits_and_says_so_again_and_again_is_live_however_long_it_takes(state: LaneState) -> None:
    health = judge(
        WORKING, [lane(state, "Kafka is away", has_work=True, without_sign=5, unread=10 * HUNG_SECONDS)]
    )
    assert (health.live, health.ready) == (True, False)


def test_a_consumer_that_hands_nothing_over_though_kafka_has_more_hangs() -> None:
    assert not judge(WORKING, [lane(unread=HUNG_SECONDS + 1)]).live
    assert judge(WORKING, [lane(unread=HUNG_SECONDS - 1)]).live
    # it has enough to do: its own signs count
    assert judge(WORKING, [lane(has_work=True, unread=HUNG_SECONDS + 1)]).live


@pytest.mark.parametrize(
    ("worker", "unready"),
    [
        (WORKING, ()),
        (WorkerFacts("working", away="Postgres is away"), ("Postgres is away",)),
        (
            WorkerFacts("working", topic_is_there=False),
            ("no partition is assigned: the input topic is gone",),
        ),
    ],
)
def test_a_spare_worker_is_ready_while_it_could_take_a_partition_over(
    worker: WorkerFacts, unready: tuple[str, ...]
) -> None:
    health = judge(worker, [])
    assert health.live
    assert health.unready == unready


@pytest.mark.parametrize("phase", ["starting", "joining", "working", "stopping"])
def test_no_phase_alone_is_a_reason_to_restart(phase: Phase) -> None:
    assert judge(WorkerFacts(phase, "something is away", away="and this"), []).live
