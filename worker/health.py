"""Is this worker alive, and is it ready? Judged from facts, without a clock or I/O.

alive: false only where a restart helps. A lane that waits for Kafka, for Postgres or for an operator says so, tries
again and again, and is alive: started anew it would wait for the same. Everything that a lane waits for is bounded in
time, so one that has work and gives no sign at all for longer than all of it together hangs in a library; and so does
a consumer that hands nothing over for as long, while Kafka says that there is more.

ready: everything that is assigned is taken over and goes on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

HUNG_SECONDS = 300.0
"""A take-over in which every step needs its time-out takes about 200 s."""

LaneState = Literal["taking_over", "running", "waiting", "stopped", "given_up"]
LANE_STATES: tuple[LaneState, ...] = ("taking_over", "running", "waiting", "stopped", "given_up")

Phase = Literal["starting", "joining", "working", "stopping"]
"""Until Kafka and Postgres were there once; until the group has assigned partitions (or none); after that; the end."""


@dataclass(frozen=True, slots=True)
class LaneFacts:
    """One assigned partition, at one moment. Times are in seconds."""

    topic: str
    partition: int
    state: LaneState
    why: str
    """What it waits for, or why it has stopped; empty where it runs."""
    do: str
    """What an operator does about it, where `why` doesn't say it."""
    seconds_in_state: float
    has_work: bool
    """It takes its partition over, or has fetched what isn't answered yet."""
    seconds_without_sign: float
    """Since it last moved on, or said what it waits for."""
    seconds_unread: float
    """How long Kafka has had more than was fetched, while the lane had nothing to do."""


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """The process, at one moment."""

    phase: Phase
    waits_for: str = ""
    """While it starts: what it has last found to be away or wrong."""
    topic_is_there: bool = True
    away: str = ""
    """What Kafka or Postgres answered when they were last asked by someone other than a lane; empty where all was well."""


@dataclass(frozen=True, slots=True)
class Health:
    """Each reason is a sentence for people."""

    hung: tuple[str, ...]
    unready: tuple[str, ...]

    @property
    def live(self) -> bool:
        return not self.hung

    @property
    def ready(self) -> bool:
        return not self.unready


def judge(worker: WorkerFacts, lanes: Sequence[LaneFacts]) -> Health:
    """Of one worker and the lanes that are assigned to it."""
    hung = tuple(reason for lane in lanes if (reason := _hung(lane)))
    return Health(hung, (*_unready(worker, lanes), *hung))


def _hung(lane: LaneFacts) -> str:
    name = f"{lane.topic}/{lane.partition}"
    if lane.has_work and lane.seconds_without_sign > HUNG_SECONDS:
        return (
            f"{name} has work and has given no sign for {lane.seconds_without_sign:.0f} s"
            f" (state {lane.state}): restart this worker"
        )
    if lane.state == "running" and not lane.has_work and lane.seconds_unread > HUNG_SECONDS:
        return (
            f"{name}: Kafka has had more records for {lane.seconds_unread:.0f} s, and nothing was fetched:"
            " restart this worker"
        )
    return ""


def _unready(worker: WorkerFacts, lanes: Sequence[LaneFacts]) -> list[str]:
    if worker.phase == "stopping":
        return ["the worker stops: it finishes what is in flight"]
    if worker.phase == "starting":
        return [f"the worker starts{_colon(worker.waits_for)}"]
    if worker.phase == "joining":
        return [f"the consumer group hasn't assigned partitions yet{_colon(worker.waits_for)}"]
    if not lanes:
        return _spare(worker)
    return [
        f"{lane.topic}/{lane.partition} {_WORDS[lane.state]}{_colon(lane.why)}"
        for lane in lanes
        if lane.state != "running"
    ]


def _spare(worker: WorkerFacts) -> list[str]:
    """More workers than partitions: it is ready to take one over."""
    if not worker.topic_is_there:
        return ["no partition is assigned: the input topic is gone"]
    return [worker.away] if worker.away else []


def _colon(why: str) -> str:
    return f": {why}" if why else ""


_WORDS: dict[LaneState, str] = {
    "taking_over": "is being taken over",
    "running": "runs",
    "waiting": "waits",
    "stopped": "has stopped",
    "given_up": "is given up",
}
