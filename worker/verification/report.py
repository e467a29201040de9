"""What a verification has counted and found."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

FindingName = Literal[
    "unanswered",
    "answered_twice",
    "stray",
    "applied_twice",
    "out_of_order",
    "unequal_answers",
    "unequal_stored",
    "unequal_rows",
]
FINDINGS: tuple[FindingName, ...] = get_args(FindingName)


@dataclass(slots=True)
class Finding:
    """How often, and the first few places, in words."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """Records of the input are each counted once: applied, rejected, duplicates, pending, not_checked or unanswered."""

    max_examples: int = 5
    records: int = 0
    """Of the input log, as far as it reached at the start."""
    pending: int = 0
    """Not decided, or not known to be answered: the workers are behind."""
    waited_in_vain: bool = False
    """Something was still pending when the time to wait for it was over."""
    applied: int = 0
    rejected: int = 0
    duplicates: int = 0
    repeated: int = 0
    """Answers that are there once more, which was allowed."""
    not_comparable: int = 0
    """Answers between which something else has written the measurement, so that not every field tells something."""
    not_checked: int = 0
    """Records, answers and rows whose counterpart isn't there any more: retention, or another log than today's."""
    edited_elsewhere: int = 0
    """Rows that something else has written since their last answer."""
    findings: dict[FindingName, Finding] = field(
        default_factory=lambda: {name: Finding() for name in FINDINGS}
    )

    def found(self, name: FindingName, example: str) -> None:
        """One more of these."""
        finding = self.findings[name]
        finding.count += 1
        if len(finding.examples) < self.max_examples:
            finding.examples.append(example)

    @property
    def ok(self) -> bool:
        return not self.waited_in_vain and not any(finding.count for finding in self.findings.values())

    def as_json(self) -> dict[str, Any]:
        """One JSON object, as `--json` prints it."""
        return {
            "ok": self.ok,
            "records": self.records,
            "pending": self.pending,
            "applied": self.applied,
            "rejected": self.rejected,
            "duplicates": self.duplicates,
            "repeated": self.repeated,
            "not_comparable": self.not_comparable,
            "not_checked": self.not_checked,
            "edited_elsewhere": self.edited_elsewhere,
            "findings": {
                name: {"count": finding.count, "examples": finding.examples}
                for name, finding in self.findings.items()
            },
        }
