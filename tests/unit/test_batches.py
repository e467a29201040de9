"""Batches are read whole or as a stream: the same records, and no more memory than is kept of them."""

import hashlib
import threading
import tracemalloc
from functools import partial
from typing import Any

import pytest
from aiokafka.errors import CorruptRecordException

from tests.batches import CODECS, GZIP, LZ4, NONE, SNAPPY, ZSTD, EmptyHeaders, RecordParts, Repeated, batch
from worker.batches import WHOLE_BYTES, LogRecords
from worker.record import CutBytes, whole_length, whole_sha256

KIB_64 = 64 * 1024
RECORDS: list[RecordParts] = [
    (b"m-1", b'{"notes":"first"}', [(b"ce_id", b"1"), (b"empty", b""), (b"null", None)]),
    (None, None, []),
    (b"", b"", [(b"", b"")]),
    (b"\xff", bytes(range(256)) * 40, [("µ".encode(), b"\xff")]),
    *((b"m-%d" % number, b'{"notes":"%d"}' % number, []) for number in range(300)),
]
ODD: RecordParts = (b"m-2", b"{}", [(b"caf\xe9", b"1")])


def read(data: bytes, whole_bytes: int = WHOLE_BYTES, value_bytes: int = 1_000_000) -> list[Any]:
    """All records of a fetch response."""
    records = LogRecords(bytearray(whole_bytes), data)
    found = []
    while records.has_next():
        one = records.next_batch()
        one.value_bytes = value_bytes
        found += [
            (
                record.offset,
                record.timestamp,
                record.timestamp_type,
                record.key,
                record.value,
                list(record.headers),
            )
            for record in one
        ]
    return found


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("records", [RECORDS, [*RECORDS, ODD, *RECORDS]], ids=["even", "odd header names"])
def test_a_stream_has_the_same_records_as_the_whole(codec: str, records: list[RecordParts]) -> None:
    data = batch(records, CODECS[codec], base_offset=40)
    whole = read(data)
    assert [record[3:5] for record in whole] == [record[:2] for record in records]
    assert [record[:3] for record in whole] == [(40 + number, 2_000, 1) for number in range(len(records))]
    assert whole[3][5] == [("µ", b"\xff")]
    if records != RECORDS:
        assert whole[len(RECORDS)][5] == [("caf\udce9", b"1")]
    assert read(data, whole_bytes=100) == whole


@pytest.mark.parametrize("codec", [GZIP, SNAPPY, LZ4, ZSTD])
def test_of_what_is_too_large_the_beginning_is_kept_and_the_whole_is_known(codec: int) -> None:
    huge = Repeated(b'{"notes":"', b"x", 5_000_000, b'"}')
    key = Repeated(b"", b"k", 200_000)
    content = Repeated(b"", b"c", 3_000_000)
    data = batch(
        [
            (b"m-1", b"{}", []),
            (b"m-1", huge, [(b"ce_id", b"1")]),
            (key, b"{}", [(b"a", content), (b"never read", b"2")]),
            (b"m-1", b'{"notes":"after"}', [(b"last", b"3")]),
        ],
        codec,
    )
    first, cut, large, last = read(data, value_bytes=1_000)
    assert first[3:] == (b"m-1", b"{}", [])
    assert last[3:] == (b"m-1", b'{"notes":"after"}', [("last", b"3")])
    assert cut[4] == huge.begin(1_000)
    assert isinstance(cut[4], CutBytes)
    assert (whole_length(cut[4]), whole_sha256(cut[4])) == (len(huge), huge.sha256())
    assert cut[5] == [("ce_id", b"1")]
    assert (len(large[3]), whole_length(large[3])) == (KIB_64 + 1, 200_000)
    [(name, kept)] = large[5]
    assert (name, len(kept), whole_length(kept)) == ("a", KIB_64 + 1, 3_000_000)


def test_a_value_of_just_what_is_kept_is_whole() -> None:
    data = batch([(None, b"x" * 1_000, []), (None, b"x" * 1_001, [])], GZIP)
    exact, more = read(data, whole_bytes=100, value_bytes=1_000)
    assert type(exact[4]) is bytes
    assert type(more[4]) is CutBytes
    assert whole_sha256(exact[4]) == hashlib.sha256(b"x" * 1_000).hexdigest()


@pytest.mark.parametrize("codec", [GZIP, LZ4, ZSTD])
def test_headers_beyond_number_are_passed_over(codec: int) -> None:
    data = batch([(b"m-1", b"{}", EmptyHeaders(20_000_000)), (b"m-2", b"{}", [])], codec)
    flooded, after = read(data)
    assert flooded[5] == [("", b"")] * (KIB_64 + 1)
    assert after[3] == b"m-2"


@pytest.mark.parametrize("codec", [GZIP, SNAPPY, LZ4, ZSTD])
def test_a_long_batch_takes_no_memory_to_speak_of(codec: int) -> None:
    data = batch([(b"m-1", Repeated(b"", b"x", 64_000_000), []), (b"m-1", b"{}", [])], codec)
    tracemalloc.start()
    found = read(data, value_bytes=1_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [whole_length(record[4]) for record in found] == [64_000_000, 2]
    assert peak < 2 * WHOLE_BYTES


def test_a_long_batch_is_only_ever_the_first_of_a_response_and_alone() -> None:
    short, long = batch(RECORDS[:1], GZIP), batch([(b"m-1", b"x" * 10_000, [])], GZIP, base_offset=1)
    make = partial(LogRecords, bytearray(1_000))

    records = make(short + long + short)
    assert records.long is None
    assert not records.next_batch().long
    assert not records.has_next(), "it is fetched again, and then it is the first"

    records = make(long + short)
    assert records.has_next()
    assert records.long is records.next_batch()
    assert not records.has_next()


def test_a_long_batch_that_is_not_wanted_any_more_is_left() -> None:
    data = batch([(b"m-1", b"{}", []), (b"m-1", Repeated(b"", b"x", 1_000_000_000), [])], ZSTD)
    one = LogRecords(bytearray(1_000), data).next_batch()
    records = iter(one)
    next(records)
    one.stopped = True
    with pytest.raises(CorruptRecordException, match="isn't wanted"):
        next(records)


@pytest.mark.parametrize("codec", [GZIP, SNAPPY, LZ4, ZSTD])
def test_what_decompresses_it_ends_with_whoever_reads_it(codec: int) -> None:
    data = batch([(b"m-1", b"{}", []), (b"m-1", Repeated(b"", b"x", 50_000_000), [])], codec)
    one = LogRecords(bytearray(1_000), data).next_batch()
    records = iter(one)
    next(records)
    [thread] = [thread for thread in threading.enumerate() if thread.name == "decompress"]
    records.close()
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("codec", [GZIP, SNAPPY, LZ4, ZSTD])
@pytest.mark.parametrize("whole_bytes", [100, WHOLE_BYTES])
def test_a_batch_that_cannot_be_read_says_so(codec: int, whole_bytes: int) -> None:
    good = batch(RECORDS, codec)
    for end in (-40, 61, 80):  # that bytes are others than they were, the checksum tells
        with pytest.raises(CorruptRecordException):
            read(_resized(good[:end]), whole_bytes)


def _resized(data: bytes) -> bytes:
    """With its length in its header."""
    return data[:8] + (len(data) - 12).to_bytes(4, "big") + data[12:]


def test_a_batch_that_is_cut_off_does_not_count() -> None:
    one, other = batch(RECORDS, NONE), batch(RECORDS, GZIP)
    assert read(one + other[:-1]) == read(one)
    assert read(other[:20]) == read(b"") == []
