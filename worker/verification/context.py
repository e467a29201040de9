"""What every part of a verification works with."""

from dataclasses import dataclass

from worker.verification.input_log import InputLog
from worker.verification.ledger import Ledger
from worker.verification.remaining import Remaining
from worker.verification.report import Report


@dataclass(slots=True)
class Context:
    """Of one verification."""

    report: Report
    ledger: Ledger
    log: InputLog
    remaining: Remaining
    allow_repeats: bool
    identity_retention: int
    """Milliseconds."""
    horizon: int
    """What arrived since then (ms since 1970) is still stored; retention may have taken what is older."""

    @property
    def input(self) -> str:
        return self.log.topic.name
