"""What is known of a lane while it works: when it last gave a sign, how far it is, how old its oldest record is.

The lane tells it, once a batch or a change of state; health, metrics and traces look here. Nothing in it changes what
the lane does.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

from aiokafka import TopicPartition

from worker.answer import Answer
from worker.consumer import Fetched
from worker.health import LaneFacts, LaneState
from worker.metrics import LaneGauges, Metrics
from worker.pipeline import Decided
from worker.record import Record
from worker.retry import cause_of, judge_postgres
from worker.stages import Stage
from worker.tracing import LaneSpans


class LaneWatch:
    """One lane's. `clock`: seconds, never back."""

    def __init__(
        self,
        tp: TopicPartition,
        metrics: Metrics,
        spans: LaneSpans | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tp = tp
        self._metrics = metrics
        self._spans = spans
        self._clock = clock
        self._state: LaneState = "taking_over"
        self._why = self._do = ""
        self._state_since = self._sign = clock()
        self._owns = False
        self._applied: int | None = None
        self._answered: int | None = None
        self._fetched = 0
        self._undecided: int | None = None
        self._unanswered: int | None = None
        self._unread_since: tuple[int, float] | None = None
        self._log_end: int | None = None

    # what the lane tells

    def said(self, state: LaneState, why: str = "", do: str = "") -> None:
        """Its state, as often as it likes: each time is a sign."""
        self._sign = self._clock()
        if state != self._state:
            self._state, self._state_since = state, self._sign
        self._why, self._do = why, do

    def alive(self) -> None:
        """A sign, and nothing else: it still waits for what it has said."""
        self._sign = self._clock()

    def retried(self, error: BaseException) -> None:
        """It takes its partition over again."""
        self._owns = False
        self._metrics.retries.labels(cause_of(error)).inc()
        if self._spans is not None:
            self._spans.forget()

    def taken_over(self, next_to_apply: int, answered: int) -> None:
        """It is its own now; what is fetched from here on is applied."""
        self._owns = True
        self._applied, self._answered, self._fetched = next_to_apply, answered, next_to_apply
        self._undecided = self._unanswered = None
        self._metrics.take_overs.inc()
        self.alive()

    def fetched(self, fetched: Fetched) -> None:
        """It has put these into its inbox."""
        self._fetched = fetched.next_offset
        if fetched.records:
            first = fetched.records[0].timestamp
            self._undecided = first if self._undecided is None else self._undecided
            self._unanswered = first if self._unanswered is None else self._unanswered

    @contextmanager
    def batch(self, records: Sequence[Record], size: int) -> Iterator[None]:
        """It decides these. `size`: bytes, as the inbox counts them."""
        self._metrics.batch_records.observe(len(records))
        self._metrics.batch_bytes.observe(size)
        with nullcontext() if self._spans is None else self._spans.process(records):
            yield

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """A stage of the batch."""
        begun = time.perf_counter()
        try:
            with nullcontext() if self._spans is None else self._spans.stage(stage):
                yield
        except Exception as error:
            self._metrics.stage_failures.labels(stage).inc()
            if stage == "apply" and judge_postgres(error) != "anew":  # `anew` goes through `retried`
                self._metrics.retries.labels(cause_of(error)).inc()
            raise
        finally:
            self._metrics.stage_seconds.labels(stage).observe(time.perf_counter() - begun)

    def decided(self, decided: Decided, arrival: int) -> None:
        """A transaction of Postgres has. `arrival`: of its last record."""
        self._applied = decided.next_offset
        # what comes next arrived then at the earliest
        self._undecided = None if decided.next_offset >= self._fetched else arrival
        self._metrics.decided(decided.applied, decided.duplicates, decided.rejected)
        if self._spans is not None:
            self._spans.decided(decided.next_offset)

    @contextmanager
    def emitting(self, answers: Sequence[Answer], next_offset: int) -> Iterator[None]:
        """A transaction of Kafka."""
        if self._spans is not None:
            self._spans.emits(answers, next_offset)
        with self.stage("emit"):
            yield
        self._metrics.answers.inc(len(answers))
        self._answered = next_offset
        if next_offset >= self._fetched:
            self._unanswered = None
        elif answers and self._unanswered is not None:
            self._unanswered = max(self._unanswered, answers[-1].arrival)
        self.alive()

    # what others tell, and ask

    def log_ends_at(self, end: int | None, *, reading: bool) -> None:
        """What Kafka has just said: the offset after the log's last stable record. None: it has said nothing.

        `reading`: a long batch is being read, nothing is handed over meanwhile."""
        self._log_end = end
        if end is None or reading or end <= self._fetched:
            self._unread_since = None
        elif self._unread_since is None or self._unread_since[0] != self._fetched:
            self._unread_since = (self._fetched, self._clock())

    def facts(self) -> LaneFacts:
        now = self._clock()
        return LaneFacts(
            self.tp.topic,
            self.tp.partition,
            self._state,
            self._why,
            self._do,
            now - self._state_since,
            not self._owns or self._fetched > (self._answered or 0),
            now - self._sign,
            0.0 if self._unread_since is None else now - self._unread_since[1],
        )

    def gauges(self, log_end: int | None, now: float) -> LaneGauges:
        """`log_end`: as a fetch has last said. `now`: seconds since 1970."""
        ends = [end for end in (log_end, self._log_end) if end is not None]
        lag = None if self._answered is None or not ends else max(0, max(ends) - self._answered)
        return LaneGauges(
            self.tp.partition,
            self._state,
            self._clock() - self._state_since,
            self._applied,
            self._answered,
            lag,
            _age(self._undecided, now),
            _age(self._unanswered, now),
        )


def _age(arrival: int | None, now: float) -> float:
    return 0.0 if arrival is None else max(0.0, now - arrival / 1000)
