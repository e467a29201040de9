"""Named points between which a process may die: tests kill a real worker at each (`WORKER_CRASH_AT=name[:times]`)."""

import os
import signal
from typing import Literal

CrashPoint = Literal[
    "before_postgres_commit",
    "between_commits",
    "in_kafka_transaction",
    "after_kafka_commit",
    "between_act_and_send",
    "replay_in_transaction",
    "replay_after_commit",
]

_reached: dict[str, int] = {}


def reached(point: CrashPoint) -> None:
    """SIGKILL for this process, where the environment asks for it at this point (the n-th time)."""
    wanted, _, times = os.environ.get("WORKER_CRASH_AT", "").partition(":")
    if wanted == point:
        _reached[point] = _reached.get(point, 0) + 1
        if _reached[point] >= int(times or 1):
            os.kill(os.getpid(), signal.SIGKILL)
