"""What this worker is like now, for whoever asks by HTTP: its lanes, and what was last asked of Kafka and Postgres."""

import asyncio
import time
from collections.abc import Sequence

import asyncpg

from worker.health import Health, LaneFacts, Phase, WorkerFacts, judge
from worker.input_log import InputLog
from worker.lane import Lane
from worker.metrics import Gauges
from worker.subscriber import Lanes
from worker.survey import Surveyed, survey

_EVERY_SECONDS = 15.0


class Observer:
    """One a process, there before anything else."""

    def __init__(self) -> None:
        self.waits_for = ""
        """While it starts."""
        self.lanes: Lanes | None = None
        self._input_log: InputLog | None = None
        self._surveyed = Surveyed()

    @property
    def phase(self) -> Phase:
        if self.lanes is None:
            return "starting"
        if self.lanes.draining:
            return "stopping"
        return "working" if self.lanes.assigned else "joining"

    def facts(self) -> list[LaneFacts]:
        """By partition."""
        return [lane.watch.facts() for lane in self._present()]

    def health(self) -> Health:
        asked = self._surveyed
        worker = WorkerFacts(self.phase, self.waits_for, asked.ends is None or bool(asked.ends), asked.away)
        return judge(worker, self.facts())

    def gauges(self) -> Gauges:
        """Nothing is asked for it: everything is at hand."""
        now, health, log = time.time(), self.health(), self._input_log
        lanes = [
            lane.watch.gauges(None if log is None else log.end_as_fetched(lane.tp), now)
            for lane in self._present()
        ]
        return Gauges(
            health.live, health.ready, lanes, self._surveyed.open_rejections, self._surveyed.replays
        )

    async def keep_surveying(
        self, pool: "asyncpg.Pool[asyncpg.Record]", input_log: InputLog, topic: str
    ) -> None:
        """For ever."""
        self._input_log = input_log
        while True:
            self._surveyed = surveyed = await survey(pool, input_log, topic)
            for lane in self._present():
                end = None if surveyed.ends is None else surveyed.ends.get(lane.tp.partition)
                lane.watch.log_ends_at(end, reading=input_log.reading)
            await asyncio.sleep(_EVERY_SECONDS)

    def _present(self) -> Sequence[Lane]:
        return [] if self.lanes is None else sorted(self.lanes.present, key=lambda lane: lane.tp)
