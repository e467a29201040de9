"""Rejected records sent again, and followed until they are answered.

1. load the newest attempt of each case, and make the record to send
2. mark the cases as requeued, in one committed transaction: killed after it, they aren't sent, and say so
3. send, and wait until all replicas have them
4. follow: a worker decides them, and moves the cases' states itself
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from aiokafka.structs import RecordMetadata

from contracts.cloudevents import UpdateRejected
from worker.case_acts import Actor, Held, hold, last_requeued, mark, note_sent, put_back
from worker.case_list import Case, CaseState, message_of, newest_records, rejected_record
from worker.crash_points import reached
from worker.database import Connection
from worker.errors import DependencyAway
from worker.input_log import read_record
from worker.record import CutBytes, DecodeLimits, Record
from worker.repair import Again, CantRequeue, is_structured, to_send, with_body
from worker.settings import Settings
from worker.sql import queries

_CASES_AT_ONCE = 200
_BYTES_AT_ONCE = 16 * 1024**2
_STALLED_AFTER = 30.0
_FOLLOWED_AT_ONCE = 1_000
_LOOK_EVERY = 0.25


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a record: `applied`, `duplicate`, or the code of its rejection."""

    outcome: str
    revision: int | None = None
    changed: str = ""
    message: str = ""


@dataclass(slots=True)
class Requeued:
    """A case on its way. Neither `sent` nor `refused`: marked, but Kafka hasn't acknowledged it."""

    case: Case
    sent: TopicPartition | None = None
    sent_offset: int = -1
    refused: str | None = None
    """Why it isn't sent."""
    marked: bool = False
    fate: Fate | None = None

    @property
    def place(self) -> str:
        return "" if self.sent is None else f"{self.sent.topic}/{self.sent.partition}/{self.sent_offset}"


@dataclass(slots=True)
class Prepared:
    """A record to send, and what it was made of."""

    item: Requeued
    record: Again
    newest: tuple[int, int]
    held: Held | None = None
    acts: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Requeuing:
    """How it is done. `body`: instead of the one that was received; `again`: also what isn't open."""

    connection: Connection
    settings: Settings
    actor: Actor
    again: bool = False
    body: bytes | None = None

    @property
    def how(self) -> str:
        return "as it was" if self.body is None else "with another body"

    @property
    def limits(self) -> DecodeLimits:
        return DecodeLimits(max_event_bytes=self.settings.worker_max_event_bytes)

    async def prepare(self, items: Sequence[Requeued]) -> list[Prepared]:
        """What can't be sent says so in `refused`. Raises WrongBody, and what Kafka and Postgres raise."""
        rows = await newest_records(self.connection, [item.case for item in items])
        prepared = []
        for item in items:
            row = rows.get((item.case.lane, item.case.offset))
            try:
                if row is None:
                    raise CantRequeue("it isn't there any more")
                if item.case.state != "open" and not self.again:
                    raise CantRequeue(await self._why_not(item.case, item.case.state))
                record = await self._record(row)
            except CantRequeue as why:
                item.refused = str(why)
            else:
                prepared.append(Prepared(item, record, (row["lane"], row["log_offset"])))
        return prepared

    async def _record(self, row: Mapping[str, Any]) -> Again:
        record = rejected_record(row)
        if record.truncated is not None and (
            self.body is None or "left_out" in record.truncated or is_structured(record)
        ):
            record = await self.whole(record, row)
        value = record.value if self.body is None else with_body(record, self.body, self.limits)
        if value is None and record.key is None:
            raise CantRequeue(
                "it has neither key nor value, and Kafka's client sends no such record: discard it"
            )
        return to_send(record, value)

    async def whole(self, record: UpdateRejected, row: Mapping[str, Any]) -> UpdateRejected:
        """A record that isn't stored as a whole, from the input log. Raises CantRequeue where that has it no more."""
        truncated = record.truncated or {}
        name = f"{record.topic}/{record.partition}/{record.offset}"
        found = None
        if row["retired_at"] is None:
            found = await read_record(
                self.settings.bootstrap_servers,
                TopicPartition(record.topic, record.partition),
                record.offset,
                self.limits.max_event_bytes,
            )
        why = None if found is None else _unlike(found, truncated)
        if found is None or why is not None:
            why = why or "it isn't there any more"
            raise CantRequeue(
                f"it isn't stored as a whole (its value has {truncated.get('length', 0):,} bytes) and can't be read from"
                f" the input log at {name}: {why}. Send another body with --patch FILE, or let its source send it again"
            )
        headers = tuple(
            (name, content) for name, content in found.headers if not name.startswith("rejection-")
        )
        return UpdateRejected(
            record.code, record.message, record.violations, record.total, record.topic, record.partition,
            record.offset, record.timestamp, None, found.key, found.value, headers,
        )  # fmt: skip

    async def send(
        self, producer: AIOKafkaProducer, prepared: Sequence[Prepared], advance: Callable[[], None]
    ) -> None:
        """Mark, then send. Raises DependencyAway where Kafka doesn't acknowledge: what was marked stays so."""
        await self._mark(prepared)
        marked = [one for one in prepared if one.held is not None]
        reached("between_act_and_send")
        futures: dict[asyncio.Future[RecordMetadata], Prepared] = {}
        fault = None
        try:
            async with asyncio.timeout(_STALLED_AFTER):
                for one in marked:
                    record = one.record
                    sent = await producer.send(
                        record.topic, key=record.key, value=record.value, headers=list(record.headers)
                    )
                    futures[sent] = one
        except (TimeoutError, KafkaError) as error:
            fault = str(error) or None
        if futures:
            await asyncio.wait(futures, timeout=_STALLED_AFTER)
        fault = await self._note(futures) or fault
        for one in marked:
            if one.item.sent is not None:
                advance()
        if any(one.item.sent is None and one.item.refused is None for one in marked):
            fault = fault or f"nothing acknowledged for {_STALLED_AFTER:.0f} s"
            raise DependencyAway(f"Kafka at {self.settings.bootstrap_servers}: {fault}")

    async def _mark(self, prepared: Sequence[Prepared]) -> None:
        async with self.connection.transaction():
            held = await hold(self.connection, [one.item.case for one in prepared])
            for one in prepared:
                case = one.item.case
                found = held.get(case.first_position)
                if found is None:
                    one.item.refused = "it isn't there any more"
                elif found.state != "open" and not self.again:
                    one.item.refused = await self._why_not(case, found.state)
                elif found.newest != one.newest:
                    one.item.refused = "it was rejected again just now: look at it once more"
                else:
                    one.held = found
            marking = [one for one in prepared if one.held is not None]
            acts = await mark(
                self.connection, [one.held for one in marking if one.held], "requeued", self.actor, self.how
            )
        for one in marking:
            assert one.held is not None
            one.acts = [acts[row] for row in one.held.rows]
            one.item.marked = True

    async def _note(self, futures: Mapping["asyncio.Future[RecordMetadata]", Prepared]) -> str | None:
        """What became of each; returns the first error after which it may or may not have been sent."""
        fault = None
        details: dict[int, str] = {}
        for future, one in futures.items():
            if not future.done():
                future.cancel()
                continue
            error = future.exception()
            if error is None:
                sent = future.result()
                one.item.sent, one.item.sent_offset = TopicPartition(sent.topic, sent.partition), sent.offset
                details.update(dict.fromkeys(one.acts, f"{self.how}, sent as {one.item.place}"))
            elif isinstance(error, MessageSizeTooLargeError) and one.held is not None:
                one.item.refused = f"topic {one.record.topic} doesn't take records of this size"
                details.update(dict.fromkeys(one.acts, f"not sent: {one.item.refused}"))
                await put_back(self.connection, one.held.rows, one.held.state)
            else:
                fault = fault or f"{type(error).__name__}: {error}"
        await note_sent(self.connection, details)
        return fault

    async def _why_not(self, case: Case, state: CaseState) -> str:
        found = await last_requeued(self.connection, case)
        if state != "requeued" or found is None:
            return f"it is {state}: --again sends it all the same"
        at, by, detail = found
        sent = "" if detail and "sent as" in detail else ", but nothing says that it was sent"
        return (
            f"it was requeued at {at.astimezone():%Y-%m-%d %H:%M:%S} by {by}{sent}, and isn't answered yet: --again sends"
            " it once more (an event that was applied meanwhile is a duplicate then)"
        )


def _unlike(found: Record, truncated: Mapping[str, Any]) -> str | None:
    """Why a record of the log isn't the one that was cut so; None where it is."""
    parts = [found.key, found.value, *(content for _, content in found.headers)]
    if any(isinstance(part, CutBytes) for part in parts):
        return "it is larger than is ever admitted"
    if hashlib.sha256(found.value or b"").hexdigest() != truncated.get("sha256"):
        return "another record stands there"
    return None


def in_pieces(items: Iterable[Requeued]) -> Iterator[list[Requeued]]:
    """As many as are loaded at once, in their order."""
    piece: list[Requeued] = []
    size = 0
    for item in items:
        if piece and (len(piece) == _CASES_AT_ONCE or size + item.case.value_bytes > _BYTES_AT_ONCE):
            yield piece
            piece, size = [], 0
        piece.append(item)
        size += item.case.value_bytes
    if piece:
        yield piece


async def follow(
    connection: Connection, items: Sequence[Requeued], decided: Callable[[Requeued], None]
) -> None:
    """Until every one that was sent is decided; each is handed to `decided` then. For ever, where no worker runs."""
    waiting = [item for item in items if item.sent is not None]
    while waiting:
        looked_at = waiting[:_FOLLOWED_AT_ONCE]
        places = [item.sent for item in looked_at if item.sent is not None]
        rows = await connection.fetch(
            queries("rejected.sql")["fates"],
            [place.topic for place in places],
            [place.partition for place in places],
            [item.sent_offset for item in looked_at],
        )
        for row in rows:
            item = looked_at[row["number"]]
            item.fate = _fate(row)
            decided(item)
        # in turn: those of a partition that stands still aren't in the others' way
        undecided = [item for item in looked_at if item.fate is None]
        waiting = waiting[_FOLLOWED_AT_ONCE:] + undecided
        if not rows and waiting:
            await asyncio.sleep(_LOOK_EVERY)


def _fate(row: Mapping[str, Any]) -> Fate:
    if row["revision"] is not None:
        return Fate("applied", row["revision"], row["changed"])
    if row["code"] is not None:
        return Fate(row["code"], message=message_of(row["message"]))
    return Fate("duplicate")
