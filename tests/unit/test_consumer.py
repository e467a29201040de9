"""What a partition's bytes make a library say is that partition's trouble."""

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import CorruptRecordException

from worker.consumer import LogConsumer


@pytest.mark.parametrize(
    "error", [CorruptRecordException("crc"), IndexError("varint"), RuntimeError("bad frame")]
)
def test_bytes_that_cannot_be_read_are_handed_over_as_their_partitions_error(error: Exception) -> None:
    def getall(_: int) -> Any:
        raise error

    result = SimpleNamespace(_partition_records=SimpleNamespace(next_fetch_offset=7), getall=getall)
    fetched = LogConsumer._take(TopicPartition("updates", 3), result)
    assert fetched is not None
    assert (fetched.topic, fetched.partition, fetched.records) == ("updates", 3, [])
    assert isinstance(fetched.error, CorruptRecordException)
    assert "updates/3 from 7 on" in str(fetched.error)
    assert result._partition_records is None, "fetched again from the position that stands"
