"""One measurement's answers, one after the other: is each the one before it, with its own patch? Naive, and pure.

Others write measurements, too. Where they change a patchable field, a trigger gives the row a revision: a gap between two
answers' revisions says that fields may differ, and positions be moved, by no event. Other columns they change without a
trace, so of those nothing is expected. What isn't known is never held against an answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from worker.verification.answered import UpdatedAnswer
from worker.verification.received import PATCHABLE, ReceivedUpdate

NOTHING_YET = b""
"""Older than every position."""


@dataclass(frozen=True, slots=True)
class Link:
    """A measurement as its last answer leaves it."""

    revision: int
    fields: tuple[bytes, ...]
    others: bytes
    updated_at: str
    written: tuple[bytes | None, ...]
    """Position that wrote each field; None where that isn't known."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer makes of the chain."""

    link: Link | None
    """None: this answer doesn't tell how it leaves the measurement."""
    fault: str | None = None
    out_of_order: bool = False
    comparable: bool = True


UNKNOWN: tuple[bytes | None, ...] = (None,) * len(PATCHABLE)
UNWRITTEN: tuple[bytes | None, ...] = (NOTHING_YET,) * len(PATCHABLE)


def follow(
    before: Link | None,
    answer: UpdatedAnswer,
    update: ReceivedUpdate | None,
    at: bytes,
    arrived: str,
    first: bool,
) -> Verdict:
    """`update`: what was answered, None where it isn't in the log any more. `at`: the position with which its fields are
    stamped. `arrived`: its arrival as `updated_at` has it. `first`: no event was applied to this row before; an answer
    before it is of another row of that id, which somebody has deleted."""
    changed, fields = answer.changed, answer.fields
    if fields is None:
        return Verdict(None, comparable=False)
    fault = _wrong_in_itself(answer, update, arrived)
    if first:
        before = None
    if before is None:
        written = UNWRITTEN if first and answer.revision == bool(changed) else UNKNOWN
        gap = False
    elif answer.revision < before.revision:
        return Verdict(before, f"revision {answer.revision} after {before.revision}", out_of_order=True)
    else:
        expected = before.revision + bool(changed)
        gap = answer.revision > expected
        if answer.revision < expected:
            fault = fault or f"{','.join(changed)} changed, but the revision stays at {before.revision}"
        if not gap:
            fault = fault or _unlike(before.fields, answer)
        written = UNKNOWN if gap else before.written
    if update is None:
        written = UNKNOWN
    else:
        fault = fault or _late_or_not(fields, changed, update, at, written)
        written = _moved(written, changed, update, at)
    comparable = before is None or not (
        gap or answer.others != before.others or answer.updated_at != _updated_at(before, changed, arrived)
    )
    return Verdict(
        Link(answer.revision, fields, answer.others, answer.updated_at, written), fault, comparable=comparable
    )


def _updated_at(before: Link, changed: Sequence[str], arrived: str) -> str:
    return max(before.updated_at, arrived) if changed else before.updated_at


def _wrong_in_itself(answer: UpdatedAnswer, update: ReceivedUpdate | None, arrived: str) -> str | None:
    """What holds whatever the measurement was before."""
    changed = answer.changed
    if list(changed) != [name for name in PATCHABLE if name in changed]:
        return f"changed: expected some of {','.join(PATCHABLE)}, in this order, found {','.join(changed)}"
    if changed and answer.revision < 1:
        return f"{','.join(changed)} changed, but the revision is {answer.revision}"
    if changed and answer.updated_at < arrived:
        return f"updated_at {answer.updated_at} is before the record's arrival, {arrived}"
    if update is not None:
        assert answer.fields is not None
        for name, sent, found in zip(PATCHABLE, update.fields, answer.fields, strict=True):
            if name in changed and sent != found:
                return f"{name} changed, to another value than the patch's"
    return None


def _unlike(before: Sequence[bytes], answer: UpdatedAnswer) -> str | None:
    assert answer.fields is not None
    for name, was, found in zip(PATCHABLE, before, answer.fields, strict=True):
        if name in answer.changed and found == was:
            return f"{name} is said to have changed, but is what it was"
        if name not in answer.changed and found != was:
            return f"{name} isn't what it was, but isn't said to have changed"
    return None


def _late_or_not(
    fields: Sequence[bytes],
    changed: Sequence[str],
    update: ReceivedUpdate,
    at: bytes,
    written: Sequence[bytes | None],
) -> str | None:
    for name, sent, found, last in zip(PATCHABLE, update.fields, fields, written, strict=True):
        if sent is None or last is None:
            continue
        if at < last and name in changed:
            return f"{name} changed, though something newer has written it: the event is late"
        if at >= last and found != sent:
            return f"{name} isn't the patch's, though nothing newer has written it"
    return None


def _moved(
    written: Sequence[bytes | None], changed: Sequence[str], update: ReceivedUpdate, at: bytes
) -> tuple[bytes | None, ...]:
    return tuple(
        at if sent is not None and (name in changed or (last is not None and last <= at)) else last
        for name, sent, last in zip(PATCHABLE, update.fields, written, strict=True)
    )
