"""What is emitted for a record, and what is stored to emit it again byte for byte. Pure."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass

import orjson

from contracts.events import UPDATED_TYPE, rejection_detail
from worker.record import (
    MAX_KEPT_BYTES,
    CutBytes,
    Rejection,
    headers_bytes,
    whole_length,
    whole_sha256,
)

_RECORD_OVERHEAD = 61 + 5 * 6
"""Kafka's batch header, and a record's lengths and deltas at their longest (KIP-98, message format v2)."""
_HEADER_OVERHEAD = 2 * 5
Headers = list[tuple[str, bytes | None]]


@dataclass(slots=True, eq=False)
class Answer(ABC):
    """One record to emit. Its headers are made when they are asked for: thousands of answers wait to go out, and most of
    what they'd take is headers.
    """

    offset: int
    """Of the record that is answered."""
    topic: str
    key: bytes | None
    value: bytes | None
    arrival: int
    previous: tuple[int, int] | None
    """(lane, offset) of the measurement's answer before this one: that one goes out first."""

    @property
    @abstractmethod
    def headers(self) -> Headers: ...


@dataclass(slots=True, eq=False)
class PlainAnswer(Answer):
    """One whose headers are at hand."""

    given: Headers

    @property
    def headers(self) -> Headers:
        return self.given


@dataclass(slots=True, eq=False)
class UpdatedAnswer(Answer):
    """A measurement updated event: binary CloudEvent (Kafka protocol binding 1.0)."""

    updates_topic: str
    """With partition, offset and arrival: the record that is answered."""
    partition: int
    source: str
    """Of the event, as `id` is."""
    id: str
    traceparent: str | None
    updated_at: str
    revision: int
    changed: str
    answer_source: str

    @property
    def headers(self) -> Headers:
        headers: Headers = [
            ("ce_specversion", b"1.0"),
            ("ce_id", f"{self.updates_topic}/{self.partition}/{self.offset}@{self.arrival}".encode()),
            ("ce_source", self.answer_source.encode()),
            ("ce_type", _UPDATED_TYPE),
            ("ce_subject", self.key),
            ("ce_time", self.updated_at.encode()),
            ("content-type", b"application/json"),
            ("ce_revision", b"%d" % self.revision),
            ("ce_changed", self.changed.encode()),
            ("ce_causationid", self.id.encode()),
            ("ce_causationsource", self.source.encode()),
        ]
        if self.traceparent is not None:
            headers.append(("traceparent", self.traceparent.encode()))
        return headers

    def most_wire_size(self) -> int:
        """Not less than `wire_size`, and quicker."""
        texts = (
            len(self.updates_topic) + len(self.source) + len(self.id) + len(self.traceparent or "")
            + len(self.answer_source)
        )  # fmt: skip
        return 1_000 + 2 * len(self.key or b"") + len(self.value or b"") + 4 * texts


_UPDATED_TYPE = UPDATED_TYPE.encode()


@dataclass(slots=True)
class StoredRejection:
    """A rejected record as it is stored and emitted; a header name is raw bytes."""

    offset: int
    arrival: int
    key: bytes | None
    value: bytes | None
    header_names: list[bytes]
    header_values: list[bytes | None]
    code: str
    detail: bytes
    truncated: bytes | None


@dataclass(slots=True, eq=False)
class RejectedAnswer(Answer):
    """A rejected record: as received, with the reason."""

    updates_topic: str
    partition: int
    stored: StoredRejection

    @property
    def headers(self) -> Headers:
        """Where a name stands twice the last counts: ours come last."""
        stored = self.stored
        headers: Headers = [
            (name.decode("utf-8", "backslashreplace"), content)
            for name, content in zip(stored.header_names, stored.header_values, strict=True)
        ]
        headers += [
            ("rejection-code", stored.code.encode()),
            ("rejection-detail", stored.detail),
            ("rejection-topic", self.updates_topic.encode()),
            ("rejection-partition", b"%d" % self.partition),
            ("rejection-offset", b"%d" % stored.offset),
            ("rejection-timestamp", b"%d" % stored.arrival),
        ]
        if stored.truncated is not None:
            headers.append(("rejection-truncated", stored.truncated))
        return headers


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What the answers of one lane have in common, and what their topics take (bytes of a batch of one record)."""

    updates_topic: str
    updated_topic: str
    rejected_topic: str
    source: str
    max_updated_bytes: int = 8 * 1024**2
    max_rejected_bytes: int = 8 * 1024**2


def wire_size(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    """An upper bound of what a batch of this one record takes, in bytes."""
    size = _RECORD_OVERHEAD + len(key or b"") + len(value or b"")
    for name, content in headers:
        size += (len(name) if name.isascii() else len(name.encode())) + len(content or b"") + _HEADER_OVERHEAD
    return size


def stored_rejection(rejection: Rejection, form: AnswerForm) -> StoredRejection:
    """A rejection → what is kept and sent: everything as received, or cut to what the topic takes, saying so."""
    record = rejection.record
    whole = record.value or b""
    left_out = []
    if len(record.key or b"") > MAX_KEPT_BYTES:
        left_out.append("key")
    if headers_bytes(record.headers) > MAX_KEPT_BYTES:
        left_out.append("headers")
    # more is left out only where the topic takes so little that cutting the value isn't enough
    there_is = ["headers"] * bool(record.headers) + ["key"] * (record.key is not None)
    for leaving in (left_out, {*left_out, *there_is[:1]}, there_is):
        stored = _stored(rejection, leaving)
        excess = _size(stored, form, record.partition) - form.max_rejected_bytes
        if not leaving and excess <= 0 and not isinstance(whole, CutBytes):
            break
        truncated: dict[str, object] = {"length": whole_length(whole), "sha256": whole_sha256(whole)}
        if leaving:
            truncated["left_out"] = sorted(leaving, reverse=True)
        stored.truncated = orjson.dumps(truncated)
        excess = _size(stored, form, record.partition) - form.max_rejected_bytes
        if excess > 0 and record.value is not None:
            stored.value = whole[: max(0, len(whole) - excess)]
        if excess <= len(whole):
            break
    return stored


def _stored(rejection: Rejection, left_out: Collection[str]) -> StoredRejection:
    record = rejection.record
    headers = () if "headers" in left_out else record.headers
    return StoredRejection(
        offset=record.offset,
        arrival=rejection.arrival,
        key=None if "key" in left_out else record.key,
        value=record.value,
        header_names=[_raw(name) for name, _ in headers],
        header_values=[content for _, content in headers],
        code=rejection.code,
        detail=rejection_detail(rejection.message, rejection.violations, rejection.total),
        truncated=None,
    )


def _size(stored: StoredRejection, form: AnswerForm, partition: int) -> int:
    answer = rejected_answer(stored, form, partition)
    return wire_size(answer.key, answer.value, answer.headers)


def rejected_answer(stored: StoredRejection, form: AnswerForm, partition: int) -> Answer:
    return RejectedAnswer(
        stored.offset,
        form.rejected_topic,
        stored.key,
        stored.value,
        stored.arrival,
        None,
        form.updates_topic,
        partition,
        stored,
    )


def _raw(header_name: str) -> bytes:
    return header_name.encode("utf-8", "surrogateescape")
