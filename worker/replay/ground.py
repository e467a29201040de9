"""What replays and resends work on, besides their options."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from worker.answer import AnswerForm
from worker.database import Connection, schema_is_current
from worker.errors import Fatal
from worker.settings import Settings
from worker.topics import TopicState, check_topics

Says = Callable[[str, int, int], None]
"""Hears what is being done, how much of it is done, and how much there is."""
Warn = Callable[[str], None]
"""Hears what can't be done as it was asked for."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What a replay works on, besides its options."""

    settings: Settings
    connection: Connection
    cluster: str
    input: TopicState
    states: Sequence[TopicState]


async def look_around(settings: Settings, connection: Connection) -> Ground:
    """Raises Fatal where topics or schema aren't there, DependencyAway."""
    await expect_schema(connection)
    cluster, states = await check_topics(settings)
    if missing := [f"topic {state.name}: {state.faults[0]}" for state in states if not state.partitions]:
        raise Fatal("\n".join(missing))
    return Ground(settings, connection, cluster, states[0], states)


async def expect_schema(connection: Connection) -> None:
    """Raises Fatal where it isn't this version's."""
    if not await schema_is_current(connection):
        raise Fatal("the database's schema isn't this version's: run `measurement-updates migrate`")


def now_ms() -> int:
    """Of this machine's clock: only `2h` and `now` are counted from it."""
    return int(time.time() * 1000)


async def rows_as_the_worker_reads_them(connection: Connection) -> None:
    """Times as microseconds since 2000: they can be infinite or beyond year 9999. And it may sit idle while it reads."""
    await connection.execute("SET idle_in_transaction_session_timeout = 0")
    await connection.set_type_codec(
        "timestamptz",
        schema="pg_catalog",
        encoder=lambda at: (at,),
        decoder=lambda at: at[0],
        format="tuple",
    )


def answer_form(ground: Ground) -> AnswerForm:
    """As a worker makes it."""
    settings = ground.settings
    limit = {state.purpose: state.max_message_bytes for state in ground.states}
    return AnswerForm(
        settings.worker_updates_topic,
        settings.worker_updated_topic,
        settings.worker_rejected_topic,
        settings.worker_source,
        limit["updated"],
        limit["rejected"],
    )
