"""What `doctor` asks of Kafka: brokers, topics, sizes, rights."""

import re
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaError,
    TransactionalIdAuthorizationFailed,
    for_code,
)

from worker.checks import Check, duration
from worker.kafka_rights import group_rights, topic_rights
from worker.kafka_state import GROUP_HIDDEN, KafkaLook, KafkaState, bounded, once_settled
from worker.settings import Settings
from worker.topics import TopicState

_TRANSACTION_TIMEOUT_MS = 60_000
"""As worker/emit.py asks for."""


async def kafka_checks(settings: Settings, look: KafkaLook, state: KafkaState) -> AsyncGenerator[Check, None]:
    """The brokers and the group. Raises DependencyAway."""
    brokers = f"{state.brokers} broker{'s' * (state.brokers != 1)}"
    yield Check(
        "kafka", "reachable", "ok", f"{settings.bootstrap_servers}, {brokers}, {state.latency_ms:.1f} ms"
    )
    if state.version.startswith("older"):
        yield Check(
            "kafka", "version", "failed", f"{state.version}, expected 3.0 or newer", "upgrade the brokers"
        )
    else:
        yield Check("kafka", "version", "ok", state.version)
    partitions = len(state.logs)
    if state.group_state == GROUP_HIDDEN:
        pass  # the rights say it
    elif state.members > partitions > 0:
        yield Check(
            "kafka", "group", "warning",
            f"group {settings.worker_group} has {state.members} members for {partitions} partitions: some are idle",
            "add partitions to the input, or run fewer workers",
        )  # fmt: skip
    else:
        yield Check(
            "kafka", "group", "ok", f"{settings.worker_group}: {state.group_words}, {state.members} member(s)"
        )
    async with bounded(settings):
        config = await _broker_config(look)
    if config is None:
        yield Check("kafka", "settings", "ok", "not looked at: the brokers' settings may not be read")
    else:
        for check in broker_settings(config, settings):
            yield check


async def _broker_config(look: KafkaLook) -> Mapping[str, str] | None:
    """Of one broker; None where it refuses."""
    described = await look.admin.describe_cluster()
    broker = described["brokers"][0]["node_id"]
    [response] = await look.admin.describe_configs([ConfigResource(ConfigResourceType.BROKER, str(broker))])
    [(code, _message, _type, _name, entries)] = response.resources
    return None if code else {entry[0]: entry[1] for entry in entries}


def broker_settings(config: Mapping[str, str], settings: Settings) -> Iterator[Check]:
    faults = []
    longest = int(config.get("transaction.max.timeout.ms") or _TRANSACTION_TIMEOUT_MS)
    if longest < _TRANSACTION_TIMEOUT_MS:
        faults.append(
            f"transaction.max.timeout.ms: expected at least {_TRANSACTION_TIMEOUT_MS}, found {longest}: no worker can begin"
        )
    least = int(config.get("group.min.session.timeout.ms") or 0)
    most = int(config.get("group.max.session.timeout.ms") or 2**31)
    wanted = settings.worker_session_timeout_ms
    if not least <= wanted <= most:
        faults.append(f"WORKER_SESSION_TIMEOUT_MS: the brokers take {least} to {most}, found {wanted}")
    for fault in faults:
        yield Check(
            "kafka",
            "settings",
            "failed",
            fault,
            "set it in server.properties, or change the worker's setting",
        )
    if not faults:
        yield Check("kafka", "settings", "ok", "transactions of 60 s and the session timeout are taken")


async def topic_checks(
    settings: Settings, look: KafkaLook, topics: Sequence[TopicState]
) -> AsyncGenerator[Check, None]:
    """Their settings, replicas, sizes, and what may be done with them. Raises DependencyAway."""
    for topic in topics:
        for check in _as_it_should_be(topic):
            yield check
    present = [topic for topic in topics if topic.partitions]
    async with bounded(settings):
        described = {topic["topic"]: topic for topic in await look.admin.describe_topics()}
        brokers = len((await look.admin.describe_cluster())["brokers"])
        configs = {topic.name: await _topic_config(look, topic.name) for topic in present}
        broker = await _broker_config(look) or {}
    for topic in present:
        yield replicas(topic.name, described[topic.name]["partitions"], configs[topic.name], brokers)
    if present:
        yield sizes(settings, present, broker)
    if settings.worker_updates_topic in configs:
        yield retention(settings, configs[settings.worker_updates_topic])
    async with bounded(settings):
        for check in [check async for check in _rights(settings, look, present)]:
            yield check


def _as_it_should_be(topic: TopicState) -> Iterator[Check]:
    for verdict, findings in (("failed", topic.faults), ("warning", topic.warnings)):
        for finding in findings:
            wanted = re.match(r"([a-z.]+): expected (?:at least )?(\S+?)(?: \(.*?\))?,", finding)
            mend = "measurement-updates topics"
            if wanted:
                mend = (
                    f"kafka-configs.sh --alter --entity-type topics --entity-name {topic.name}"
                    f" --add-config {wanted[1]}={wanted[2]}"
                )
            if "DESCRIBE_CONFIGS" in finding:
                mend = _granting(["DESCRIBE_CONFIGS"], f"--topic {topic.name}")
            said = finding.partition(": create it")[0]  # that is how it is mended
            yield Check("topics", topic.name, verdict, said, mend)  # type: ignore[arg-type]  # of the two above
    if not topic.faults and not topic.warnings:
        yield Check(
            "topics",
            topic.name,
            "ok",
            f"{topic.partitions} partitions, {topic.max_message_bytes:,} bytes a record",
        )


async def _topic_config(look: KafkaLook, topic: str) -> Mapping[str, str]:
    [response] = await look.admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    [(code, _message, _type, _name, entries)] = response.resources
    if code:
        raise for_code(code)(f"topic {topic}")
    return {entry[0]: entry[1] for entry in entries}


def replicas(
    name: str, partitions: Sequence[Mapping[str, Any]], config: Mapping[str, str], brokers: int
) -> Check:
    leaderless = [one["partition"] for one in partitions if one["leader"] < 0]
    behind = [one["partition"] for one in partitions if len(one["isr"]) < len(one["replicas"])]
    count = min(len(one["replicas"]) for one in partitions)
    least = int(config.get("min.insync.replicas") or 1)
    check = partial(Check, "topics", f"{name} replicas")
    if leaderless:
        return check(
            "failed", f"partitions {leaderless} have no leader: nothing is read or written there",
            "bring their brokers back (no unclean leader election: it loses records)",
        )  # fmt: skip
    if least > count:
        return check(
            "failed", f"min.insync.replicas is {least}, but there are {count}: nothing can be written",
            f"kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config"
            f" min.insync.replicas={max(1, count - 1)}",
        )  # fmt: skip
    if behind:
        return check("warning", f"partitions {behind} have replicas that lag", "see the brokers' logs")
    if count == 1 < brokers:
        return check(
            "warning", f"one replica on {brokers} brokers: who loses a broker's disk loses records",
            "kafka-reassign-partitions.sh with three replicas",
        )  # fmt: skip
    if count > 1 and least == 1:
        return check(
            "warning", f"{count}, but min.insync.replicas is 1: a record may stand on one broker only",
            f"kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config min.insync.replicas=2",
        )  # fmt: skip
    return check("ok", f"{count}, all in sync, at least {least} for a write")


def sizes(settings: Settings, topics: Sequence[TopicState], broker: Mapping[str, str]) -> Check:
    """What a topic takes is judged with its settings; here is what stands between: a request's size."""
    largest = max(topic.max_message_bytes for topic in topics)
    most = int(broker.get("socket.request.max.bytes") or 104_857_600)
    sizes = ", ".join(f"{topic.purpose} {topic.max_message_bytes:,}" for topic in topics)
    said = f"events up to {settings.worker_max_event_bytes:,} bytes; records: {sizes}"
    if most <= largest:
        return Check(
            "topics", "sizes", "failed", f"{said}; but a broker takes requests of {most:,} only",
            f"socket.request.max.bytes={2 * largest} in server.properties",
        )  # fmt: skip
    fetched = int(broker.get("replica.fetch.response.max.bytes") or 10_485_760)
    if fetched < largest:
        said += f"; replicas fetch {fetched:,} at once, larger records one by one"
    return Check("topics", "sizes", "ok", said)


def retention(settings: Settings, config: Mapping[str, str]) -> Check:
    """How old a backup of the database may be to be caught up from the log, and what is asked to be kept."""
    kept = int(config["retention.ms"])
    bytes_kept = int(config.get("retention.bytes") or -1)
    history = settings.worker_history_retention // timedelta(milliseconds=1)
    alter = f"kafka-configs.sh --alter --entity-type topics --entity-name {settings.worker_updates_topic} --add-config"
    if bytes_kept >= 0:
        return Check(
            "topics", "retention", "warning",
            f"retention.bytes is {bytes_kept:,}: a busy day may take records that a restored backup needs",
            f"{alter} retention.bytes=-1",
        )  # fmt: skip
    if 0 <= kept < history:
        return Check(
            "topics", "retention", "warning",
            f"the input keeps {duration(kept)}, WORKER_HISTORY_RETENTION is {duration(history)}: what history tells can't be"
            " replayed, and a backup of the database that is older can't be caught up",
            f"{alter} retention.ms={history}",
        )  # fmt: skip
    age = "any age" if kept < 0 else f"at most {duration(kept)}"
    return Check(
        "topics", "retention", "ok", f"a backup of the database may be of {age} to be caught up from the log"
    )


async def _rights(
    settings: Settings, look: KafkaLook, topics: Sequence[TopicState]
) -> AsyncGenerator[Check, None]:
    needed = {topic.name: {"READ" if topic.purpose == "updates" else "WRITE", "DESCRIBE"} for topic in topics}
    lacking = []
    for name, allowed in (await topic_rights(look.admin, needed)).items():
        if allowed is not None and (missing := needed[name] - allowed):
            lacking.append((f"topic {name}", missing, f"--topic {name}"))
    group = settings.worker_group
    try:
        allowed = await group_rights(look.admin, group)
        missing = set() if allowed is None else {"READ"} - allowed
    except GroupAuthorizationFailedError:
        missing = {"READ"}
    if missing:
        lacking.append((f"group {group}", missing, f"--group {group}"))
    transactional_id = f"{group}.{settings.worker_updates_topic}.0"
    try:
        await once_settled(partial(look.admin.find_coordinator, transactional_id, 1))
    except TransactionalIdAuthorizationFailed:
        what = f"--transactional-id {group}. --resource-pattern-type prefixed"
        lacking.append((f"transactional ids {group}.…", {"WRITE"}, what))
    except KafkaError as error:
        mend = "are the brokers up, and transaction.state.log.replication.factor no more than there are?"
        yield Check("kafka", "transactions", "failed", f"no coordinator: {type(error).__name__}", mend)
    for resource, operations, option in lacking:
        yield Check(
            "kafka", "rights", "failed", f"{resource}: {', '.join(sorted(operations))} isn't allowed",
            _granting(sorted(operations), option),
        )  # fmt: skip
    if not lacking:
        yield Check(
            "kafka", "rights", "ok", "topics, group and transactional ids: all that a worker needs is allowed"
        )


def _granting(operations: Sequence[str], option: str) -> str:
    named = " ".join(f"--operation {name}" for name in operations)
    return f"kafka-acls.sh --add --allow-principal User:… {named} {option}"
