"""Answers as they were stored, to be emitted again byte for byte."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from worker.answer import Answer, AnswerForm, StoredRejection, UpdatedAnswer, rejected_answer
from worker.database import Connection
from worker.measurement import updated_at_of
from worker.sql import queries

_ROWS_AT_ONCE = 500
_BYTES_AT_ONCE = 32 * 1024**2


@dataclass(slots=True)
class StoredAnswers:
    """Answers in log order, and the offset after the last record that they answer."""

    answers: list[Answer]
    next_offset: int


async def stored_answers(
    connection: Connection, lane: int, form: AnswerForm, partition: int, begin: int, end: int
) -> AsyncIterator[StoredAnswers]:
    """What is stored for the records from `begin` to before `end`; the last one yielded reaches `end`."""
    sql = queries()
    while begin < end:
        bounds = (lane, begin, end, _ROWS_AT_ONCE, _BYTES_AT_ONCE)
        updated = await connection.fetch(sql["stored_updates"], *bounds)
        rejected = await connection.fetch(sql["stored_rejections"], *bounds)
        # each is complete up to its last row, if it was cut
        reach = min(
            (rows[-1]["log_offset"] + 1 for rows in (updated, rejected) if _was_cut(rows)), default=end
        )
        answers = [_updated(row, form, partition) for row in updated if row["log_offset"] < reach]
        answers += [_rejected(row, form, partition) for row in rejected if row["log_offset"] < reach]
        answers.sort(key=lambda answer: answer.offset)
        yield StoredAnswers(answers, reach)
        begin = reach


def _was_cut(rows: list[Any]) -> bool:
    return bool(rows) and (len(rows) == _ROWS_AT_ONCE or len(rows) < rows[0]["found"])


def _updated(row: Any, form: AnswerForm, partition: int) -> Answer:
    model = row["answer"].encode()
    return UpdatedAnswer(
        offset=row["log_offset"],
        topic=form.updated_topic,
        key=row["measurement_id"].encode(),
        value=model,
        arrival=row["arrival"],
        previous=None if row["previous_lane"] is None else (row["previous_lane"], row["previous_offset"]),
        updates_topic=form.updates_topic,
        partition=partition,
        source=row["event_source"],
        id=row["event_id"],
        traceparent=row["traceparent"],
        updated_at=updated_at_of(model),
        revision=row["revision"],
        changed=row["changed"],
        answer_source=row["answer_source"],
    )


def _rejected(row: Any, form: AnswerForm, partition: int) -> Answer:
    stored = StoredRejection(
        offset=row["log_offset"],
        arrival=row["arrival"],
        key=row["key"],
        value=row["value"],
        header_names=row["header_names"],
        header_values=row["header_values"],
        code=row["code"],
        detail=row["detail"].encode(),
        truncated=row["truncated"] and row["truncated"].encode(),
    )
    return rejected_answer(stored, form, partition)
