"""Kafka clients for commands: bounded in time, their errors in words."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from worker.connecting import stop_client
from worker.errors import KAFKA_AWAY, DependencyAway, Fatal
from worker.settings import Settings

_START_WITHIN = 15.0


@contextlib.asynccontextmanager
async def update_producer(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    """Idempotent, acknowledged by all replicas, Kafka's own partitioner. Raises DependencyAway, Fatal."""
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers,
        client_id="measurement-updates",
        enable_idempotence=True,
        linger_ms=2,
        max_batch_size=128 * 1024,
        max_request_size=_LARGEST,
        retry_backoff_ms=50,
    )
    async with _started(producer, settings):
        topics = (await producer.client.fetch_all_metadata()).topics(exclude_internal_topics=False)
        _expect(topics, settings.worker_updates_topic)
        yield producer


@contextlib.asynccontextmanager
async def answer_consumer(
    settings: Settings, topics: list[str], *, from_beginning: bool = False
) -> AsyncIterator[AIOKafkaConsumer]:
    """Read_committed, every partition of `topics`, from their ends as they are now; no group, nothing committed.

    Raises DependencyAway, Fatal.
    """
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers,
        client_id="measurement-updates",
        enable_auto_commit=False,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=_LARGEST,
        retry_backoff_ms=50,
    )
    async with _started(consumer, settings):
        # consumer.topics() is of the whole cluster, but partitions_for_topic() of subscribed topics only
        cluster = await consumer._client.fetch_all_metadata()
        for topic in topics:
            _expect(cluster.topics(), topic)
        partitions = [
            TopicPartition(topic, number)
            for topic in topics
            for number in sorted(cluster.partitions_for_topic(topic) or ())
        ]
        consumer.assign(partitions)
        if from_beginning:
            await consumer.seek_to_beginning(*partitions)
        else:
            await consumer.seek_to_end(*partitions)
            for partition in partitions:
                await consumer.position(partition)  # the end as it is now, not at the first fetch
        yield consumer


_LARGEST = 64 * 1024**2
"""The topics say what they take, not we."""


@contextlib.asynccontextmanager
async def _started(client: AIOKafkaProducer | AIOKafkaConsumer, settings: Settings) -> AsyncIterator[None]:
    servers = settings.bootstrap_servers
    try:
        try:
            async with asyncio.timeout(_START_WITHIN):
                await client.start()
        except (KafkaError, OSError, TimeoutError) as error:
            raise DependencyAway(
                f"Kafka can't be reached at {servers}: {_words(error)}", do=KAFKA_AWAY
            ) from error
        try:
            yield
        except KafkaError as error:
            raise DependencyAway(f"Kafka at {servers}: {_words(error)}") from error
    finally:
        await stop_client(client)


def _expect(present: set[str], topic: str) -> None:
    if topic not in present:
        raise Fatal(
            f"topic {topic} doesn't exist on this broker: create it with `measurement-updates topics`, or name"
            " another one (WORKER_UPDATES_TOPIC, WORKER_UPDATED_TOPIC, WORKER_REJECTED_TOPIC)"
        )


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
