"""Names on the wire: topics' events, their attributes and headers, the reasons for a rejection and their
rendering."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import orjson

from contracts.json_values import shortened, text

SPECVERSION = "1.0"
UPDATE_TYPE = "cell_measurement.update.v1"
UPDATED_TYPE = "cell_measurement.updated.v1"

CONTENT_TYPE = "content-type"
JSON_MEDIA_TYPE = "application/json"
STRUCTURED_MEDIA_TYPE = "application/cloudevents+json"

# CloudEvents attributes and extensions, as headers of the Kafka protocol binding (binary content mode).
CE_PREFIX = "ce_"
CE_SPECVERSION = "ce_specversion"
CE_ID = "ce_id"
CE_SOURCE = "ce_source"
CE_TYPE = "ce_type"
CE_TIME = "ce_time"
CE_SUBJECT = "ce_subject"
CE_EXPECTEDREVISION = "ce_expectedrevision"
CE_ORGANIZATIONID = "ce_organizationid"
CE_REVISION = "ce_revision"
CE_CHANGED = "ce_changed"
CE_CAUSATIONID = "ce_causationid"
CE_CAUSATIONSOURCE = "ce_causationsource"
CE_TRACEPARENT = "ce_traceparent"
"""Some producers prefix it; the header `traceparent` comes first."""

# Headers without a prefix.
TRACEPARENT = "traceparent"
REQUEUED_FROM = "requeued-from"
"""`topic/partition/offset@arrival` of the record that this one was first; arrival in ms since 1970."""
REAPPLY = "reapply"
"""The id of a replay run; it joins the event's identity."""

REJECTION_PREFIX = "rejection-"
REJECTION_CODE = "rejection-code"
REJECTION_DETAIL = "rejection-detail"
REJECTION_TOPIC = "rejection-topic"
REJECTION_PARTITION = "rejection-partition"
REJECTION_OFFSET = "rejection-offset"
REJECTION_TIMESTAMP = "rejection-timestamp"
"""The record's arrival, in ms since 1970."""
REJECTION_TRUNCATED = "rejection-truncated"
"""JSON: `length` and `sha256` (hex) of the whole value, where it was cut; `left_out`: `key` and/or
`headers`."""

RejectionCode = Literal[
    "empty_event",
    "too_large",
    "invalid_event",
    "invalid_json",
    "invalid_patch",
    "event_id_reused",
    "measurement_not_found",
    "properties_not_allowed",
    "revision_conflict",
    "measurement_unreadable",
    "answer_too_large",
    "storage_refused",
]
"""In the order in which they are looked for; the first that holds is given."""
REJECTION_CODES: tuple[RejectionCode, ...] = get_args(RejectionCode)

MAX_DETAIL_BYTES = 16 * 1024
# A character takes up to 6 bytes (`\u001f`): the longest message and one longest violation fit in well below
# 16 KiB.
_MESSAGE_CHARACTERS = 600
_PATH_CHARACTERS = 300
_EXPECTED_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong with an event."""

    path: str
    """A path of the PATCH body (`$.test_setup.channel_number`), `key`, `headers`, the name of a header or attribute,
    or `value` (an envelope that is no object)."""
    expected: str
    found: Any
    """A JSON value, short: what stands there."""


def rejection_detail(message: str, violations: Sequence[Violation] = (), total: int = 0) -> bytes:
    """`rejection-detail`: JSON of `message`, as many `violations` as fit into 16 KiB, and their `total`.

    Total by construction: whatever the strings and found values are, they are shortened until they can be
    written. `total` counts all violations there are, so it may be greater than the length of `violations`,
    but never less.
    """
    head = b'{"message":' + orjson.dumps(text(message, _MESSAGE_CHARACTERS)) + b',"violations":['
    tail = b'],"total":%d}' % max(total, len(violations))
    room = MAX_DETAIL_BYTES - len(head) - len(tail)
    rendered = []
    for violation in violations:
        one = orjson.dumps(
            {
                "path": text(violation.path, _PATH_CHARACTERS),
                "expected": text(violation.expected, _EXPECTED_CHARACTERS),
                "found": shortened(violation.found),
            }
        )
        room -= len(one) + 1
        if room < 0:
            break
        rendered.append(one)
    return head + b",".join(rendered) + tail
