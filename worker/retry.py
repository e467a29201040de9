"""Is an error of Postgres about one event's data, worth another try, or does the lane have to start anew?"""

import asyncio
import random
from collections.abc import Iterator
from typing import Literal

import asyncpg
from aiokafka.errors import KafkaError, ProducerFenced

from worker.database import POSTGRES_ERRORS, describe, what_to_do
from worker.errors import BY_ITSELF, DependencyAway, Superseded, WorkerError

Verdict = Literal["refused", "again", "anew"]

_ABOUT_DATA = ("22", "23", "54")  # data exception, integrity constraint violation, program limit exceeded
_KAFKA_AWAY = (
    f"{BY_ITSELF}see that the brokers (KAFKA_BOOTSTRAP_SERVERS) are up, reachable from here, and let this worker read, write"
    " and commit"
)
_ROLLED_BACK = ("40", "55")  # deadlock and serialization; lock not available


def judge_postgres(error: Exception) -> Verdict:
    """What to do with an error of the apply transaction.

    refused: the event's own data; `again`: the transaction is rolled back for sure and the session is well;
    `anew`: anything else: the session may be gone and a COMMIT in doubt, so the lane takes over again.
    """
    if isinstance(error, asyncpg.PostgresError) and error.sqlstate:
        if error.sqlstate[:2] in _ABOUT_DATA or error.sqlstate == "P0001":
            # a constraint of our own bookkeeping is never the event's fault
            return "anew" if getattr(error, "schema_name", None) == "measurement_updates" else "refused"
        if (
            error.sqlstate[:2] in _ROLLED_BACK or error.sqlstate == "57014"
        ):  # canceled: statement or lock timeout
            return "again"
    return "anew"


def as_worker_error(error: BaseException) -> WorkerError | None:
    """A library's error → ours, or None where it is a defect that nobody foresaw: that one must stop the process."""
    if isinstance(error, WorkerError):
        return error
    if isinstance(error, ProducerFenced):
        return Superseded("Kafka has fenced this producer: another worker has taken the partition over")
    if isinstance(error, KafkaError):
        return DependencyAway(f"Kafka: {type(error).__name__}: {error}", do=_KAFKA_AWAY)
    if isinstance(error, POSTGRES_ERRORS):
        return DependencyAway(f"Postgres: {describe(error)}", do=what_to_do(error))
    if isinstance(error, OSError | TimeoutError | asyncio.IncompleteReadError):
        return DependencyAway(f"no answer in time or connection lost: {describe(error)}")
    return None


def cause_of(error: BaseException) -> str:
    """What kind of error it is, in one of a bounded number of words: a SQLSTATE class, a library's class of errors."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, asyncpg.PostgresError) and error.sqlstate:
        return f"postgres {error.sqlstate[:2]}"
    if isinstance(error, POSTGRES_ERRORS):
        return "postgres session"
    if isinstance(error, KafkaError):
        return f"kafka {type(error).__name__}"
    if isinstance(error, OSError | TimeoutError | asyncio.IncompleteReadError):
        return "connection"
    return type(error).__name__


def backoff(first: float = 0.1, cap: float = 5.0) -> Iterator[float]:
    """Seconds to wait: doubling up to a cap, each with full jitter above its half, so that workers spread out."""
    delay = first
    while True:
        yield delay * (0.5 + random.random() / 2)
        delay = min(cap, delay * 2)
