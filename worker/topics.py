"""The three topics: made as the contract wants them, or checked against it."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    KafkaError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)

from worker.errors import KAFKA_AWAY, DependencyAway
from worker.settings import Settings

_MIB = 1024**2
_NINETY_DAYS_MS = 90 * 24 * 3600 * 1000
_ENVELOPE_BYTES = 256 * 1024
"""Key and headers (64 KiB each), the batch's and the record's own bytes, and some that are over the limit."""
UPDATED_MAX_BYTES = 8 * _MIB
_LEAST_REJECTED_BYTES = 32 * 1024
"""The reason (16 KiB), the event's place and what the batch takes, without key, value and headers as received."""

_TIMEOUT = 30.0


@dataclass(slots=True)
class TopicState:
    """One topic: what was found, what was made, and what is wrong with it."""

    name: str
    purpose: Literal["updates", "updated", "rejected"]
    partitions: int = 0
    max_message_bytes: int = 0
    created: bool = False
    faults: list[str] = field(default_factory=list)
    """The worker refuses to start with these."""
    warnings: list[str] = field(default_factory=list)


def input_max_bytes(settings: Settings) -> int:
    """What is over WORKER_MAX_EVENT_BYTES is to be rejected with a reason rather than refused by the broker."""
    return 2 * settings.worker_max_event_bytes + _ENVELOPE_BYTES


def wanted_topics(settings: Settings) -> dict[str, dict[str, str]]:
    """Name → settings with which `topics` creates it."""
    common = {"message.timestamp.type": "LogAppendTime", "cleanup.policy": "delete"}
    return {
        settings.worker_updates_topic: {
            **common,
            "retention.ms": str(_NINETY_DAYS_MS),
            "max.message.bytes": str(input_max_bytes(settings)),
            "unclean.leader.election.enable": "false",
        },
        # LogAppendTime here too: a log caught up with after months must not expire on arrival
        settings.worker_updated_topic: {**common, "max.message.bytes": str(UPDATED_MAX_BYTES)},
        settings.worker_rejected_topic: {
            **common,
            "retention.ms": str(_NINETY_DAYS_MS),
            "max.message.bytes": str(input_max_bytes(settings) + _MIB),
        },
    }


async def create_topics(settings: Settings) -> list[TopicState]:
    """Create what is missing, then check all. Raises DependencyAway."""
    wanted = wanted_topics(settings)
    async with _Admin(settings.bootstrap_servers) as admin:
        present = await admin.topics()
        replication = settings.worker_replication or min(3, await admin.brokers())
        created = set()
        for name, config in wanted.items():
            if name not in present and await admin.create(
                name, settings.worker_partitions, replication, config
            ):
                created.add(name)
        states = await _check(admin, settings)
    for state in states:
        state.created = state.name in created
    return states


def differing_partitions(states: Sequence[TopicState], settings: Settings) -> None:
    """A topic may well have more partitions than WORKER_PARTITIONS: whoever makes topics wants to know it, `run` doesn't."""
    for state in states:
        if state.partitions not in (0, settings.worker_partitions):
            state.warnings.append(
                f"partitions: expected {settings.worker_partitions} (WORKER_PARTITIONS), found {state.partitions}"
            )


async def other_topic(settings: Settings, name: str) -> tuple[int, int] | None:
    """Partitions and max.message.bytes of any topic; None where there is none. Raises DependencyAway."""
    async with _Admin(settings.bootstrap_servers) as admin:
        partitions = (await admin.topics()).get(name)
        if partitions is None:
            return None
        return partitions, int((await admin.config(name))["max.message.bytes"])


async def check_topics(settings: Settings) -> tuple[str, list[TopicState]]:
    """The cluster's id, and the topics as they are. Raises DependencyAway."""
    async with _Admin(settings.bootstrap_servers) as admin:
        return await admin.cluster_id(), await _check(admin, settings)


async def _check(admin: "_Admin", settings: Settings) -> list[TopicState]:
    states = [
        TopicState(settings.worker_updates_topic, "updates"),
        TopicState(settings.worker_updated_topic, "updated"),
        TopicState(settings.worker_rejected_topic, "rejected"),
    ]
    # a topic just made may not be known to every broker yet
    partitions = await admin.topics()
    for _ in range(20):
        if all(state.name in partitions for state in states):
            break
        await asyncio.sleep(0.1)
        partitions = await admin.topics()
    for state in states:
        if state.name not in partitions:
            state.faults.append(
                "it doesn't exist, or this client may not see it: create it with `measurement-updates topics`"
            )
            continue
        try:
            config = await admin.config(state.name)
        except TopicAuthorizationFailedError:
            state.faults.append("its settings may not be read: the right DESCRIBE_CONFIGS is missing")
            continue
        state.partitions = partitions[state.name]
        state.max_message_bytes = int(config["max.message.bytes"])
        _judge(state, config, settings)
    return states


def _judge(state: TopicState, config: Mapping[str, str], settings: Settings) -> None:
    def expect(setting: str, wanted: str, severity: list[str], why: str) -> None:
        if config.get(setting) != wanted:
            severity.append(f"{setting}: expected {wanted}, found {config.get(setting)}: {why}")

    if state.purpose == "updates":
        expect(
            "message.timestamp.type",
            "LogAppendTime",
            state.faults,
            "arrivals order events, and are the broker's to give",
        )
        expect(
            "cleanup.policy", "delete", state.faults, "compaction would take events that weren't applied yet"
        )
        expect(
            "unclean.leader.election.enable",
            "false",
            state.faults,
            "an unclean leader loses events that were applied",
        )
        least = settings.worker_max_event_bytes
        if state.max_message_bytes < least:
            state.warnings.append(
                f"max.message.bytes: expected at least {input_max_bytes(settings)}, found {state.max_message_bytes}:"
                " larger events are refused by the broker instead of rejected with a reason"
            )
        if 0 <= int(config["retention.ms"]) < _NINETY_DAYS_MS:
            state.warnings.append(
                f"retention.ms: expected at least {_NINETY_DAYS_MS} (90 days), found {config['retention.ms']}:"
                " a database restored from an older backup can't be caught up from the log"
            )
    if state.purpose == "updated" and state.max_message_bytes < UPDATED_MAX_BYTES:
        state.warnings.append(
            f"max.message.bytes: expected at least {UPDATED_MAX_BYTES}, found {state.max_message_bytes}:"
            " updates of larger measurements are rejected as answer_too_large"
        )
    if state.purpose == "rejected" and state.max_message_bytes < _LEAST_REJECTED_BYTES:
        state.faults.append(
            f"max.message.bytes: expected at least {_LEAST_REJECTED_BYTES}, found {state.max_message_bytes}:"
            " the reason alone may take that much"
        )
    elif (
        state.purpose == "rejected" and state.max_message_bytes < input_max_bytes(settings) + _ENVELOPE_BYTES
    ):
        state.warnings.append(
            f"max.message.bytes: expected at least {input_max_bytes(settings) + _ENVELOPE_BYTES},"
            f" found {state.max_message_bytes}: larger rejected events are cut"
        )


class _Admin:
    """aiokafka's admin client, bounded in time, its errors ours."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._servers = bootstrap_servers
        self._client = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers, request_timeout_ms=10_000)

    async def __aenter__(self) -> "_Admin":
        try:
            async with asyncio.timeout(_TIMEOUT):
                await self._client.start()
        except (KafkaError, OSError, TimeoutError) as error:
            await self._client.close()
            raise DependencyAway(
                f"Kafka can't be reached at {self._servers}: {error}",
                do=KAFKA_AWAY,
            ) from error
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        await self._client.close()
        if isinstance(error, KafkaError | OSError | TimeoutError):
            raise DependencyAway(
                f"Kafka at {self._servers} doesn't answer: {type(error).__name__}: {error}"
            ) from error

    async def cluster_id(self) -> str:
        return str((await self._client.describe_cluster())["cluster_id"])

    async def brokers(self) -> int:
        return len((await self._client.describe_cluster())["brokers"])

    async def topics(self) -> dict[str, int]:
        """Name → number of partitions."""
        async with asyncio.timeout(_TIMEOUT):
            described = await self._client.describe_topics()
        return {topic["topic"]: len(topic["partitions"]) for topic in described if topic["error_code"] == 0}

    async def create(self, name: str, partitions: int, replication: int, config: Mapping[str, str]) -> bool:
        """False where it was there already."""
        async with asyncio.timeout(_TIMEOUT):
            response = await self._client.create_topics(
                [NewTopic(name, partitions, replication, topic_configs=dict(config))]
            )
        for _, code, *message in response.topic_errors:
            if code:
                error = for_code(code)
                if error is TopicAlreadyExistsError:
                    return False
                raise DependencyAway(
                    f"topic {name} can't be created: {error.__name__} {message[0] if message else ''}"
                )
        return True

    async def config(self, topic: str) -> dict[str, str]:
        """A broker of several that doesn't know it yet is asked again. Raises KafkaError."""
        async with asyncio.timeout(_TIMEOUT):
            for _ in range(20):
                [response] = await self._client.describe_configs(
                    [ConfigResource(ConfigResourceType.TOPIC, topic)]
                )
                [(code, _message, _type, _name, entries)] = response.resources
                if for_code(code) is not UnknownTopicOrPartitionError:
                    break
                await asyncio.sleep(0.1)
        if code:
            raise for_code(code)(f"topic {topic}")
        return {entry[0]: entry[1] for entry in entries}
