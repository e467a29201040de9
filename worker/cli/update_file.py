"""Rows of a file → measurement updates, each with what is wrong with it.

Bounded memory: a row at a time, and 16 bytes for each measurement.
"""

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

from contracts.cloudevents import Message, bare_update, binary_update, structured_update
from contracts.events import TRACEPARENT, Violation
from contracts.json_values import canonical, deeper_than, shortened
from contracts.patch import violations_of
from worker.cli.update_rows import MAX_DEPTH, Row

Form = Literal["binary", "structured", "bare"]

_NAMESPACE = uuid.UUID("5e7f3b1c-52b1-4bb0-8a3e-0d6f3d9f8c11")


@dataclass(frozen=True, slots=True)
class Rules:
    """How rows become updates."""

    source: str
    batch: str
    form: Form
    max_event_bytes: int


class Updates:
    """Makes updates of rows, in the file's order. One for each pass over the file.

    An id that the row doesn't give is made of source, batch, measurement and *everything the file says about this
    measurement up to here*. So the same file again is all duplicates; rows added at its end are new; and after a row
    that was mended all later ones of its measurement are new, too: they must come after it again, or the mended one
    would be the last word.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._said: dict[str, bytes] = {}

    def message(self, row: Row) -> Message | None:
        """The record to send. None where the row can't be made one: `violations` says why."""
        if row.violations or envelope_faults(row, self._rules.form):
            return None
        attributes = dict(row.attributes)
        source = str(attributes.get("source", self._rules.source))
        id_ = str(attributes["id"]) if "id" in attributes else None
        revision = int(attributes["expectedrevision"]) if "expectedrevision" in attributes else None
        if self._rules.form == "bare":
            message = bare_update(row.measurement_id, row.patch)
            if TRACEPARENT in attributes:
                message.headers.append((TRACEPARENT, attributes[TRACEPARENT].encode()))
            return message
        build = structured_update if self._rules.form == "structured" else binary_update
        return build(
            row.measurement_id,
            row.patch,
            id=id_ or self._next_id(row, source, revision),
            source=source,
            expected_revision=revision,
            organization_id=attributes.get("organizationid"),
            traceparent=attributes.get(TRACEPARENT),
        )

    def _next_id(self, row: Row, source: str, revision: int | None) -> str:
        said = blake2b(self._said.get(row.measurement_id, b""), digest_size=16)
        said.update(canonical([row.patch, revision, row.attributes.get("organizationid")]))
        self._said[row.measurement_id] = said.digest()
        parts = [source, self._rules.batch, row.measurement_id, said.hexdigest()]
        return str(uuid.uuid5(_NAMESPACE, canonical(parts).decode()))


def violations(row: Row, message: Message | None, rules: Rules) -> list[Violation]:
    """Everything for which the worker would reject it whatever the database holds; none where it is right."""
    found = row.violations + envelope_faults(row, rules.form)
    if row.readable:
        found += violations_of(row.patch)[0]
    if message is not None and len(message.value) > rules.max_event_bytes:
        expected = f"at most {rules.max_event_bytes:,} bytes (WORKER_MAX_EVENT_BYTES)"
        found.append(Violation("$", expected, f"{len(message.value):,} bytes"))
    if message is not None and deeper_than(MAX_DEPTH, message.value):
        found.append(Violation("$", f"objects and lists nested at most {MAX_DEPTH} deep", "nested deeper"))
    return found


def envelope_faults(row: Row, form: Form) -> list[Violation]:
    """What is wrong beside the patch."""
    if not row.readable:
        return []
    faults = []
    if not _is_identifier(row.measurement_id):
        faults.append(
            Violation(
                "measurement_id", "a string that isn't empty, without U+0000", shortened(row.measurement_id)
            )
        )
    for name, value in row.attributes.items():
        if form == "bare" and name != TRACEPARENT:
            faults.append(Violation(name, "none: a bare event has no attributes", shortened(value)))
        elif name == "expectedrevision":
            digits = str(value) if type(value) in (int, str) else ""
            if not (digits.isascii() and digits.isdigit() and len(digits) <= 19 and int(digits) < 2**63):
                faults.append(Violation(name, "a revision: decimal digits, 0 to 2^63-1", shortened(value)))
        elif not _is_identifier(value):
            faults.append(Violation(name, "a string that isn't empty, without U+0000", shortened(value)))
    return faults


def _is_identifier(value: Any) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


def describe(line: int, faults: Iterable[Violation]) -> Iterator[str]:
    """`line 3: $.test_setup.channel_number: expected an integer …, found "25"`."""
    for fault in faults:
        yield f"line {line}: {fault.path}: expected {fault.expected}, found {canonical(fault.found).decode()}"
