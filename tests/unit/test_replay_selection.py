"""Which records a replay takes, where its range begins, and what they are when they are published again."""

from dataclasses import replace

import pytest

from tests.unit.test_plan import LogRecord
from worker.errors import SettingsError
from worker.record import CutBytes
from worker.replay.publishing import joined
from worker.replay.runs import Written
from worker.replay.selection import Decided, Point, Selection, Selector, read_point

NOW = 1_770_000_000_000
ALL = Selection("earliest")
BINARY = (
    ("ce_specversion", b"1.0"),
    ("ce_type", b"cell_measurement.update.v1"),
    ("ce_id", b"e-1"),
    ("ce_source", b"cycler"),
)


def record(
    offset: int = 0, timestamp: int = 100, headers: tuple[tuple[str, bytes | None], ...] = ()
) -> LogRecord:
    return LogRecord("updates", 3, offset, timestamp, 1, b"m-1", b'{"notes": "x"}', headers)


def selector(selection: Selection = ALL, reapply: str | None = None, latest_arrival: int = 0) -> Selector:
    return Selector(selection, reapply, 1024**2, latest_arrival)


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("earliest", Point("earliest")),
        ("now", Point("time", NOW)),
        ("0", Point("offset", 0)),
        ("4711", Point("offset", 4711)),
        ("90m", Point("time", NOW - 5_400_000)),
        ("3d", Point("time", NOW - 3 * 86_400_000)),
        ("2026-01-31T12:00Z", Point("time", 1_769_860_800_000)),
        ("2026-01-31T13:00:00.5+01:00", Point("time", 1_769_860_800_500)),
    ],
)
def test_a_time_or_an_offset(text: str, point: Point) -> None:
    assert read_point("--from", text, NOW) == point


@pytest.mark.parametrize(
    "text", ["", "yesterday", "-1", "2026-01-31T12:00", "2026-13-01T00:00Z", "99999999999d"]
)
def test_what_is_neither_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(SettingsError, match=r"--from: expected .*, found"):
        read_point("--from", text, NOW)


def test_a_record_keeps_everything_and_says_where_it_stood_first() -> None:
    [again] = selector().choose([record(7, 100, (("a", None), ("b\udcff", b"\xff"), ("a", b"2")))], {}, 8)
    assert (again.key, again.value) == (b"m-1", b'{"notes": "x"}')
    assert again.headers == [
        ("a", None),
        ("b\udcff", b"\xff"),
        ("a", b"2"),
        ("requeued-from", b"updates/3/7@100"),
    ]
    assert again.decided
    assert again.fault is None


def test_a_first_position_that_is_there_is_kept_unless_it_is_what_the_record_was_rejected_for() -> None:
    there = ("requeued-from", b"updates/1/2@3")
    malformed = ("requeued-from", b"another/1/2@3")
    kept, mended = selector().choose([record(0, 100, (there,)), record(1, 100, (malformed,))], {}, 0)
    assert kept.headers == [there]
    assert mended.headers == [("requeued-from", b"updates/3/1@100")]


def test_a_run_that_applies_again_replaces_an_earlier_one() -> None:
    [again] = selector(reapply="run-2").choose([record(0, 100, (("reapply", b"run-1"), ("x", b"y")))], {}, 0)
    assert again.headers == [("x", b"y"), ("requeued-from", b"updates/3/0@100"), ("reapply", b"run-2")]
    [again] = selector().choose([record(0, 100, (("reapply", b"run-1"),))], {}, 0)
    assert ("reapply", b"run-1") in again.headers


def test_arrivals_are_the_workers_whatever_the_brokers_clock_did() -> None:
    """A bare event's identity is made of its arrival."""
    records = [
        record(0, 100),
        record(1, 90),
        record(2, 95),
        replace(record(3, 900), timestamp_type=0),
        record(4, 120),
    ]
    chosen = selector(latest_arrival=98).choose(records, {2: Decided(110, None)}, 0)
    places = [dict(again.headers)["requeued-from"] for again in chosen]
    assert places == [b"updates/3/%d@%d" % at for at in ((0, 100), (1, 100), (2, 110), (3, 110), (4, 120))]


def test_only_rejections_that_are_still_open_are_taken() -> None:
    states = {1: None, 2: "open", 3: "requeued", 4: "resolved", 5: "discarded"}
    decided = {offset: Decided(100, state) for offset, state in states.items()}
    chosen = selector(replace(ALL, only="rejected")).choose([record(at) for at in range(7)], decided, 7)
    assert [again.offset for again in chosen] == [2, 3]


def test_filters_look_at_what_the_event_says_and_take_nothing_that_can_not_be_decoded() -> None:
    bare = record(0)
    binary = record(1, 100, (*BINARY, ("ce_organizationid", b"org-1")))
    by_subject = replace(record(2, 100, (*BINARY, ("ce_subject", b"m-2"))), key=None)
    structured = replace(
        record(3, 100, (("content-type", b"application/cloudevents+json"),)),
        value=b'{"specversion":"1.0","type":"cell_measurement.update.v1","id":"1","source":"s","data":{},'
        b'"organizationid":"org-2"}',
    )
    broken = [
        record(4, 100, (("ce_id", b"e-1"),)),
        replace(record(5), key=b"\xff"),
        replace(record(6), value=None),
        replace(structured, offset=7, value=b"[" * 100_000),
    ]
    records = [bare, binary, by_subject, structured, *broken]

    def offsets(**filters: str) -> list[int]:
        chosen = selector(replace(ALL, **filters)).choose(records, {}, 0)  # type: ignore[arg-type]  # the fields that are texts
        return [again.offset for again in chosen]

    assert offsets() == list(range(8))
    assert offsets(measurement="m-1") == [0, 1, 3]
    assert offsets(measurement="m-2") == [2]
    assert offsets(organization="org-1") == [1]
    assert offsets(organization="org-2") == [3]
    assert offsets(source="cycler") == [1, 2]
    assert offsets(source="kafka:updates") == [0]
    assert offsets(source="s", measurement="m-2") == []


def test_what_can_not_be_published_byte_for_byte_is_said() -> None:
    cut = replace(record(), value=CutBytes.of(b"x", 10**9, "00"))
    too_many = record(1, 100, (("", b""),) * 65_537)
    large = replace(record(2), value=b"x" * 1024**2)
    fits = replace(record(3), value=b"x" * (1024**2 - 500))
    faults = [again.fault for again in selector().choose([cut, too_many, large, fits], {}, 0)]
    assert [fault is None for fault in faults] == [False, False, False, True]
    assert "max.message.bytes" in (faults[2] or "")


def test_batches_that_follow_on_are_one_piece() -> None:
    pieces = [Written(1, 5, 8), Written(0, 0, 3), Written(1, 8, 9), Written(1, 10, 11), Written(0, 3, 4)]
    assert joined(pieces) == [Written(0, 0, 4), Written(1, 5, 9), Written(1, 10, 11)]
