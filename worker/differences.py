"""What two JSON values have otherwise, path by path. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from contracts.json_values import json_path
from worker.measurement import json_equal


class NotThere(Enum):
    """In place of a value: there is none, or nobody knows what it was."""

    ABSENT = "absent"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Difference:
    """One place. An object or list that is new, gone or of another type is one difference, whole."""

    path: str
    """As in rejections: `$.test_setup.channel_number`."""
    before: Any
    after: Any


def differences(before: Any, after: Any, *path: str | int) -> Iterator[Difference]:
    """In the order of `before`, what is new last. Raises RecursionError where both are nested deeper than any event."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            yield from _compared(
                before.get(key, NotThere.ABSENT), after.get(key, NotThere.ABSENT), *path, key
            )
    elif isinstance(before, list) and isinstance(after, list):
        for index in range(max(len(before), len(after))):
            old = before[index] if index < len(before) else NotThere.ABSENT
            new = after[index] if index < len(after) else NotThere.ABSENT
            yield from _compared(old, new, *path, index)
    elif not json_equal(before, after):
        yield Difference(json_path(*path), before, after)


def _compared(before: Any, after: Any, *path: str | int) -> Iterator[Difference]:
    if NotThere.ABSENT in (before, after):
        yield Difference(json_path(*path), before, after)
    else:
        yield from differences(before, after, *path)
