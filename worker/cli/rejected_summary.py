"""What became of the cases that `rejected requeue` has sent, for people and for machines."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from rich.padding import Padding
from rich.text import Text

from worker.cli.rejected_options import short_id
from worker.cli.terminal import err, out
from worker.cli.watch import printable
from worker.requeue import Requeued
from worker.settings import Settings

LISTED = 20
_NOT_REJECTED = ("applied", "duplicate")


@dataclass(slots=True)
class Summary:
    """One run, as far as it has come."""

    settings: Settings
    dry_run: bool
    items: list[Requeued] = field(default_factory=list)
    foreseen: Counter[str] = field(default_factory=Counter)
    """Of a dry run: codes with which records would be rejected again, whatever the database holds."""

    @property
    def fates(self) -> Counter[str]:
        return Counter(item.fate.outcome for item in self.items if item.fate is not None)

    @property
    def sent(self) -> list[Requeued]:
        return [item for item in self.items if item.sent is not None]

    @property
    def refused(self) -> list[Requeued]:
        return [item for item in self.items if item.refused is not None]

    @property
    def well(self) -> bool:
        """Everything was sent, and nothing was rejected again, as far as that is known."""
        return not self.refused and not self.fates.keys() - set(_NOT_REJECTED)

    def say(self) -> None:
        if not self.items:
            out.print("nothing to requeue with these filters")
        elif self.dry_run:
            self._say_refused()
            again = sum(self.foreseen.values())
            out.print(f"{len(self.items) - len(self.refused):,} would be requeued, nothing was sent")
            if again:
                out.print(f"{again:,} of them would be rejected again for their form", style="yellow")
        else:
            if len(self.sent) <= LISTED:
                for item in self.sent:
                    self._say_item(item)
            self._say_refused()
            self._say_counts()

    def _say_counts(self) -> None:
        sent, fates = len(self.sent), self.fates
        rejected = {code: count for code, count in sorted(fates.items()) if code not in _NOT_REJECTED}
        _count("requeued", sent, f"of {len(self.items):,}" if sent < len(self.items) else "")
        for name, count, style in (
            ("applied", fates["applied"], "green"),
            ("duplicate", fates["duplicate"], ""),
            ("rejected again", sum(rejected.values()), "red"),
        ):
            if count:
                _count(f"  {name}", count, style=style)
        for code, count in rejected.items():
            _count(f"    {code}", count, style="dim")
        if undecided := sent - sum(fates.values()):
            _count("  not answered yet", undecided, "rejected list --state requeued")
        unsure = sum(item.marked and item.sent is None and item.refused is None for item in self.items)
        if unsure:
            _count("not acknowledged", unsure, "marked as requeued all the same: --again sends them")

    def _say_refused(self) -> None:
        for item in self.refused[:LISTED]:
            err.print("[red]error:[/red] ", end="")
            err.print(f"{short_id(item.case, self.settings)}: {item.refused}", markup=False)
        if len(self.refused) > LISTED:
            err.print(f"… and {len(self.refused) - LISTED:,} more that weren't sent")

    def _say_item(self, item: Requeued) -> None:
        out.print(self._line(item))
        if item.fate is not None and item.fate.message:
            message = Text(printable(item.fate.message), style="dim")
            out.print(Padding(message, (0, 0, 0, 4), expand=False), soft_wrap=False)

    def _line(self, item: Requeued) -> Text:
        place = item.place.removeprefix(f"{self.settings.worker_updates_topic}/")
        line = Text.assemble((short_id(item.case, self.settings), "bold"), f"  sent as {place}")
        fate = item.fate
        if fate is None:
            return line
        if fate.outcome == "applied":
            changed = fate.changed.replace(",", ", ") or "nothing changed"
            return line.append("  applied", "green").append(f", revision {fate.revision}, {changed}")
        if fate.outcome == "duplicate":
            return line.append("  duplicate").append(" of an event that was applied", "dim")
        return line.append(f"  rejected again: {fate.outcome}", "red")

    def as_json(self) -> dict[str, Any]:
        fates = self.fates
        return {
            "dry_run": self.dry_run,
            "cases": len(self.items),
            "requeued": len(self.sent),
            "applied": fates["applied"],
            "duplicates": fates["duplicate"],
            "rejected": {code: count for code, count in fates.items() if code not in _NOT_REJECTED},
            "foreseen": dict(self.foreseen),
            "each": [_item_json(item) for item in self.items],
        }

    def print_json(self) -> None:
        print(orjson.dumps(self.as_json()).decode())


def _count(name: str, count: int, note: str = "", style: str = "") -> None:
    out.print(Text.assemble((f"{name:<28}{count:>9,}", style), (f"  {note}" if note else "", "dim")))


def _item_json(item: Requeued) -> dict[str, Any]:
    fate = item.fate
    return {
        "id": item.case.first_position,
        "sent": item.place or None,
        "refused": item.refused,
        "outcome": None if fate is None else fate.outcome,
        "revision": None if fate is None else fate.revision,
        "message": None if fate is None else fate.message or None,
    }


def places_of(items: Sequence[Requeued]) -> str:
    """Partitions that are waited for."""
    return ", ".join(sorted({f"{item.sent.topic}/{item.sent.partition}" for item in items if item.sent}))
