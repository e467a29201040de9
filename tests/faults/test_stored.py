"""Answers that are sent again: none is left out, wherever they are cut."""

import pytest

from tests.system import System
from worker import stored
from worker.answer import AnswerForm


async def test_a_stored_tombstone_beyond_the_cut_hides_no_rejection_before_it(
    lab: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [b"x" * 40, b"x" * 40, None, b"x" * 40, None]
    for offset, value in enumerate(values):
        await lab.database.execute(
            """INSERT INTO measurement_updates.rejected_updates
                   (lane, log_offset, arrival, value, header_names, header_values, code, detail)
               VALUES (7, $1, 1, $2, '{}', '{}', 'invalid_json', '{}')""",
            offset,
            value,
        )
    monkeypatch.setattr(stored, "_BYTES_AT_ONCE", 30)
    pieces = stored.stored_answers(lab.database, 7, AnswerForm("u", "a", "r", "s"), 0, 0, len(values))
    assert [answer.offset async for piece in pieces for answer in piece.answers] == [0, 1, 2, 3, 4]
