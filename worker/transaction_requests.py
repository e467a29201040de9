"""The requests of Kafka's newer transactions, for aiokafka's connections; names as on https://kafka.apache.org/protocol."""

from collections import defaultdict
from collections.abc import Iterable
from io import BytesIO
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import IncompatibleBrokerVersion
from aiokafka.protocol.api import RequestStruct, Response, ResponseHeader_v0
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactBytes,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

NO_TAGS: dict[int, bytes] = {}
_TAGS = ("tags", TaggedFields)


class Versioned:
    """A request in the one version in which we know it, as aiokafka's connections take one."""

    def __init__(self, request: RequestStruct) -> None:
        self._request = request

    def prepare(self, versions: dict[int, tuple[int, int]]) -> RequestStruct:
        key, version = self._request.API_KEY, self._request.API_VERSION
        least, most = versions.get(key, (0, -1))
        if not least <= version <= most:
            raise IncompatibleBrokerVersion(
                f"request {key} in version {version}: the broker takes {least} to {most}"
            )
        return self._request


def by_topic(partitions: Iterable[tuple[TopicPartition, tuple[Any, ...]]]) -> list[Any]:
    """What is said of each partition, as `_topics` has it."""
    topics: defaultdict[str, list[Any]] = defaultdict(list)
    for tp, said in partitions:
        topics[tp.topic].append((tp.partition, *said, NO_TAGS))
    return [(topic, said, NO_TAGS) for topic, said in topics.items()]


def _topics(*of_a_partition: tuple[str, Any]) -> CompactArray:
    partitions = CompactArray(("index", Int32), *of_a_partition, _TAGS)
    return CompactArray(("name", CompactString()), ("partitions", partitions), _TAGS)


class _ApiVersionsResponse(Response):  # type: ignore[misc]  # aiokafka ships no complete types
    API_KEY = 18
    API_VERSION = 3
    SCHEMA = Schema(
        ("error_code", Int16),
        ("api_keys", CompactArray(("api_key", Int16), ("min", Int16), ("max", Int16), _TAGS)),
        ("throttle_time_ms", Int32),
        _TAGS,
    )


FEATURES = CompactArray(("name", CompactString()), ("max", Int16), ("min", Int16), _TAGS)
"""Finalized ones, as they stand in a tag of the response."""


class ApiVersions(RequestStruct):  # type: ignore[misc]  # likewise
    API_KEY = 18
    API_VERSION = 3
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _ApiVersionsResponse
    SCHEMA = Schema(
        ("client_software_name", CompactString()), ("client_software_version", CompactString()), _TAGS
    )

    def parse_response_header(self, read_buffer: BytesIO | bytes) -> ResponseHeader_v0:
        return ResponseHeader_v0.decode(read_buffer)  # the one that isn't flexible in any version


class _ProduceResponse(Response):  # type: ignore[misc]  # likewise
    API_KEY = 0
    API_VERSION = 12
    SCHEMA = Schema(
        ("topics", _topics(
            ("error_code", Int16), ("base_offset", Int64), ("log_append_time_ms", Int64), ("log_start_offset", Int64),
            ("record_errors", CompactArray(("batch_index", Int32), ("message", CompactString()), _TAGS)),
            ("error_message", CompactString()))),
        ("throttle_time_ms", Int32),
        _TAGS,
    )  # fmt: skip


class Produce(RequestStruct):  # type: ignore[misc]  # likewise
    API_KEY = 0
    API_VERSION = 12
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _ProduceResponse
    SCHEMA = Schema(
        ("transactional_id", CompactString()),
        ("acks", Int16),
        ("timeout_ms", Int32),
        ("topics", _topics(("records", CompactBytes))),
        _TAGS,
    )


class _TxnOffsetCommitResponse(Response):  # type: ignore[misc]  # likewise
    API_KEY = 28
    API_VERSION = 5
    SCHEMA = Schema(("throttle_time_ms", Int32), ("topics", _topics(("error_code", Int16))), _TAGS)


class TxnOffsetCommit(RequestStruct):  # type: ignore[misc]  # likewise
    API_KEY = 28
    API_VERSION = 5
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _TxnOffsetCommitResponse
    SCHEMA = Schema(
        ("transactional_id", CompactString()),
        ("group_id", CompactString()),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("generation_id", Int32),
        ("member_id", CompactString()),
        ("group_instance_id", CompactString()),
        ("topics", _topics(("offset", Int64), ("leader_epoch", Int32), ("metadata", CompactString()))),
        _TAGS,
    )


class _EndTxnResponse(Response):  # type: ignore[misc]  # likewise
    API_KEY = 26
    API_VERSION = 5
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        _TAGS,
    )


class EndTxn(RequestStruct):  # type: ignore[misc]  # likewise
    API_KEY = 26
    API_VERSION = 5
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _EndTxnResponse
    SCHEMA = Schema(
        ("transactional_id", CompactString()),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("committed", Boolean),
        _TAGS,
    )
