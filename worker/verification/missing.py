"""Once everything is read: records without an answer, events applied twice, answers that aren't stored as they were sent."""

from worker.verification.context import Context
from worker.verification.digests import position
from worker.verification.ledger import Known, Stored
from worker.verification.received import bare_event


def look_for_what_is_missing(context: Context) -> None:
    """Counts what became of each record, and what is found."""
    report, ledger, log, name = context.report, context.ledger, context.log, context.input
    for number, partition in log.partitions.items():
        answered_to = 0 if partition.another_log else partition.answered_to
        rest = ledger.records_from(number, answered_to)
        if partition.another_log:
            report.not_checked += rest
        else:
            report.pending += rest
        counts = ledger.counts(number, answered_to)
        report.applied += counts.get("applied", 0)
        report.rejected += counts.get("rejected", 0)
        for known in ledger.without_answer(number, answered_to):
            _judge(context, known)
        if not partition.retired_to:
            for offset in ledger.not_stored(number, answered_to, context.horizon):
                report.found("unequal_stored", f"{name}/{number}/{offset}: answered, but nothing is stored")
    for number, offset in ledger.answered_under_two_arrivals():
        report.found("answered_twice", f"{name}/{number}/{offset}: two answers, with different arrivals")
    for number, offset, again, offset_again in ledger.applied_again(context.identity_retention):
        report.found(
            "applied_twice",
            f"{name}/{again}/{offset_again}: applied, the same event as {name}/{number}/{offset}",
        )
    for number, offset in ledger.stored_otherwise():
        if log.is_judged_again(number, offset):
            continue
        report.found("unequal_stored", f"{name}/{number}/{offset}: stored otherwise than it was sent")
    for number, offset in ledger.stored_twice():
        report.found("unequal_stored", f"{name}/{number}/{offset}: stored both as applied and as rejected")


def _judge(context: Context, known: Known) -> None:
    """A record without an answer: a duplicate, one whose answer may be gone, or lost."""
    report = context.report
    stored = context.ledger.stored_at(known.partition, known.offset)
    stored = [one for one in stored if one.arrival >= known.arrival]
    place = f"{context.input}/{known.partition}/{known.offset}"
    if stored:
        if _may_be_gone(context, known, stored):
            report.not_checked += 1
        else:
            report.found("unanswered", f"{place}: {stored[-1].kind}, but no answer")
        return
    match _what_is_known(context, known):
        case "duplicate":
            report.duplicates += 1
        case "other content":
            report.found(
                "unanswered", f"{place}: no answer, and not the content of the event with its identity"
            )
        case "original may be gone":
            report.not_checked += 1
        case _ if context.remaining.may_be_gone(None, known.partition, known.offset, known.arrival):
            report.not_checked += 1
        case _:
            report.found("unanswered", f"{place}: no answer")


def _may_be_gone(context: Context, known: Known, stored: list[Stored]) -> bool:
    return any(
        context.remaining.may_be_gone(one.kind, known.partition, known.offset, known.arrival)
        for one in stored
    )


def _what_is_known(context: Context, known: Known) -> str:
    """Of the event that a record without an answer has brought."""
    ledger, update, retention = context.ledger, known.received.update, context.identity_retention
    if update is None:
        return "no event"
    event = update.event
    if event is None:
        own = position(known.arrival, known.partition, known.offset)
        if update.first is None or update.first >= own:
            return "an event of its own"
        event = bare_event(update.measurement, context.input, update.first)
    near = [
        content
        for arrival, content in ledger.applied_events(event, update.reapply)
        if abs(arrival - known.arrival) < retention
    ]
    if update.content in near:
        return "duplicate"
    if update.reapply and not near:
        # a replay applies it again only where that changes something
        near = [
            content
            for arrival, content in ledger.applied_events(event, b"")
            if abs(arrival - known.arrival) < retention
        ]
        if update.content in near:
            return "duplicate"
    if near:
        return "other content"
    if any(abs(arrival - known.arrival) < retention for arrival in ledger.known_events(event)):
        return "duplicate"  # of a record that isn't there any more, or isn't answered yet: its content isn't known
    partitions = context.log.partitions
    all_there = context.remaining.complete and not any(
        context.log.trimmed(number) or one.retired_to or one.another_log for number, one in partitions.items()
    )
    # what was applied since the horizon is stored
    return (
        "no duplicate"
        if all_there or known.arrival - retention >= context.horizon
        else "original may be gone"
    )
