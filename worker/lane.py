"""One partition: take it over, decide its records in order, send their answers, give it up.

Two loops side by side: while Kafka commits the answers of one batch, Postgres decides the next full one. Whatever goes
wrong ends both, and the lane takes the partition over again, from what Postgres and Kafka know then: there is no
other way to recover.
"""

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import structlog
from aiokafka import TopicPartition

from worker.answer import Answer
from worker.apply import Batch
from worker.connecting import is_cancelled
from worker.consumer import Fetched
from worker.errors import DependencyAway, Fatal, LaneStopped, Superseded, WorkerError
from worker.health import LaneState
from worker.inbox import Inbox
from worker.pipeline import Decided, apply_batch, decode_batch
from worker.retry import as_worker_error, backoff
from worker.sql import queries
from worker.takeover import LaneParts, TakenOver, check_ends, take_over

_IDLE_SECONDS = 1.0
_CHECK_LOG_EVERY = 5
"""Idle seconds: a log that is deleted and made anew, and a broker that is away, just go quiet."""
_SLOW_SECONDS = 3.0
"""What takes longer than this is said: aiokafka retries by itself, for up to half a minute a step."""
_LOCKED = "nothing, where it is short. Else end the transaction that holds the lock: pg_blocking_pids() names its session"
_ANOTHER_LANE = (
    "nothing, where it is short. Else look at the other partition's lane: it waits, or has stopped"
)
_SLOW_KAFKA = (
    "nothing, where it is short. Else see that the brokers are up, and that the answer topics and __transaction_state"
    " have enough replicas in sync"
)

log = structlog.get_logger()


class Lane:
    """One assigned partition, from its assignment to its revocation."""

    def __init__(self, tp: TopicPartition, parts: LaneParts) -> None:
        self.tp = tp
        self.state: LaneState = "taking_over"
        self._said = ""
        self._parts = parts
        self.watch = parts.watch
        self._inbox: Inbox | None = None
        self._draining = asyncio.Event()
        self._progressed = False
        self._log = log.bind(topic=tp.topic, partition=tp.partition)

    def offer(self, fetched: Fetched) -> None:
        """What the consumer has fetched. Only what follows on without a gap counts: anything else is from before a
        seek or an earlier assignment, and the consumer is sent back to where this lane is."""
        inbox = self._inbox
        if inbox is None or inbox.closed:
            return  # not taken over yet: the take-over seeks
        if fetched.error is not None:
            inbox.fail(fetched.error)
        elif fetched.position == inbox.next_offset:
            inbox.put(fetched.records, fetched.next_offset)
            self.watch.fetched(fetched)
        elif self._parts.input_log.is_ours(self.tp):
            self._parts.input_log.seek(self.tp, inbox.next_offset)

    async def run(self) -> None:
        """Until drained (returns) or revoked (cancelled). Raises only what must stop the process: Fatal, a defect."""
        waits = backoff()
        while not self._draining.is_set():
            try:
                await _uncancelled(self._own())
            except Exception as error:
                if is_cancelled():
                    # revoked, and something failed at that: its successor in this process may be reading already
                    raise asyncio.CancelledError from error
                self._inbox = None
                self._parts.input_log.pause(self.tp)
                known = _worth_another_try(error)
                self.watch.retried(error)
                if self._progressed:
                    waits, self._progressed = backoff(), False
                seconds = next(waits)
                self._say("stopped" if isinstance(known, LaneStopped) else "waiting", str(known), known.do)
                await _first_of(self._draining.wait(), asyncio.sleep(seconds))
        self._say("given_up")

    async def _own(self) -> None:
        async with take_over(self.tp, self._parts, self._emit_in_order) as taken:
            await self._work(taken)

    def drain(self) -> bool:
        """Finish what is being decided, answer it, and end. False where nothing is: it may be cancelled at once."""
        self._draining.set()
        if self._inbox is None:
            return False
        self._inbox.close()
        return True

    async def _work(self, taken: TakenOver) -> None:
        settings, input_log, tp = self._parts.settings, self._parts.input_log, self.tp
        inbox = self._inbox = Inbox(
            taken.position.next_to_apply,
            settings.worker_batch_records,
            settings.worker_batch_bytes,
            pause=lambda: input_log.pause(tp),
            resume=lambda: input_log.resume(tp),
        )
        if self._draining.is_set():
            inbox.close()
        input_log.seek(tp, inbox.next_offset)
        input_log.resume(tp)
        self.watch.taken_over(inbox.next_offset, taken.answered)
        # after trouble it is said once a batch has gone through: what was waited for may be in the next record
        if self.state == "taking_over":
            self._say("running", next_to_apply=inbox.next_offset, epoch=taken.position.epoch)
        outbox: asyncio.Queue[Decided | None] = asyncio.Queue(1)
        all_answered = asyncio.Event()  # Kafka has committed whatever is decided
        all_answered.set()

        async def both() -> None:
            async with asyncio.TaskGroup() as loops:
                loops.create_task(_uncancelled(self._decide(taken, inbox, outbox, all_answered)))
                loops.create_task(_uncancelled(self._answer(taken, outbox, all_answered)))

        # A task group asks the task that it is in to cancel itself, and (before Python 3.13) doesn't take it back: from then
        # on a library's CancelledError would look like a revocation, and end the lane without a word. So it has its own.
        await asyncio.create_task(both())
        await self._note_answered(taken)

    async def _decide(
        self,
        taken: TakenOver,
        inbox: Inbox,
        outbox: "asyncio.Queue[Decided | None]",
        all_answered: asyncio.Event,
    ) -> None:
        noted = taken.answered
        idle = 0
        while not inbox.closed:
            if not await inbox.filled(_IDLE_SECONDS):
                if taken.answered == taken.position.next_to_apply:
                    self._say("running")
                if noted < taken.answered:
                    await self._note_answered(taken)
                    noted = taken.answered
                idle += 1
                if idle % _CHECK_LOG_EVERY == 0:
                    await self._check(taken)
                continue
            idle = 0
            # Until the batch before is on its way, and, where little comes, answered: what is decided sooner isn't answered
            # sooner, and more comes meanwhile.
            await outbox.join()
            if not (all_answered.is_set() or inbox.full):
                await _first_of(all_answered.wait(), inbox.until_full())
            async with self._parts.turns.turn():
                if not inbox.closed:
                    await self._decide_batch(taken, inbox, outbox)
        await outbox.put(None)

    async def _decide_batch(
        self,
        taken: TakenOver,
        inbox: Inbox,
        outbox: "asyncio.Queue[Decided | None]",
    ) -> None:
        records, next_offset = inbox.take()
        with self.watch.batch(records, inbox.taken_bytes):
            with self.watch.stage("decode"):
                events = decode_batch(records, taken.position.latest_arrival, self._parts.limits)
            decisions = apply_batch(
                taken.connection,
                taken.position,
                Batch(events, next_offset),
                taken.ground,
                taken.answered,
                self._say_waiting,
                self.watch.stage,
            )
            async for decided in decisions:
                self._say("running")
                self.watch.decided(decided, taken.position.latest_arrival)
                await outbox.put(decided)

    async def _answer(
        self, taken: TakenOver, outbox: "asyncio.Queue[Decided | None]", all_answered: asyncio.Event
    ) -> None:
        while (decided := await outbox.get()) is not None:
            all_answered.clear()
            outbox.task_done()
            await self._emit_in_order(taken, decided.answers, decided.next_offset)
            all_answered.set()
            self._progressed = True

    async def _emit_in_order(self, taken: TakenOver, answers: Sequence[Answer], next_offset: int) -> None:
        """Cut before an answer whose predecessor, through another partition, isn't out yet; wait; go on."""
        waits = backoff(first=0.01, cap=0.5)
        with self._said_if_slow(
            "the answer before it, through another partition, isn't out yet", _ANOTHER_LANE
        ):
            while (blocked := await taken.predecessors.first_blocked(answers)) is not None:
                if blocked > 0:
                    await self._emit(taken, answers[:blocked], answers[blocked].offset)
                    answers = answers[blocked:]
                    waits = backoff(first=0.01, cap=0.5)
                self.watch.alive()
                await asyncio.sleep(next(waits))
        await self._emit(taken, answers, next_offset)

    async def _emit(self, taken: TakenOver, answers: Sequence[Answer], next_offset: int) -> None:
        with (
            self._said_if_slow("Kafka hasn't taken the answers yet", _SLOW_KAFKA),
            self.watch.emitting(answers, next_offset),
        ):
            await taken.emitter.emit(answers, next_offset)
        taken.answered = next_offset

    async def _check(self, taken: TakenOver) -> None:
        row = await taken.connection.fetchrow(queries()["find_lane"], self.tp.topic, self.tp.partition)
        if row is None or (row["lane"], row["epoch"]) != (taken.position.lane, taken.position.epoch):
            raise Superseded("the lane has another owner, or an operator has restarted it")
        await check_ends(self.tp, row, self._parts.input_log)

    async def _note_answered(self, taken: TakenOver) -> None:
        await taken.connection.execute(
            queries()["note_answered"], taken.position.lane, taken.position.epoch, taken.answered
        )

    @contextmanager
    def _said_if_slow(self, why: str, do: str) -> Iterator[None]:
        slow = asyncio.get_running_loop().call_later(_SLOW_SECONDS, self._say, "waiting", why, do)
        try:
            yield
        finally:
            slow.cancel()

    def _say_waiting(self, why: str) -> None:
        self._say("waiting", why, _LOCKED)

    def _say(self, state: LaneState, why: str = "", do: str = "", **facts: object) -> None:
        """One log event a change of state."""
        self.state = state
        self.watch.said(state, why, do)
        if (said := f"{state} {why}") != self._said:
            self._said = said
            self._parts.states.say(self.tp, state, why)
            level = {"waiting": "warning", "stopped": "error"}.get(state, "info")
            getattr(self._log, level)(
                f"lane {state.replace('_', ' ')}",
                **({"why": why} if why else {}),
                **({"do": do} if do else {}),
                **facts,
            )


async def _uncancelled(work: Coroutine[Any, Any, None]) -> None:
    """A CancelledError that nobody asked this task for (a library cancelled a future of its own) is an error like others.

    Left alone it ends a task without a word, and a task group waits for the other one for ever.
    """
    try:
        await work
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        raise DependencyAway("a library has cancelled what it was doing") from None


def _worth_another_try(error: Exception) -> WorkerError:
    """What a lane waits for. Raises what must stop the process: Fatal, or a defect that nobody foresaw."""
    leaves = _leaves(error)
    known = [as_worker_error(leaf) for leaf in leaves]
    for leaf, worker_error in zip(leaves, known, strict=True):
        if worker_error is None or isinstance(worker_error, Fatal):
            raise leaf
    first = known[0]
    assert first is not None
    return first


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for member in error.exceptions for leaf in _leaves(member)]
    return [error]


async def _first_of(*waiting: Coroutine[Any, Any, object]) -> None:
    tasks = [asyncio.ensure_future(one) for one in waiting]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
