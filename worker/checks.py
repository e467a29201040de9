"""What a check of the deployment finds."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "failed"]
Area = Literal["kafka", "topics", "postgres", "lanes", "clocks"]


@dataclass(frozen=True, slots=True)
class Check:
    """One finding, in words."""

    area: Area
    name: str
    verdict: Verdict
    said: str
    mend: str = ""
    """What to do; empty where all is well."""


def duration(milliseconds: float) -> str:
    """For people: `90 days`, `12 hours`, `30 s`."""
    seconds = milliseconds / 1000
    for unit, size in (("days", 86_400), ("hours", 3_600)):
        if seconds >= 2 * size:
            return f"{seconds / size:g} {unit}" if seconds % size == 0 else f"{seconds / size:.1f} {unit}"
    return f"{seconds:g} s"
