"""Which records a restarted lane may just be judging again, while `verify` reads."""

import pytest
from aiokafka import TopicPartition

from worker.verification.input_log import InputLog
from worker.verification.snapshot import Lane
from worker.verification.topics import Topic

TP = TopicPartition("updates", 0)


def lane(number: int, next_to_apply: int, *, retired: bool) -> Lane:
    last = next_to_apply - 1, 1_000
    return Lane(number, "updates", 0, "c", "g", next_to_apply, next_to_apply, *last, 1_000, retired)


def log(*lanes: Lane, end: int = 10) -> InputLog:
    known = InputLog(Topic("updates", [TP], first={TP: 0}), {TP: end}, lanes, {TP: None})
    known.ended({TP: end})
    return known


@pytest.mark.parametrize(
    ("lanes", "again"),
    [
        ([lane(1, 10, retired=False)], []),
        ([lane(1, 7, retired=True)], range(7)),  # restarted, and taken over by nobody yet
        ([lane(1, 7, retired=True), lane(2, 4, retired=False)], range(4, 7)),
        ([lane(1, 7, retired=True), lane(2, 9, retired=False)], []),
    ],
)
def test_it_is_what_the_lane_before_has_decided_and_the_present_one_has_not(
    lanes: list[Lane], again: list[int]
) -> None:
    assert [offset for offset in range(10) if log(*lanes).is_judged_again(0, offset)] == list(again)
    assert not log(*lanes).is_judged_again(1, 0)


def test_a_log_about_which_an_operator_has_yet_to_decide_is_judged_by_nobody() -> None:
    known = log(lane(1, 7, retired=True), lane(2, 12, retired=False))
    assert known.partitions[0].another_log
    assert not any(known.is_judged_again(0, offset) for offset in range(10))
