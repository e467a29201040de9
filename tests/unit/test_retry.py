"""What an error means: the event's own fault, worth another try, or a defect that stops the process."""

import asyncpg
import pytest
from aiokafka.errors import KafkaConnectionError, ProducerFenced

from worker.errors import DependencyAway, Fatal, LaneStopped, Superseded
from worker.retry import as_worker_error, judge_postgres


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (asyncpg.DataError("22: data"), "refused"),
        (asyncpg.CheckViolationError("23: a check"), "refused"),
        (asyncpg.ProgramLimitExceededError("54: too long"), "refused"),
        (asyncpg.RaiseError("P0001: a trigger's"), "refused"),
        (asyncpg.DeadlockDetectedError("40"), "again"),
        (asyncpg.SerializationError("40"), "again"),
        (asyncpg.LockNotAvailableError("55"), "again"),
        (asyncpg.QueryCanceledError("57014"), "again"),
        (asyncpg.AdminShutdownError("57P01"), "anew"),
        (asyncpg.ReadOnlySQLTransactionError("25006"), "anew"),
        (asyncpg.UndefinedTableError("42P01: not migrated"), "anew"),
        (asyncpg.DiskFullError("53"), "anew"),
        (asyncpg.InterfaceError("closed"), "anew"),
        (asyncpg.InternalClientError("cannot switch to state 11"), "anew"),
        (ConnectionResetError(), "anew"),
    ],
)
def test_an_error_of_the_transaction_is_judged_once(error: Exception, verdict: str) -> None:
    assert judge_postgres(error) == verdict


def test_a_constraint_of_the_bookkeeping_is_never_the_events_fault() -> None:
    error = asyncpg.UniqueViolationError("applied_updates_pkey")
    error.schema_name = "measurement_updates"
    assert judge_postgres(error) == "anew"


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.AdminShutdownError("ended"),
        asyncpg.InterfaceError("closed"),
        asyncpg.InternalClientError("cannot switch to state 11; another operation (2) is in progress"),
        KafkaConnectionError("away"),
        ConnectionResetError(),
        TimeoutError(),
    ],
)
def test_what_is_away_is_waited_for(error: Exception) -> None:
    assert isinstance(as_worker_error(error), DependencyAway)


def test_our_own_errors_stay_and_a_defect_is_none_of_them() -> None:
    assert isinstance(as_worker_error(ProducerFenced()), Superseded)
    for own in (Fatal("no"), LaneStopped("no"), Superseded("no")):
        assert as_worker_error(own) is own
    for defect in (TypeError("no"), AssertionError(), KeyError("no")):
        assert as_worker_error(defect) is None
