"""What is compared, in a temporary database on disk: memory stays bounded however long the logs are.

SQLite's own temporary database: its file has no name any more once it is open, so nothing is left behind, whatever
happens. It lies in SQLITE_TMPDIR, TMPDIR or /var/tmp, and takes about 400 bytes a record.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from worker.verification.answered import Answer, Kind, Place, UpdatedAnswer
from worker.verification.chain import Link
from worker.verification.received import Received, ReceivedUpdate

_SIZE = 16  # of a digest

_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA cache_size = -49152;

CREATE TABLE records (
    partition INTEGER, offset INTEGER, arrival INTEGER, value BLOB, length INTEGER, rest BLOB,
    measurement TEXT, event BLOB, reapply BLOB, content BLOB, first BLOB, patched INTEGER, fields BLOB, traceparent TEXT,
    PRIMARY KEY (partition, offset)) WITHOUT ROWID;

-- of a record that is answered again `sent` is that of its last answer. Partition -1: of another input topic
CREATE TABLE answers (
    id BLOB PRIMARY KEY, partition INTEGER, offset INTEGER, arrival INTEGER, matched INTEGER, kind TEXT, body BLOB,
    sent BLOB) WITHOUT ROWID;

-- events that were applied, by the answers to records that are in the log
CREATE TABLE applied (event BLOB, reapply BLOB, arrival INTEGER, content BLOB, partition INTEGER, offset INTEGER);

-- likewise, of records that aren't: what they were is known to their answers only
CREATE TABLE gone (event BLOB, arrival INTEGER);

CREATE TABLE stored (
    partition INTEGER, offset INTEGER, arrival INTEGER, lane INTEGER, kind TEXT, sent BLOB, event BLOB,
    previous_lane INTEGER, previous_offset INTEGER, answered INTEGER);

CREATE TABLE links (
    partition INTEGER, measurement TEXT, revision INTEGER, fields BLOB, others BLOB, updated_at TEXT, written BLOB,
    PRIMARY KEY (partition, measurement)) WITHOUT ROWID;
"""

# Made when all is in: quicker than to keep them up. INDEXED BY makes a query fail that comes too early, instead of
# reading a table for each record.
_STORED_INDEXES = """
CREATE INDEX stored_by_place ON stored (partition, offset);
CREATE INDEX stored_by_previous ON stored (previous_lane, previous_offset) WHERE previous_lane IS NOT NULL;
CREATE INDEX stored_by_event ON stored (event) WHERE event IS NOT NULL;
"""

_ANSWER_INDEXES = """
CREATE INDEX answers_by_place ON answers (partition, offset);
CREATE INDEX applied_by_event ON applied (event, reapply, arrival);
CREATE INDEX gone_by_event ON gone (event);
"""


@dataclass(frozen=True, slots=True)
class Stored:
    """A row of applied_updates or rejected_updates of the input's lanes."""

    partition: int
    offset: int
    arrival: int
    lane: int
    kind: Kind
    sent: bytes
    event: bytes | None
    previous: tuple[int, int] | None
    """(lane, offset) of the measurement's answer before it."""
    answered: bool
    """Known to be."""


@dataclass(frozen=True, slots=True)
class Known:
    """A record of the input, and its arrival: never less than what is said here."""

    partition: int
    offset: int
    arrival: int
    received: Received


class Ledger:
    """A context manager. Raises sqlite3.Error (the disk is full)."""

    def __enter__(self) -> Self:
        self._db = sqlite3.connect("", isolation_level=None)
        self._run(_TABLES)
        self._db.execute("BEGIN")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    # Kept ---------------------------------------------------------------------------------------------------

    def keep_records(self, records: Iterable[Known]) -> None:
        self._db.executemany(
            "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", map(_record_row, records)
        )

    def keep_stored(self, rows: Iterable[Stored]) -> None:
        self._db.executemany(
            "INSERT INTO stored VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    row.partition, row.offset, row.arrival, row.lane, row.kind, row.sent, row.event,
                    *(row.previous or (None, None)), row.answered,
                )
                for row in rows
            ),
        )  # fmt: skip

    def all_stored(self) -> None:
        """From here on they are asked for."""
        self._run(_STORED_INDEXES)

    def keep_answer(self, answer: Answer, *, of_input: bool, matched: bool) -> None:
        """The first one to a record; `of_input`: of this input topic, `matched`: it is in the log."""
        place = answer.place
        kind = "applied" if isinstance(answer, UpdatedAnswer) else "rejected"
        self._db.execute(
            "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                place.id, place.partition if of_input else -1, place.offset, place.arrival, matched, kind, answer.body,
                answer.sent,
            ),
        )  # fmt: skip

    def keep_repeat(self, answer: Answer) -> None:
        self._db.execute("UPDATE answers SET sent = ? WHERE id = ?", (answer.sent, answer.place.id))

    def keep_applied(self, place: Place, event: bytes, update: ReceivedUpdate) -> None:
        self._db.execute(
            "INSERT INTO applied VALUES (?, ?, ?, ?, ?, ?)",
            (event, update.reapply, place.arrival, update.content, place.partition, place.offset),
        )

    def keep_gone(self, event: bytes, arrival: int) -> None:
        """An event whose record isn't in the log any more."""
        self._db.execute("INSERT INTO gone VALUES (?, ?)", (event, arrival))

    def all_answers(self) -> None:
        """From here on they are asked for by place."""
        self._run(_ANSWER_INDEXES)

    # Asked for ----------------------------------------------------------------------------------------------

    def record(self, partition: int, offset: int) -> Known | None:
        row = self._db.execute(
            "SELECT * FROM records WHERE partition = ? AND offset = ?", (partition, offset)
        ).fetchone()
        return None if row is None else _known(row)

    def answered(self, place: Place) -> bytes | None:
        """Digest of the body of the first answer to this record, None where there was none so far."""
        row = self._db.execute("SELECT body FROM answers WHERE id = ?", (place.id,)).fetchone()
        return None if row is None else row[0]

    def stored_at(self, partition: int, offset: int) -> list[Stored]:
        """One for each lane that had a record there."""
        rows = self._db.execute(
            "SELECT * FROM stored INDEXED BY stored_by_place WHERE partition = ? AND offset = ?",
            (partition, offset),
        )
        return [
            Stored(
                number, at, arrival, lane, kind, sent, event, before and (before, before_at), bool(answered)
            )
            for number, at, arrival, lane, kind, sent, event, before, before_at, answered in rows
        ]

    def has_successor(self, lane: int, offset: int) -> bool:
        """Is there an answer that names this one as the measurement's answer before it?"""
        return self._exists(
            "SELECT EXISTS (SELECT 1 FROM stored WHERE previous_lane = ? AND previous_offset = ?)",
            lane,
            offset,
        )

    def link(self, partition: int, measurement: str) -> Link | None:
        """A measurement's last answer in this partition of the answers' topic."""
        row = self._db.execute(
            "SELECT revision, fields, others, updated_at, written FROM links WHERE partition = ? AND measurement = ?",
            (partition, measurement),
        ).fetchone()
        if row is None:
            return None
        revision, fields, others, updated_at, written = row
        return Link(revision, tuple(_pieces(fields)), others, updated_at, _positions(written))

    def keep_link(self, partition: int, measurement: str, link: Link | None) -> None:
        if link is None:
            self._db.execute(
                "DELETE FROM links WHERE partition = ? AND measurement = ?", (partition, measurement)
            )
            return
        self._db.execute(
            "REPLACE INTO links VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                partition, measurement, link.revision, b"".join(link.fields), link.others, link.updated_at,
                _packed(link.written),
            ),
        )  # fmt: skip

    # Looked for at the end ----------------------------------------------------------------------------------

    def counts(self, partition: int, below: int) -> dict[str, int]:
        """How the records below this offset are answered, by kind."""
        return dict(
            self._db.execute(
                """SELECT kind, count(DISTINCT offset) FROM answers
                   WHERE matched AND partition = ? AND offset < ? GROUP BY kind""",
                (partition, below),
            )
        )

    def without_answer(self, partition: int, below: int) -> Iterator[Known]:
        """Records below this offset that have none."""
        rows = self._db.execute(
            """SELECT * FROM records AS r WHERE partition = ? AND offset < ? AND NOT EXISTS (
                   SELECT 1 FROM answers AS a INDEXED BY answers_by_place
                   WHERE a.partition = r.partition AND a.offset = r.offset AND matched)
               ORDER BY offset""",
            (partition, below),
        )
        return map(_known, rows)

    def records_from(self, partition: int, offset: int) -> int:
        """How many there are."""
        row = self._db.execute(
            "SELECT count(*) FROM records WHERE partition = ? AND offset >= ?", (partition, offset)
        ).fetchone()
        return int(row[0])

    def applied_events(self, event: bytes, reapply: bytes) -> list[tuple[int, bytes]]:
        """(arrival, content) of each record that has brought this event and was applied."""
        return self._db.execute(
            "SELECT arrival, content FROM applied INDEXED BY applied_by_event WHERE event = ? AND reapply = ?",
            (event, reapply),
        ).fetchall()

    def known_events(self, event: bytes) -> list[int]:
        """Arrivals of records that have brought this event and were applied, as far as answers and database know it."""
        rows = self._db.execute(
            """SELECT arrival FROM gone INDEXED BY gone_by_event WHERE event = ?
               UNION ALL SELECT arrival FROM stored INDEXED BY stored_by_event WHERE event = ?""",
            (event, event),
        )
        return [row[0] for row in rows]

    def applied_again(self, within: int) -> Iterator[tuple[int, int, int, int]]:
        """Events that were applied twice within so many ms: partition and offset of the one and of the other."""
        return self._db.execute(
            """SELECT before_partition, before_offset, partition, offset FROM (
                   SELECT *, lag(arrival) OVER same AS before, lag(partition) OVER same AS before_partition,
                          lag(offset) OVER same AS before_offset
                   FROM applied WINDOW same AS (PARTITION BY event, reapply ORDER BY arrival, partition, offset))
               WHERE arrival - before < ? ORDER BY partition, offset""",
            (within,),
        )

    def answered_under_two_arrivals(self) -> Iterator[tuple[int, int]]:
        """Records that two answers name, with different arrivals."""
        return self._db.execute(
            """SELECT partition, offset FROM answers WHERE matched
               GROUP BY partition, offset HAVING count(*) > 1 ORDER BY 1, 2"""
        )

    def stored_otherwise(self) -> Iterator[tuple[int, int]]:
        """Answers that are stored, but not as they were sent."""
        return self._db.execute(
            """SELECT a.partition, a.offset FROM answers AS a
               JOIN stored AS s ON (s.partition, s.offset, s.arrival) = (a.partition, a.offset, a.arrival) AND s.answered
               WHERE a.partition >= 0
               GROUP BY a.id HAVING max(s.sent = a.sent) = 0 ORDER BY 1, 2"""
        )

    def stored_twice(self) -> Iterator[tuple[int, int]]:
        """Records that a lane has both applied and rejected."""
        return self._db.execute(
            "SELECT partition, offset FROM stored GROUP BY lane, partition, offset HAVING count(*) > 1 ORDER BY 1, 2"
        )

    def not_stored(self, partition: int, below: int, since: int) -> Iterator[int]:
        """Offsets below this one of records that are answered, arrived since then, and of which nothing is stored."""
        rows = self._db.execute(
            """SELECT DISTINCT offset FROM answers AS a WHERE matched AND partition = ? AND offset < ? AND arrival >= ?
               AND NOT EXISTS (SELECT 1 FROM stored AS s
                               WHERE (s.partition, s.offset, s.arrival) = (a.partition, a.offset, a.arrival))
               ORDER BY offset""",
            (partition, below, since),
        )
        return (row[0] for row in rows)

    def _run(self, statements: str) -> None:
        """Not executescript, which ends the transaction."""
        for statement in statements.split(";"):
            self._db.execute(statement)

    def _exists(self, query: str, *arguments: int) -> bool:
        return bool(self._db.execute(query, arguments).fetchone()[0])


def _record_row(known: Known) -> tuple[object, ...]:
    received, update = known.received, known.received.update
    place = (known.partition, known.offset, known.arrival, received.value, received.length, received.rest)
    if update is None:
        return *place, None, None, None, None, None, None, None, None
    patched = sum(1 << index for index, field in enumerate(update.fields) if field is not None)
    fields = b"".join(field for field in update.fields if field is not None)
    return (
        *place, update.measurement, update.event, update.reapply, update.content, update.first, patched, fields,
        update.traceparent,
    )  # fmt: skip


def _known(row: Sequence[object]) -> Known:
    (
        partition,
        offset,
        arrival,
        value,
        length,
        rest,
        measurement,
        event,
        reapply,
        content,
        first,
        patched,
        fields,
        trace,
    ) = row
    update = None
    if measurement is not None:
        pieces = iter(_pieces(fields))  # type: ignore[arg-type]  # a row of sqlite3 has no types
        of_patch = tuple(next(pieces) if patched >> index & 1 else None for index in range(5))  # type: ignore[operator]
        update = ReceivedUpdate(measurement, event, reapply, content, first, of_patch, trace)  # type: ignore[arg-type]
    return Known(partition, offset, arrival, Received(value, length, rest, update))  # type: ignore[arg-type]


def _pieces(blob: bytes) -> list[bytes]:
    return [blob[at : at + _SIZE] for at in range(0, len(blob), _SIZE)]


def _packed(written: Sequence[bytes | None]) -> bytes:
    """Each with its length before it; 255: not known."""
    return b"".join(
        b"\xff" if position is None else bytes([len(position)]) + position for position in written
    )


def _positions(packed: bytes) -> tuple[bytes | None, ...]:
    written: list[bytes | None] = []
    at = 0
    while at < len(packed):
        length = packed[at]
        at += 1
        if length == 255:
            written.append(None)
            continue
        written.append(packed[at : at + length])
        at += length
    return tuple(written)
