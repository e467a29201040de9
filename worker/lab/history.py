"""One measurement's history, from what the worker keeps of each applied update: what changed, in words."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg
import orjson

_PATCHABLE = ("name", "protocol", "test_setup", "notes", "properties")


@dataclass(frozen=True, slots=True)
class Change:
    """One value that became another; `path` as in the patch: `test_setup.channel_number`."""

    path: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One applied update."""

    revision: int
    at: datetime
    source: str
    id: str
    changes: tuple[Change, ...]
    """None: it changed nothing."""


async def history(
    database: "asyncpg.Connection[asyncpg.Record]", measurement_id: str, before: dict[str, Any]
) -> list[Entry]:
    """In the order in which they were applied. `before`: the patchable fields before the first of them."""
    rows = await database.fetch(
        """SELECT revision, arrival, event_source, event_id, answer
           FROM measurement_updates.applied_updates WHERE measurement_id = $1 ORDER BY lane, log_offset""",
        measurement_id,
    )
    entries = []
    for row in rows:
        model = orjson.loads(row["answer"])
        after = {name: model[name] for name in _PATCHABLE}
        entries.append(
            Entry(
                row["revision"],
                datetime.fromtimestamp(row["arrival"] / 1000, UTC),
                row["event_source"],
                row["event_id"],
                tuple(changes(before, after)),
            )
        )
        before = after
    return entries


def changes(before: Any, after: Any, path: str = "") -> list[Change]:
    """Leaf by leaf, but a protocol definition as a whole: nobody reads a diff of two formats."""
    if before == after:
        return []
    if isinstance(after, dict) and isinstance(before, dict | None) and not _is_whole(path, after):
        found = []
        before = before or {}
        for key in dict.fromkeys([*before, *after]):
            if before.get(key) != after.get(key) or (key in before) != (key in after):
                inner = f"{path}.{key}" if path else key
                found += changes(before.get(key), after.get(key), inner)
        return found
    return [Change(path, shown(before), shown(after))]


def _is_whole(path: str, value: dict[str, Any]) -> bool:
    return path.endswith(".definition") or value.keys() == {"value", "unit"} or not value


def shown(value: Any) -> str:
    """A value in a few words."""
    match value:
        case None:
            return "none"
        case {"method": list(steps)}:
            return f"UCP, {len(steps)} steps"
        case {"value": number, "unit": str(unit)}:
            return f"{number} {unit}".rstrip()
        case dict() | list():
            return f"{len(orjson.dumps(value)):,} bytes of JSON"
        case str():
            line = " ⏎ ".join(value.replace("\t", " ").splitlines())
            if len(line) > 400:
                return f"“{_cut(line, 24)}” ({len(value):,} characters)"
            return f"“{_cut(line, 52)}”"
        case bool():
            return "true" if value else "false"
    return str(value)


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"
