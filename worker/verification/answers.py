"""Each answer as it is read: to a record that is there, once, in order, and saying what it has to say."""

from datetime import UTC, datetime, timedelta
from typing import assert_never

from aiokafka import ConsumerRecord, TopicPartition

from worker.verification.answered import (
    Answer,
    NotAnAnswer,
    Place,
    RejectedAnswer,
    UpdatedAnswer,
    rejected_answer,
    updated_answer,
)
from worker.verification.chain import Verdict, follow
from worker.verification.context import Context
from worker.verification.digests import position
from worker.verification.ledger import Known
from worker.verification.received import Received, bare_event

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class AnswerChecks:
    """Told of all answers, in order in each partition of their topics."""

    def __init__(self, context: Context, updated_topic: str) -> None:
        self._context = context
        self._updated_topic = updated_topic

    def take(self, tp: TopicPartition, record: "ConsumerRecord[bytes, bytes]") -> None:
        """One record of an answer topic."""
        report = self._context.report
        self._context.remaining.note(tp, record)
        read = updated_answer if tp.topic == self._updated_topic else rejected_answer
        try:
            answer: Answer = read(record.key, record.value, record.headers)
        except NotAnAnswer as error:
            report.found("stray", f"{tp.topic}/{tp.partition}/{record.offset} isn't an answer: {error}")
            return
        place, of_input = answer.place, answer.place.topic == self._context.input
        if of_input:
            self._context.remaining.note_answer(tp, place.partition, place.offset)
        known = self._context.ledger.record(place.partition, place.offset) if of_input else None
        match = self._context.log.match(place, known) if of_input else "another input's"
        match match:
            case "there":
                assert known is not None
                if self._is_first(answer, of_input=True, matched=True):
                    self._check(tp, answer, known)
            case "gone" | "another input's":
                report.not_checked += of_input
                if self._is_first(answer, of_input=of_input, matched=False) and isinstance(
                    answer, UpdatedAnswer
                ):
                    self._context.ledger.keep_gone(answer.event, place.arrival)
                    self._follow(tp, answer, None)
            case "later":
                pass
            case "stray":
                report.found(
                    "stray", f"{_named(tp, record)} answers {place}@{place.arrival}, which isn't in the log"
                )
            case _:
                assert_never(match)

    def _is_first(self, answer: Answer, *, of_input: bool, matched: bool) -> bool:
        """A second answer to the same record counts as a repeat or is found, and says nothing more."""
        context, place = self._context, answer.place
        body = context.ledger.answered(place)
        if body is None:
            context.ledger.keep_answer(answer, of_input=of_input, matched=matched)
            return True
        context.ledger.keep_repeat(answer)
        if (context.allow_repeats and body == answer.body) or self._is_decided_anew(answer):
            context.report.repeated += 1
        else:
            said = "the same once more" if body == answer.body else "something else"
            context.report.found("answered_twice", f"{place}: two answers, the second one says {said}")
        return False

    def _is_decided_anew(self, answer: Answer) -> bool:
        """An operator has restarted the lane, and the log still had this record: it was judged again."""
        place = answer.place
        partition = self._context.log.partitions.get(place.partition)
        if place.topic != self._context.input or partition is None or place.offset >= partition.retired_to:
            return False
        if self._context.log.is_judged_again(place.partition, place.offset):
            return True
        stored = self._context.ledger.stored_at(place.partition, place.offset)
        return any(one.sent == answer.sent for one in stored)

    def _check(self, tp: TopicPartition, answer: Answer, known: Known) -> None:
        match answer:
            case UpdatedAnswer():
                fault = self._check_updated(tp, answer, known)
            case RejectedAnswer():
                fault = _unlike_received(answer, known.received)
            case _:
                assert_never(answer)
        if fault is not None:
            self._context.report.found("unequal_answers", f"{answer.place}: {fault}")

    def _check_updated(self, tp: TopicPartition, answer: UpdatedAnswer, known: Known) -> str | None:
        place, update = answer.place, known.received.update
        if update is None:
            return "applied, though it isn't an update"
        first = _first_position(place, known)
        event = update.event or bare_event(update.measurement, place.topic, first)
        self._context.ledger.keep_applied(place, event, update)
        fault = answer.fault
        if answer.event != event:
            fault = "its measurement or its cause (ce_causationid, ce_causationsource) isn't the record's"
        elif answer.traceparent != update.traceparent:
            fault = f"traceparent: expected {update.traceparent}, found {answer.traceparent}"
        return fault or self._follow(tp, answer, known)

    def _follow(self, tp: TopicPartition, answer: UpdatedAnswer, known: Known | None) -> str | None:
        """Beside the measurement's answer before it. What the snapshot doesn't know isn't compared with it."""
        context, place = self._context, answer.place
        if not context.log.decided_elsewhere(place):
            return None
        update = None if known is None else known.received.update
        at = (
            position(place.arrival, place.partition, place.offset)
            if known is None
            else _first_position(place, known)
        )
        arrived = _time(place.arrival)
        before = context.ledger.link(tp.partition, answer.measurement)
        stored = [
            one
            for one in context.ledger.stored_at(place.partition, place.offset)
            if place.topic == context.input and one.kind == "applied" and one.arrival == place.arrival
        ]
        of_new_row = any(one.previous is None for one in stored)
        verdict = follow(before, answer, update, at, arrived, first=of_new_row)
        if verdict.out_of_order and not stored and (place.arrival < context.horizon or known is None):
            # nobody knows any more whether the row was deleted and made anew between the two
            verdict = _begun_anew(follow(None, answer, update, at, arrived, first=False))
        context.ledger.keep_link(tp.partition, answer.measurement, verdict.link)
        context.report.not_comparable += not verdict.comparable
        if verdict.out_of_order:
            context.report.found("out_of_order", f"{place}: {answer.measurement} is at {verdict.fault}")
            return None
        return verdict.fault


def _begun_anew(verdict: Verdict) -> Verdict:
    return Verdict(verdict.link, verdict.fault, comparable=False)


def _first_position(place: Place, known: Known) -> bytes:
    """Where the record stood, or an earlier record of the event."""
    own = position(place.arrival, place.partition, place.offset)
    update = known.received.update
    return own if update is None or update.first is None else min(own, update.first)


def _unlike_received(answer: RejectedAnswer, received: Received) -> str | None:
    if received.update is not None and answer.code in ("empty_event", "invalid_json"):
        return f"rejected as {answer.code}, though it is JSON"
    if answer.truncated is None:
        whole = (answer.value, answer.length) == (received.value, received.length)
        return None if whole and answer.rest == received.rest else "rejected, but not as it was received"
    stated = answer.truncated.get("length"), answer.truncated.get("sha256")
    if stated != (max(received.length, 0), received.value.hex()):
        return "rejected and cut, but rejection-truncated isn't true of the record"
    if "left_out" not in answer.truncated and answer.rest != received.rest:
        return "rejected, but its key or headers aren't those that were received"
    return None


def _time(arrival: int) -> str:
    """As `updated_at` has it; before all times where it can't be expressed."""
    try:
        return (_EPOCH + timedelta(milliseconds=arrival)).isoformat(timespec="microseconds")[:-6] + "Z"
    except OverflowError:
        return ""


def _named(tp: TopicPartition, record: "ConsumerRecord[bytes, bytes]") -> str:
    return f"{tp.topic}/{tp.partition}/{record.offset}"
