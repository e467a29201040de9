"""Times and offsets → a range of offsets in each partition, fixed before anything is published."""

from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import TopicPartition

from worker.errors import Fatal, SettingsError
from worker.replay.lanes import Lane
from worker.replay.selection import Point, time_text
from worker.verification.topics import Broker, Topic

Range = tuple[int, int]
"""From this offset to before that one."""


def chosen_partitions(topic: Topic, partition: int | None, points: Sequence[Point]) -> list[TopicPartition]:
    """All of them, or one. Raises SettingsError."""
    numbers = [tp.partition for tp in topic.partitions]
    if partition is not None and partition not in numbers:
        raise SettingsError(
            f"--partition: expected one of {topic.name}'s, {min(numbers)} to {max(numbers)}, found {partition}"
        )
    chosen = [tp for tp in topic.partitions if partition in (None, tp.partition)]
    if len(chosen) > 1 and any(point.kind == "offset" for point in points):
        raise SettingsError(
            f"an offset is one partition's: expected --partition (0 to {max(numbers)}) beside it, or a time"
        )
    return chosen


async def fixed_ranges(
    kafka: Broker,
    topic: Topic,
    partition: int | None,
    begin: Point,
    until: Point | None,
    lanes: Mapping[int, Lane],
) -> dict[int, Range]:
    """By partition; no further than the log reaches now, so that a replay never reads what it has published itself.

    Raises Fatal where retention has taken records of the range, SettingsError where the range can't be.
    """
    partitions = chosen_partitions(topic, partition, [begin, *([until] if until else [])])
    if until is not None and (
        until.kind == "earliest" or (until.kind == begin.kind and until.value < begin.value)
    ):
        raise SettingsError("--until: expected an end that isn't before --from")
    ends = await kafka.stable_ends(topic)
    begins = await _offsets(kafka, partitions, begin)
    untils = await _offsets(kafka, partitions, until)
    left = await kafka.found_at(partitions, 0)  # the first record that is still there
    ranges: dict[int, Range] = {}
    gone = []
    for tp in partitions:
        first, end = topic.first[tp], ends[tp]
        at = begins.get(tp, first if begin.kind == "earliest" else end)
        for option, point, offset in (("--from", begin, at), ("--until", until, untils.get(tp, end))):
            if point is not None and point.kind == "offset" and offset > end:
                raise SettingsError(
                    f"{option}: expected an offset up to {end}, where {tp.topic}/{tp.partition} ends"
                )
        if _is_gone(begin, at, first, left[tp], lanes.get(tp.partition)):
            gone.append((tp, first, left[tp]))
        at = min(max(at, first), end)
        ranges[tp.partition] = (at, max(at, min(untils.get(tp, end), end)))
    if gone:
        raise Fatal(_what_is_left(gone))
    return ranges


async def _offsets(
    kafka: Broker, partitions: Sequence[TopicPartition], point: Point | None
) -> dict[TopicPartition, int]:
    """Of a point in each partition; where it is beyond the end, or the beginning, none."""
    if point is None or point.kind == "earliest":
        return {}
    if point.kind == "offset":
        return dict.fromkeys(partitions, point.value)
    found = await kafka.found_at(partitions, point.value)
    return {tp: at[0] for tp, at in found.items() if at is not None}


def _is_gone(begin: Point, at: int, first: int, left: tuple[int, int] | None, lane: Lane | None) -> bool:
    """May retention have taken records of the range?"""
    if first == 0 or begin.kind == "earliest":
        return False
    if begin.kind == "offset":
        return at < first
    if left is not None:
        return left[1] > begin.value
    return lane is not None and lane.latest_arrival >= begin.value


def _what_is_left(gone: Sequence[tuple[TopicPartition, int, Any]]) -> str:
    listed = "\n".join(
        f"  {tp.topic}/{tp.partition} begins at {first}"
        + (f", {time_text(left[1])}" if left else ": it has no record any more")
        for tp, first, left in gone
    )
    all_there = [left[1] for _, _, left in gone if left]
    from_there = f"--from {time_text(max(all_there))} for what all of these have, " if all_there else ""
    return (
        f"retention has taken records of that range, or may have:\n{listed}\n"
        f"Choose what is left: {from_there}--from earliest for all that there is"
    )
