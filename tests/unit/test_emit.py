"""The partitioner: where an answer goes, other producers put the same key."""

from aiokafka.partitioner import murmur2 as aiokafka_murmur2
from hypothesis import given
from hypothesis import strategies as st

from worker.emit import murmur2, partition_of


@given(st.binary(max_size=300))
def test_murmur2_is_kafkas_own(key: bytes) -> None:
    assert murmur2(key) & 0x7FFFFFFF == aiokafka_murmur2(key) & 0x7FFFFFFF


@given(st.binary(max_size=300), st.integers(1, 1_000))
def test_a_key_has_its_partition_and_no_key_that_of_the_input(key: bytes, partitions: int) -> None:
    assert partition_of(key, partitions, 7) == (aiokafka_murmur2(key) & 0x7FFFFFFF) % partitions
    assert partition_of(None, partitions, 7) == 7 % partitions
