"""The partitioner: where an answer goes, other producers put the same key."""

from aiokafka.partitioner import murmur2 as aiokafka_murmur2
from hypothesis import given
from hypothesis import strategies as st

from worker.partitioner import key_hashes, partition_of


@given(st.sets(st.binary(max_size=300)))
def test_the_hashes_are_kafkas_own(keys: set[bytes]) -> None:
    assert {key: hashed & 0x7FFFFFFF for key, hashed in key_hashes(keys).items()} == {
        key: aiokafka_murmur2(key) & 0x7FFFFFFF for key in keys
    }


def test_more_keys_of_a_length_than_are_hashed_at_once() -> None:
    keys = {b"%036d" % number for number in range(3_000)} | {b"%070000d" % number for number in range(3)}
    hashes = key_hashes(keys)
    assert {key: hashes[key] & 0x7FFFFFFF for key in keys} == {
        key: aiokafka_murmur2(key) & 0x7FFFFFFF for key in keys
    }


@given(st.binary(max_size=300), st.integers(1, 1_000))
def test_a_key_has_its_partition_and_no_key_that_of_the_input(key: bytes, partitions: int) -> None:
    wanted = (aiokafka_murmur2(key) & 0x7FFFFFFF) % partitions
    assert partition_of(key, partitions, 7) == partition_of(key, partitions, 7, key_hashes([key])) == wanted
    assert partition_of(None, partitions, 7) == 7 % partitions
