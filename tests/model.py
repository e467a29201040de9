"""A naive model of the whole system, from the contract alone: fold a log over rows. Imports nothing of `worker`.

Slow and plain on purpose: one record at a time, values as values, no batches, no text kept.
"""

import json
from dataclasses import dataclass, field
from typing import Any

FIELDS = ("name", "protocol", "test_setup", "notes", "properties")
OLDER_THAN_ALL = (-1, -1, -1)


@dataclass
class Row:
    """A measurement: its columns, and what is ours."""

    columns: dict[str, Any]
    revision: int = 0
    written: dict[str, tuple[int, int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """An update whose form is right. Positions are (arrival, partition, offset)."""

    own: tuple[int, int, int]
    first: tuple[int, int, int]
    measurement_id: str
    source: str
    id: str
    patch: dict[str, Any]
    expected_revision: int | None = None
    organization_id: str | None = None


@dataclass(frozen=True)
class Outcome:
    """`applied` with revision, changed and body; `rejected` with its code; or `duplicate`."""

    kind: str
    code: str = ""
    revision: int = 0
    changed: tuple[str, ...] = ()
    body: str = ""


class Model:
    """Rows, and the identities that were applied."""

    def __init__(self, rows: dict[str, Row], identity_retention: int) -> None:
        self.rows = rows
        self.retention = identity_retention
        self.seen: list[tuple[tuple[str, str, str], str, int]] = []

    def fold(self, event: Event) -> Outcome:
        row = self.rows.get(event.measurement_id)
        if event.organization_id is not None and (
            row is None or row.columns["organization_id"] != event.organization_id
        ):
            return Outcome("rejected", "measurement_not_found")

        identity = (event.measurement_id, event.source, event.id)
        content = canonical([event.patch, event.expected_revision])
        near = [
            seen_content
            for seen_identity, seen_content, arrival in self.seen
            if seen_identity == identity and abs(arrival - event.own[0]) < self.retention
        ]
        if content in near:
            return Outcome("duplicate")
        if near:
            return Outcome("rejected", "event_id_reused")
        if row is None:
            return Outcome("rejected", "measurement_not_found")
        if event.patch.get("properties") is not None and row.columns["measurement_type"] != "properties":
            return Outcome("rejected", "properties_not_allowed")
        if event.expected_revision is not None and event.expected_revision != row.revision:
            return Outcome("rejected", "revision_conflict")

        after = dict(row.columns)
        written = dict(row.written)
        changed = []
        for name in FIELDS:
            if name not in event.patch or (name == "name" and event.patch[name] is None):
                continue
            if event.first < row.written.get(name, OLDER_THAN_ALL):
                continue
            written[name] = event.first
            if canonical(after[name]) != canonical(event.patch[name]):
                after[name] = event.patch[name]
                changed.append(name)
        if changed:
            after["updated_at"] = max(after["updated_at"], event.own[0])
        if not readable(after):
            return Outcome("rejected", "measurement_unreadable")
        row.columns, row.written = after, written
        row.revision += bool(changed)
        self.seen.append((identity, content, event.own[0]))
        return Outcome("applied", "", row.revision, tuple(changed), canonical(after))


def readable(columns: dict[str, Any]) -> bool:
    """Can the response model express this row?"""
    return (
        isinstance(columns["name"], str)
        and 1 <= len(columns["name"]) <= 255
        and columns["measurement_type"] in ("time_series", "file", "properties")
        and all(
            columns[name] is None or isinstance(columns[name], dict)
            for name in ("protocol", "test_setup", "properties", "file_metadata")
        )
    )


def canonical(value: Any) -> str:
    """Equal for equal JSON values: 3 and 3.0 are, true and 1 aren't."""
    return json.dumps(normal(value), sort_keys=True)


def normal(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and -(2**63) <= value < 2**64:
        return int(value)
    if isinstance(value, dict):
        return {key: normal(member) for key, member in value.items()}
    if isinstance(value, list):
        return [normal(member) for member in value]
    return value
