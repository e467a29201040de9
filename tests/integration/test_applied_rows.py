"""Applied updates reach Postgres: COPY's binary format, as it is made here, stores what goes as columns where there is
little; and asyncpg sends arrays without asking twice of each element."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.system import System
from tests.unit.test_plan import LogRecord
from worker.applied_rows import _CHUNK, COLUMNS, in_binary, in_columns
from worker.measurement import Measurement
from worker.plan import Applied
from worker.record import Update, position


def _applied(offset: int, traceparent: str | None, previous: tuple[int, int] | None, model: bytes) -> Applied:
    record = LogRecord("updates", 0, offset, 100, 1, b"m", b"{}", ())
    update = Update(
        record=record,
        arrival=2**62 + offset,
        measurement_id=f"m-{offset} é",
        source="urn:ü",
        id="",
        identity=bytes(range(16)),
        plain_identity=None,
        content=bytes(range(16, 32)),
        patch={},
        position=position(100, 0, offset),
        expected_revision=None,
        organization_id=None,
        traceparent=traceparent,
    )
    measurement = Measurement(f"m-{offset} é", "file", None, {}, {}, 0, 0, None, b"", None)
    return Applied(update, measurement, offset + 1, "name,notes" if previous else "", previous, model)


async def test_copy_stores_what_the_columns_say(lab: System) -> None:
    large = b'"' + "°".encode() * _CHUNK + b'"'  # ends a piece
    applied = [
        _applied(offset, traceparent, previous, model)
        for offset, (traceparent, previous, model) in enumerate(
            (traceparent, previous, model)
            for model in (b"{}", large)
            for traceparent in (None, "00-ü")
            for previous in (None, (2**31 - 1, 2**63 - 1))
        )
    ]
    lane = await lab.database.fetchval(
        """INSERT INTO measurement_updates.lanes
               (topic, partition, cluster, consumer_group, next_to_apply, next_to_answer)
           VALUES ('other', 0, 'c', 'g', 0, 0) RETURNING lane"""
    )

    async def pieces() -> AsyncIterator[bytes]:
        for piece in in_binary(applied, lane, "urn:wörker"):
            yield piece

    await lab.database.copy_to_table(
        "applied_updates",
        schema_name="measurement_updates",
        columns=("answer_source", "lane", *COLUMNS),
        format="binary",
        source=pieces(),
    )
    found = await lab.database.fetch(
        f"SELECT answer_source, {', '.join(COLUMNS)} FROM measurement_updates.applied_updates WHERE lane = $1"
        " ORDER BY log_offset",
        lane,
    )
    expected = [("urn:wörker", *row) for row in zip(*in_columns(applied), strict=True)]
    assert [tuple(row) for row in found] == expected


async def test_only_lists_and_tuples_are_taken_for_arrays(lab: System) -> None:
    """What `worker.database` says to asyncpg still reaches it: a set would be an array to asyncpg's own question."""
    for sent in (["a", None, "é"], ("a", None, "é")):
        assert await lab.database.fetchval("SELECT $1::text[]", sent) == ["a", None, "é"]
    assert await lab.database.fetchval("SELECT $1::bytea[]", [b"a", None]) == [b"a", None]
    assert await lab.database.fetchval("SELECT $1::text[]", [["a"], ["b"]]) == [["a"], ["b"]]
    with pytest.raises(asyncpg.DataError, match="a sized iterable container expected"):
        await lab.database.fetchval("SELECT $1::text[]", {"a"})
