"""A day of the lab's cyclers: updates as their integrations send them, and what must become of each.

What must become of them is told by a bookkeeping of a few lines (`_Book`) that shares nothing with the worker's own
`plan`: a demo that asked the worker what to expect would always be content.
"""

import random
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import orjson

from contracts.cloudevents import Message, bare_update, binary_update, structured_update
from contracts.events import RejectionCode
from worker.lab import exports
from worker.lab.exports import ARBIN, BIOLOGIC, LIMS, MACCOR, NEWARE, Integration
from worker.lab.measurements import BEGAN, Measurement, lab_id, measurements

Outcome = Literal["applied", "duplicate"] | RejectionCode
Patch = dict[str, Any]

FEWEST = 60
"""Below this not every kind of update has its place."""


@dataclass(frozen=True, slots=True)
class LabUpdate:
    """One record to publish, and what must become of it."""

    number: int
    integration: str
    about: str
    message: Message
    identity: tuple[str, str] | None
    """CloudEvents source and id; None for a bare event, and where there is none to be read."""
    outcome: Outcome
    changed: tuple[str, ...] = ()
    repairs: int | None = None
    """Number of the rejected update that this one is, repaired: it needs that one's `requeued-from`."""


@dataclass(slots=True)
class _Book:
    """What stands in one measurement after the updates so far."""

    measurement: Measurement
    values: Patch = field(default_factory=dict)
    written_by: dict[str, int] = field(default_factory=dict)
    revision: int = 0

    def apply(self, patch: Patch, at: int) -> tuple[str, ...]:
        """Names of the fields that change."""
        changed = []
        for name in ("name", "protocol", "test_setup", "notes", "properties"):
            if name not in patch or (name == "name" and patch[name] is None):
                continue
            if self.written_by.get(name, -1) > at:
                continue
            self.written_by[name] = at
            if self.values.get(name) != patch[name]:
                self.values[name] = patch[name]
                changed.append(name)
        self.revision += bool(changed)
        return tuple(changed)


def lab_updates(count: int = 400, *, seed: int = 1, run: str = "") -> list[LabUpdate]:
    """`count` updates in the order in which they are to be published (at least `FEWEST`).

    run: makes the events' ids those of one run, so that a second run on the same database isn't all duplicates.
    """
    return _Day(max(count, FEWEST), seed, run).updates()


def burst(count: int, *, seed: int = 1, run: str = "") -> list[LabUpdate]:
    """Small binary updates, each of which changes the notes: for a look at the throughput."""
    rows = [row for row in measurements(seed) if row.measurement_type == "time_series"]
    found = []
    for number in range(count):
        row, cycle = rows[number % len(rows)], number // len(rows) + 1
        identity = (NEWARE.source, lab_id(run, "burst", str(number)))
        patch = {"notes": f"Cycle {cycle}: {row.capacity_mah * 0.9995**cycle:.4f} mAh at 25 °C"}
        message = binary_update(row.id, patch, source=identity[0], id=identity[1])
        found.append(LabUpdate(number, NEWARE.name, "cycle", message, identity, "applied", ("notes",)))
    return found


class _Day:
    def __init__(self, count: int, seed: int, run: str) -> None:
        self._count = count
        self._run = run
        self._chance = random.Random(f"updates {seed}")
        self._books = [_Book(row, _values(row)) for row in measurements(seed)]
        self._series = [book for book in self._books if book.measurement.measurement_type == "time_series"]
        self._properties = [book for book in self._books if book.measurement.measurement_type == "properties"]
        self._found: list[LabUpdate] = []
        self._repairs: list[tuple[int, _Book, Integration, Patch, str]] = []
        self._kept: _Book | None = None
        """Nobody moves its channel before the repair of its first update has come."""
        self._sent: list[tuple[LabUpdate, _Book, Patch]] = []
        """What a producer may send again: applied CloudEvents that named no revision."""

    def updates(self) -> list[LabUpdate]:
        """The odd ones stand evenly among the others, each kind at least once; repairs come last."""
        odd = [
            self._not_json, self._again, self._unknown_field, self._to_be_repaired, self._expected_revision,
            self._again_in_another_form, self._text_for_a_number, self._properties_on_time_series,
            self._other_organization, self._id_reused, self._unknown_measurement, self._revision_conflict,
            self._again, self._no_value, self._nothing_new, self._no_id, self._too_large, self._again,
        ]  # fmt: skip
        repairs = 2
        ordinary = self._count - repairs
        rounds = max(1, self._count // 200)
        every = max(2, ordinary // (len(odd) * rounds + 1))
        turn = 0
        number = 0
        while len(self._found) < ordinary:
            number += 1
            if number % every == 0 and turn < len(odd) * rounds and self._sent:
                turn += 1
                # one that is too large is enough
                if (kind := odd[(turn - 1) % len(odd)]) != self._too_large or turn <= len(odd):
                    kind()
                    continue
            self._ordinary()
        for repair in self._repairs[:repairs]:
            self._repaired(*repair)
        while len(self._found) < self._count:
            self._ordinary()
        return self._found

    # What is usual ------------------------------------------------------------------------------------------

    def _ordinary(self) -> None:
        # Some measurements are busier than others: their histories are worth a look.
        book = self._series[min(self._chance.randrange(len(self._series)), self._chance.randrange(12))]
        integration = self._chance.choice((BIOLOGIC, BIOLOGIC, ARBIN, MACCOR, NEWARE, NEWARE, LIMS))
        if integration is LIMS:
            book = self._chance.choice(self._properties)
            self._send(integration, book, "inspection", self._inspection(book))
        elif book is not self._kept and ("test_setup" not in book.written_by or self._chance.random() < 0.12):
            self._send(integration, book, "started", self._start(integration, book))
        else:
            self._send(integration, book, *self._progress(book))

    def _start(self, integration: Integration, book: _Book) -> Patch:
        row = book.measurement
        cell = row.name.partition(" ")[0]
        kind = (
            "formation" if "formation" in row.name else self._chance.choice(("ageing", "rate test", "GITT"))
        )
        if kind == "ageing" and integration is MACCOR:
            kind = "rate test"  # a thousand cycles, written out
        definition, ambient = exports.definition(kind, cell, row.capacity_mah, integration), 25
        return {
            "protocol": {"name": kind, "ambient_temperature_degc": ambient, "definition": definition},
            "test_setup": exports.setup(integration, self._chance),
        }

    def _progress(self, book: _Book) -> tuple[str, Patch]:
        match self._chance.randrange(10 if book is not self._kept else 3):
            case 0:
                return "cycle table", {
                    "notes": exports.cycle_table(
                        book.measurement.capacity_mah, self._chance.randrange(100, 600), self._chance
                    )
                }
            case 1:
                return "notes cleared", {"notes": None}
            case 2:
                name = book.measurement.name
                return "renamed", {"name": f"{name} · run {self._chance.randrange(2, 9)}"}
            case 3:
                before: Patch = book.values.get("test_setup") or {}
                moved = {**before, "channel_number": self._chance.randrange(1, 65)}
                return "moved to another channel", {"test_setup": moved}
            case _:
                return "cycle finished", {
                    "notes": exports.cycle_note(book.measurement.capacity_mah, self._chance)
                }

    def _inspection(self, book: _Book) -> Patch:
        return {"properties": exports.inspection(book.values.get("properties") or {}, self._chance)}

    # What is odd --------------------------------------------------------------------------------------------

    def _again(self) -> None:
        """A producer that didn't see the acknowledgement."""
        update, _, _ = self._chance.choice(self._sent)
        self._add(
            update.integration, f"{update.about} (sent again)", update.message, update.identity, "duplicate"
        )

    def _again_in_another_form(self) -> None:
        """Through a gateway: structured what was binary, or the other way round."""
        update, book, patch = self._chance.choice(self._sent)
        assert update.identity is not None
        source, id_ = update.identity
        was_binary = any(name == "ce_id" for name, _ in update.message.headers)
        build = structured_update if was_binary else binary_update
        message = build(book.measurement.id, patch, id=id_, source=source)
        about = f"{update.about} (again, in another form)"
        self._add(update.integration, about, message, update.identity, "duplicate")

    def _id_reused(self) -> None:
        """A counter that began again after a restart."""
        update, book, _ = self._chance.choice(self._sent)
        assert update.identity is not None
        source, id_ = update.identity
        message = binary_update(book.measurement.id, {"notes": "Channel restarted"}, id=id_, source=source)
        self._add(update.integration, "an id used twice", message, update.identity, "event_id_reused")

    def _expected_revision(self) -> None:
        book = self._chance.choice(self._properties)
        patch = self._inspection(book)
        self._send(LIMS, book, "inspection, if unchanged", patch, expected_revision=book.revision)

    def _revision_conflict(self) -> None:
        book = self._series[0]
        patch = {"notes": "Reviewed: capacity fade within limits"}
        self._reject(
            ARBIN,
            book,
            "review of an old state",
            patch,
            "revision_conflict",
            expected_revision=book.revision + 3,
        )

    def _nothing_new(self) -> None:
        book = self._chance.choice(
            [book for book in self._series if book.values.get("test_setup") and book is not self._kept]
        )
        self._send(NEWARE, book, "the same setup", {"test_setup": book.values["test_setup"]})

    def _not_json(self) -> None:
        value = b"Rec#,Cyc#,Step,TestTime,Amp-hr,Watt-hr,Amps,Volts\r\n1,0,1,0.000,0.0000,0.0000,0.00000,3.3641\r\n"
        message = Message(self._chance.choice(self._series).measurement.id.encode(), value, [])
        self._add(MACCOR.name, "a CSV export", message, None, "invalid_json")

    def _unknown_field(self) -> None:
        book = self._chance.choice(self._series)
        self._reject(
            NEWARE, book, "a field that doesn't exist", {"channel": 12, "note": "ok"}, "invalid_patch"
        )

    def _text_for_a_number(self) -> None:
        book = self._chance.choice(self._series)
        setup = {**exports.setup(BIOLOGIC, self._chance), "channel_number": "25"}
        self._reject(BIOLOGIC, book, "a channel as text", {"test_setup": setup}, "invalid_patch")

    def _properties_on_time_series(self) -> None:
        book = self._chance.choice(self._series)
        patch = {"properties": {"thickness": {"value": 0.52, "unit": "mm"}}}
        self._reject(LIMS, book, "properties of a time series", patch, "properties_not_allowed")

    def _unknown_measurement(self) -> None:
        identity = self._identity(ARBIN)
        unknown = lab_id("deleted", str(len(self._found)))
        message = structured_update(unknown, {"notes": "end of test"}, source=identity[0], id=identity[1])
        self._add(ARBIN.name, "a measurement that isn't there", message, identity, "measurement_not_found")

    def _other_organization(self) -> None:
        book = self._series[-1]
        other = next(
            other.measurement.organization_id
            for other in self._books
            if other.measurement.organization_id != book.measurement.organization_id
        )
        self._reject(
            BIOLOGIC,
            book,
            "another organization's",
            {"notes": "mine"},
            "measurement_not_found",
            organization_id=other,
        )

    def _no_value(self) -> None:
        key = self._chance.choice(self._series).measurement.id.encode()
        self._add(MACCOR.name, "no value", Message(key, b"", []), None, "empty_event")

    def _no_id(self) -> None:
        book = self._chance.choice(self._series)
        message = binary_update(book.measurement.id, {"notes": "ok"}, id="", source=NEWARE.source)
        headers = [(name, value) for name, value in message.headers if name != "ce_id"]
        self._add(
            NEWARE.name, "an event without id", message._replace(headers=headers), None, "invalid_event"
        )

    def _too_large(self) -> None:
        book = self._chance.choice(self._series)
        table = exports.cycle_table(book.measurement.capacity_mah, 9_000, self._chance)
        patch = {"notes": table + table[: 1_200_000 - len(table)] if len(table) < 1_200_000 else table}
        self._reject(NEWARE, book, "a megabyte of notes", patch, "too_large")

    def _to_be_repaired(self) -> None:
        """Rejected for its channel, and overtaken while somebody repairs it: the first one in part, the second wholly."""
        book = self._series[len(self._repairs) % 2]
        patch: Patch = {
            "notes": "Before the weekend: channel 25, 21.5 °C",
            "test_setup": {**exports.setup(BIOLOGIC, self._chance), "channel_number": "25"},
        }
        number = len(self._found)
        identity = self._reject(BIOLOGIC, book, "a channel as text", patch, "invalid_patch")
        self._send(
            ARBIN,
            book,
            "cycle finished",
            {"notes": exports.cycle_note(book.measurement.capacity_mah, self._chance)},
        )
        if not self._repairs:
            self._kept = book
        elif len(self._repairs) == 1:
            self._send(ARBIN, book, "set up", {"test_setup": exports.setup(ARBIN, self._chance)})
        repaired = {**patch, "test_setup": {**patch["test_setup"], "channel_number": 25}}
        self._repairs.append((number, book, BIOLOGIC, repaired, identity[1]))

    def _repaired(self, number: int, book: _Book, integration: Integration, patch: Patch, id_: str) -> None:
        message = binary_update(book.measurement.id, patch, id=id_, source=integration.source)
        changed = book.apply(patch, number)
        self._add(
            integration.name, "repaired, late", message, (integration.source, id_), "applied", changed, number
        )

    # How they are sent --------------------------------------------------------------------------------------

    def _identity(self, integration: Integration) -> tuple[str, str]:
        return integration.source, lab_id(self._run, "event", str(len(self._found)))

    def _send(
        self,
        integration: Integration,
        book: _Book,
        about: str,
        patch: Patch,
        expected_revision: int | None = None,
    ) -> None:
        """An update that is applied."""
        identity = None if integration.form == "bare" else self._identity(integration)
        message = self._message(integration, book, patch, identity, expected_revision)
        changed = book.apply(patch, len(self._found))
        update = self._add(integration.name, about, message, identity, "applied", changed)
        if identity is not None and expected_revision is None:
            self._sent.append((update, book, patch))

    def _reject(
        self,
        integration: Integration,
        book: _Book,
        about: str,
        patch: Patch,
        code: RejectionCode,
        expected_revision: int | None = None,
        organization_id: str | None = None,
    ) -> tuple[str, str]:
        identity = self._identity(integration)
        message = self._message(integration, book, patch, identity, expected_revision, organization_id)
        self._add(integration.name, about, message, identity, code)
        return identity

    def _message(
        self,
        integration: Integration,
        book: _Book,
        patch: Patch,
        identity: tuple[str, str] | None,
        expected_revision: int | None = None,
        organization_id: str | None = None,
    ) -> Message:
        row = book.measurement
        if identity is None:
            return bare_update(row.id, patch)
        build = structured_update if integration.form == "structured" else binary_update
        return build(
            row.id,
            patch,
            source=identity[0],
            id=identity[1],
            expected_revision=expected_revision,
            organization_id=organization_id or (row.organization_id if integration is LIMS else None),
            time=BEGAN + timedelta(days=30, seconds=37 * len(self._found)),
        )

    def _add(
        self,
        integration: str,
        about: str,
        message: Message,
        identity: tuple[str, str] | None,
        outcome: Outcome,
        changed: tuple[str, ...] = (),
        repairs: int | None = None,
    ) -> LabUpdate:
        update = LabUpdate(len(self._found), integration, about, message, identity, outcome, changed, repairs)
        self._found.append(update)
        return update


def _values(row: Measurement) -> Patch:
    # as JSON has them: what is written later may share parts with what is compared
    return dict(orjson.loads(orjson.dumps(row.patchable())))
