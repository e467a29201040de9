"""decode against the naive decoder: 100,000 hostile records, the same verdict on each."""

import json
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from contracts.events import MAX_DETAIL_BYTES, rejection_detail
from tests import naive_decode
from tests.fuzz import Fuzzer, Record
from tests.model import canonical
from tests.naive_decode import RawRecord
from tests.unit.test_decode import Received
from worker.decode import decode
from worker.record import DecodeLimits, Rejection, Update

SEED = "hostile bytes, 1"
RECORDS = 100_000
LIMITS = DecodeLimits(max_event_bytes=4_096)
TOPIC = "measurement-updates"
ARRIVAL = 1_760_000_000_000


def both(record: Record) -> tuple[Update | Rejection, naive_decode.Verdict]:
    """What the worker makes of it, and what the contract says."""
    key, value, headers = record
    named = tuple((name.decode("utf-8", "surrogateescape"), content) for name, content in headers)
    ours = decode(Received(value, key, named, TOPIC, 3, 42, ARRIVAL), ARRIVAL, LIMITS)
    raw = RawRecord(TOPIC, 3, 42, ARRIVAL, key, value, headers)
    return ours, naive_decode.decode(raw, LIMITS.max_event_bytes)


def difference(ours: Update | Rejection, theirs: naive_decode.Verdict) -> str:
    """Empty where the two agree."""
    if isinstance(ours, Rejection):
        if not isinstance(theirs, frozenset) or ours.code not in theirs:
            return f"worker: {ours.code}, {ours.message}\nnaive: {theirs}"
        detail = rejection_detail(ours.message, ours.violations, ours.total)
        if len(detail) > MAX_DETAIL_BYTES or json.loads(detail)["total"] != ours.total or not ours.violations:
            return f"detail: {detail!r}"
        return ""
    if isinstance(theirs, frozenset):
        return f"worker: {ours}\nnaive: {theirs}"
    first = tuple(int.from_bytes(ours.position[at : at + 8], "big") for at in (0, 8, 16))
    found = (
        *(ours.measurement_id, ours.source, ours.id, first),
        *(ours.expected_revision, ours.organization_id, ours.traceparent, canonical(ours.patch)),
    )
    wanted = (
        *(theirs.measurement_id, theirs.source, theirs.id, theirs.first),
        *(theirs.expected_revision, theirs.organization_id, theirs.traceparent, canonical(theirs.patch)),
    )
    return "" if found == wanted else f"worker: {found}\nnaive: {wanted}"


def wrong(record: Record) -> str:
    """What is, where something is."""
    try:
        return difference(*both(record))
    except Exception as error:
        return f"raised {error!r}"


def test_a_hundred_thousand_hostile_records_are_judged_as_the_contract_says() -> None:
    fuzzer = Fuzzer(SEED, TOPIC)
    seen: Counter[str] = Counter()
    contents: dict[bytes, str] = {}
    identities: dict[bytes, tuple[str | None, ...]] = {}
    for number in range(RECORDS):
        record = fuzzer.record()
        try:
            ours, theirs = both(record)
            found = difference(ours, theirs)
        except Exception as error:
            found = f"raised {error!r}"
        if found:
            small = minimised(record, wrong)
            raise AssertionError(f"seed {SEED!r}, record {number}: {shown(small)}\n{wrong(small)}")
        if isinstance(ours, Rejection) or isinstance(theirs, frozenset):
            assert isinstance(ours, Rejection)
            seen[ours.code] += 1
            continue
        seen["accepted"] += 1
        content = canonical([theirs.patch, theirs.expected_revision])
        identity = (theirs.measurement_id, theirs.source, theirs.id, theirs.reapply)
        assert contents.setdefault(ours.content, content) == content, shown(record)
        assert identities.setdefault(ours.identity, identity) == identity, shown(record)
    # and the other way round: one digest for equal contents, however they are written
    assert len(contents) == len(set(contents.values()))
    assert len(identities) == len(set(identities.values()))
    assert len(contents) < seen["accepted"] / 2, "few came up twice: equal contents weren't tested"

    for code, share in {
        "accepted": 0.2,
        "empty_event": 0.02,
        "too_large": 0.05,
        "invalid_event": 0.2,
        "invalid_json": 0.2,
        "invalid_patch": 0.1,
    }.items():
        assert seen[code] > share * RECORDS, f"{code} comes up too seldom to say much: {seen}"


@pytest.mark.parametrize(
    "record",
    [
        Record(b"m-1", b"{}", [(b"requeued-from", b"measurement-updates/" + b"0" * 50 + b"/3@9")]),
        Record(
            b"m-1",
            b'{"specversion":"1.0","type":"cell_measurement.update.v1","id":"e","source":"s","data":{},"traceparent":""}',
            [(b"content-type", b"application/cloudevents+json")],
        ),
    ],
    ids=["leading zeros of a position", "an empty traceparent"],
)
def test_what_the_two_once_saw_differently(record: Record) -> None:
    ours, theirs = both(record)
    assert isinstance(ours, Update)
    assert difference(ours, theirs) == ""


def minimised(record: Record, is_wrong: Callable[[Record], object]) -> Record:
    """Smaller, and still wrong."""
    smaller = next((candidate for candidate in _smaller(record) if is_wrong(candidate)), None)
    while smaller is not None:
        record = smaller
        smaller = next((candidate for candidate in _smaller(record) if is_wrong(candidate)), None)
    return record


def _smaller(record: Record) -> Iterator[Record]:
    headers, value = list(record.headers), record.value or b""
    for at in range(len(headers)):
        yield record._replace(headers=headers[:at] + headers[at + 1 :])
    size = len(value) // 2
    while size:
        for at in range(0, len(value), size):
            yield record._replace(value=value[:at] + value[at + size :])
        size //= 2


def shown(record: Record) -> str:
    return f"key {record.key!r:.300} value {record.value!r:.2000} headers {record.headers!r:.2000}"


def test_a_difference_is_shown_small() -> None:
    big = Record(
        b"k", b'{"notes": "' + b"x" * 3_000 + b'NaN"}', [(b"a", b"1"), (b"ce_id", b"2"), (b"c", b"3")]
    )
    small = minimised(
        big, lambda record: b"N" in (record.value or b"") and (b"ce_id", b"2") in record.headers
    )
    assert small == (b"k", b"N", [(b"ce_id", b"2")])
