"""What would become of the records of a replay. Pure."""

from dataclasses import dataclass, field
from typing import Any

import orjson


@dataclass(slots=True)
class Change:
    """A row that would change."""

    measurement: str
    revision: tuple[int, int]
    fields: dict[str, tuple[bytes | None, bytes | None]]
    """Name → JSON text before and after; None: null."""

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.measurement,
            "revision": list(self.revision),
            "fields": {
                name: [None if text is None else orjson.Fragment(text) for text in texts]
                for name, texts in self.fields.items()
            },
        }


@dataclass(slots=True)
class Forecast:
    """What would become of the records."""

    read: int = 0
    selected: int = 0
    unpublishable: int = 0
    not_decided: int = 0
    """Of the selected: workers have yet to decide them, so they are judged here as they will be there."""
    applied: int = 0
    unchanged: int = 0
    """Of the applied."""
    late: int = 0
    """Of the applied: something newer has written a field, which is left alone."""
    duplicates: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    rows: int = 0
    """That would change."""
    changes: list[Change] = field(default_factory=list)
    """The first of them."""
    stopped: str | None = None
    """Why it hasn't looked at all of the range."""

    def as_json(self) -> dict[str, Any]:
        names = (
            "read",
            "selected",
            "unpublishable",
            "not_decided",
            "applied",
            "unchanged",
            "late",
            "duplicates",
        )
        return {
            "dry_run": True,
            **{name: getattr(self, name) for name in names},
            "rejected": self.rejected,
            "rows": self.rows,
            "changes": [change.as_json() for change in self.changes],
            "examples": self.examples,
            "stopped": self.stopped,
        }
