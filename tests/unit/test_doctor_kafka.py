"""What `doctor` makes of what brokers and topics say."""

from datetime import timedelta
from typing import Any

import pytest

from worker.doctor_kafka import broker_settings, replicas, retention, sizes
from worker.kafka_state import kafka_version
from worker.settings import Settings, load_settings
from worker.topics import TopicState

DAY_MS = 24 * 3600 * 1000


@pytest.fixture
def settings() -> Settings:
    return load_settings(_env_file=None)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, ""),
        ({"transaction.max.timeout.ms": "900000", "group.min.session.timeout.ms": "6000"}, ""),
        ({"transaction.max.timeout.ms": "30000"}, "transaction.max.timeout.ms: expected at least 60000, found 30000"),
        ({"group.min.session.timeout.ms": "15000"}, "the brokers take 15000 to 2147483648, found 10000"),
        ({"group.max.session.timeout.ms": "9000"}, "the brokers take 0 to 9000, found 10000"),
    ],
)  # fmt: skip
def test_broker_settings_under_which_no_worker_runs_fail(
    settings: Settings, config: dict[str, str], said: str
) -> None:
    [check] = broker_settings(config, settings)
    assert check.verdict == ("failed" if said else "ok")
    assert said in check.said


def partition(leader: int, all_replicas: list[int], in_sync: list[int]) -> dict[str, Any]:
    return {"partition": 0, "leader": leader, "replicas": all_replicas, "isr": in_sync}


@pytest.mark.parametrize(
    ("found", "least", "brokers", "verdict", "said"),
    [
        (partition(1, [1, 2, 3], [1, 2, 3]), "2", 3, "ok", "3, all in sync"),
        (partition(1, [1], [1]), "1", 1, "ok", "1, all in sync"),
        (partition(-1, [1, 2, 3], [1]), "2", 3, "failed", "no leader"),
        (partition(1, [1], [1]), "2", 3, "failed", "nothing can be written"),
        (partition(1, [1, 2, 3], [1, 2]), "2", 3, "warning", "lag"),
        (partition(1, [1], [1]), "1", 3, "warning", "one replica on 3 brokers"),
        (partition(1, [1, 2, 3], [1, 2, 3]), "1", 3, "warning", "one broker only"),
    ],
)
def test_replicas(found: dict[str, Any], least: str, brokers: int, verdict: str, said: str) -> None:
    check = replicas("t", [found], {"min.insync.replicas": least}, brokers)
    assert check.verdict == verdict
    assert said in check.said
    assert bool(check.mend) == (verdict != "ok")


@pytest.mark.parametrize(
    ("config", "verdict", "said"),
    [
        ({"retention.ms": "-1"}, "ok", "any age"),
        ({"retention.ms": str(90 * DAY_MS)}, "ok", "at most 90 days"),
        ({"retention.ms": str(7 * DAY_MS)}, "warning", "the input keeps 7 days, WORKER_HISTORY_RETENTION is 30 days"),
        ({"retention.ms": "-1", "retention.bytes": "5000"}, "warning", "retention.bytes is 5,000"),
    ],
)  # fmt: skip
def test_retention(settings: Settings, config: dict[str, str], verdict: str, said: str) -> None:
    found = retention(settings.model_copy(update={"worker_history_retention": timedelta(days=30)}), config)
    assert (found.verdict, said in found.said) == (verdict, True)


def test_a_record_that_no_request_takes_fails(settings: Settings) -> None:
    topics = [TopicState("t", "updated", 1, 8 * 1024**2)]
    assert sizes(settings, topics, {}).verdict == "ok"
    check = sizes(settings, topics, {"socket.request.max.bytes": "1048576"})
    assert (check.verdict, "1,048,576" in check.said) == ("failed", True)


@pytest.mark.parametrize(
    ("fetch", "transactions", "version"),
    [
        ((0, 12), False, "older than 3.0"),
        ((0, 12), True, "3.0"),
        ((0, 13), True, "3.1 to 3.4"),
        ((0, 15), True, "3.5 or 3.6"),
        ((0, 16), True, "3.7 or 3.8"),
        ((0, 17), True, "3.9"),
        ((4, 17), True, "4.0"),
        ((4, 18), True, "4.1 or newer"),
    ],
)
def test_a_brokers_version_is_known_by_what_it_speaks(
    fetch: tuple[int, int], transactions: bool, version: str
) -> None:
    assert kafka_version({1: fetch, **({66: (0, 0)} if transactions else {})}) == version
