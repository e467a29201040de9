"""By what time retention counts: the slowest lane's, but nobody waits for a partition to which nothing is written."""

from worker.retention import horizon_of

HOUR = 3_600_000
KEPT = 90 * 24 * HOUR
NOW = 2_000 * 24 * HOUR


def lane(partition: int, next_to_apply: int, latest_arrival: int, *, is_ours: bool = True) -> dict[str, int]:
    return {
        "partition": partition,
        "next_to_apply": next_to_apply,
        "latest_arrival": latest_arrival,
        "is_ours": is_ours,
    }


def test_a_lane_that_lags_holds_back_what_it_may_still_meet() -> None:
    lanes = [lane(0, 10, NOW), lane(1, 3, NOW - 5 * HOUR)]
    assert horizon_of(lanes, {0: 10, 1: 4}, KEPT) == NOW - 5 * HOUR - KEPT


def test_a_lane_that_has_read_its_log_to_the_end_holds_nothing_back_but_what_a_transaction_may_hide() -> None:
    lanes = [lane(0, 10, NOW), lane(1, 0, 0), lane(2, 7, NOW - 400 * 24 * HOUR)]
    assert horizon_of(lanes, {0: 10, 1: 0, 2: 7}, KEPT) == NOW - HOUR - KEPT
    assert horizon_of(lanes, {0: 11, 1: 0, 2: 7}, KEPT) == NOW - HOUR - KEPT
    assert horizon_of(lanes, {0: 10, 1: 1, 2: 7}, KEPT) == -KEPT


def test_where_the_log_is_not_known_each_lane_counts_as_it_stands() -> None:
    lanes = [lane(0, 10, NOW), lane(1, 3, NOW - 5 * HOUR)]
    assert horizon_of(lanes, {}, KEPT) == NOW - 5 * HOUR - KEPT


def test_another_topics_lane_counts_as_it_stands() -> None:
    lanes = [lane(0, 10, NOW), lane(0, 3, NOW - 5 * HOUR, is_ours=False)]
    assert horizon_of(lanes, {0: 10}, KEPT) == NOW - 5 * HOUR - KEPT


def test_nothing_is_past_its_time_while_a_partition_with_records_has_no_lane_or_there_is_none() -> None:
    assert horizon_of([], {0: 0}, KEPT) is None
    assert horizon_of([lane(0, 10, NOW)], {0: 10, 1: 1}, KEPT) is None
    assert horizon_of([lane(0, 10, NOW)], {0: 10, 1: 0}, KEPT) == NOW - KEPT
