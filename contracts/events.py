"""Names on the wire: topics' events, their attributes, and the reasons for a rejection."""

from dataclasses import dataclass
from typing import Any, Literal

UPDATE_TYPE = "cell_measurement.update.v1"
UPDATED_TYPE = "cell_measurement.updated.v1"

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


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong with an event."""

    path: str
    """A path of the PATCH body (`$.test_setup.channel_number`), `key`, or a header's name."""
    expected: str
    found: Any
    """A JSON value, short: what stands there."""
