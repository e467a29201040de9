"""Stored answers come back complete and in log order, however they are cut."""

import pytest

from tests.system import System
from worker import stored
from worker.answer import AnswerForm


async def test_stored_answers_come_back_whole_and_in_log_order(
    lab: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = '{"id":"m","updated_at":"2026-01-01T00:00:00Z"}'
    for offset in range(20):
        if offset % 4 == 3:
            continue  # a duplicate: no answer
        if offset % 4 == 2:
            await lab.database.execute(
                """INSERT INTO measurement_updates.rejected_updates
                       (lane, log_offset, arrival, key, value, header_names, header_values, code, detail)
                   VALUES (7, $1, 1, NULL, $2, '{"\\\\xff"}', '{NULL}', 'invalid_json', '{}')""",
                offset,
                None if offset == 2 else b"x" * 40,
            )
        else:
            await lab.database.execute(
                """INSERT INTO measurement_updates.applied_updates
                       (lane, log_offset, arrival, identity, content, measurement_id, event_source, event_id, revision,
                        changed, answer_source, answer)
                   VALUES (7, $1, 1, '', '', 'm', 's', 'e', 1, '', 's', $2)""",
                offset,
                body,
            )
    for rows, size in [(500, 10**6), (3, 10**6), (500, 60), (2, 60), (1, 1)]:
        monkeypatch.setattr(stored, "_ROWS_AT_ONCE", rows)
        monkeypatch.setattr(stored, "_BYTES_AT_ONCE", size)
        found, begin = [], 1
        async for piece in stored.stored_answers(lab.database, 7, AnswerForm("u", "a", "r", "s"), 0, 1, 19):
            assert all(begin <= answer.offset < piece.next_offset for answer in piece.answers)
            found += [answer.offset for answer in piece.answers]
            begin = piece.next_offset
        assert found == [offset for offset in range(1, 19) if offset % 4 != 3]
        assert begin == 19
