"""Stored answers sent again, byte for byte, or the present state of every measurement, into a topic of the operator's."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaProducer

from worker.answer import Answer, wire_size
from worker.connecting import stop_client
from worker.database import close, connect
from worker.errors import DependencyAway, Fatal, SettingsError
from worker.partitioner import partition_of
from worker.replay.answers import Resent, Wanted, wanted_answers
from worker.replay.ground import Says, Warn, look_around, rows_as_the_worker_reads_them
from worker.settings import Settings
from worker.topics import other_topic

_IN_FLIGHT = 2_000
_BYTES_IN_FLIGHT = 32 * 1024**2
_STALLED_AFTER = 30.0
_LARGEST = 64 * 1024**2
"""The topic says what it takes, not we."""


@dataclass(slots=True)
class _Target:
    """The topic into which it goes."""

    name: str
    partitions: int
    max_record_bytes: int


async def resend(settings: Settings, wanted: Wanted, to: str, says: Says, resent: Resent, warn: Warn) -> None:
    """`resent` counts what is acknowledged, also where this raises.

    In log order in each partition of the input; of one measurement by revision. Raises Fatal, SettingsError,
    DependencyAway, and what aiokafka and asyncpg raise.
    """
    refuse_live_topics(settings, to)
    connection = await connect(settings.dsn, application="measurement-updates resend")
    try:
        ground = await look_around(settings, connection)
        target = await _target(settings, to)
        await rows_as_the_worker_reads_them(connection)
        async with (
            _producer(settings) as producer,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            sending = _Sending(producer, target, resent)
            async for partition, answers, done, total in wanted_answers(
                ground, connection, wanted, resent, warn
            ):
                for answer in answers:
                    await sending.send(answer, partition)
                says("sending", done, total)
            await sending.finish()
    finally:
        await close(connection)


def refuse_live_topics(settings: Settings, to: str) -> None:
    """Raises SettingsError: there each answer stands once, and in order."""
    live = (settings.worker_updates_topic, settings.worker_updated_topic, settings.worker_rejected_topic)
    if to in live:
        raise SettingsError(
            f"--to: expected a topic of your own, found {to}, which the workers write or read. To have stored answers"
            " there again, rewind the group (kafka-consumer-groups --reset-offsets, workers stopped)"
        )


async def _target(settings: Settings, to: str) -> _Target:
    found = await other_topic(settings, to)
    if found is None:
        raise Fatal(
            f"topic {to} doesn't exist: create it first, for example kafka-topics.sh --bootstrap-server"
            f" {settings.bootstrap_servers} --create --topic {to} --partitions {settings.worker_partitions}"
            " --config max.message.bytes=8388608"
        )
    return _Target(to, *found)


class _Sending:
    def __init__(self, producer: AIOKafkaProducer, target: _Target, resent: Resent) -> None:
        self._producer = producer
        self._target = target
        self._resent = resent
        self._in_flight: deque[tuple[asyncio.Future[Any], int]] = deque()
        self._bytes_in_flight = 0

    async def send(self, answer: Answer, partition: int) -> None:
        """Raises Fatal where the topic doesn't take it, DependencyAway where Kafka doesn't answer."""
        target = self._target
        size = wire_size(answer.key, answer.value, answer.headers)
        if size > target.max_record_bytes:
            raise Fatal(
                f"an answer takes {size:,} bytes, topic {target.name} takes {target.max_record_bytes:,}: raise its"
                " max.message.bytes, then run the same command again (each answer keeps its ce_id)"
            )
        to = partition_of(answer.key, target.partitions, partition)
        async with _bounded():
            self._in_flight.append((await self._sent(answer, to), size))
        self._bytes_in_flight += size
        while len(self._in_flight) >= _IN_FLIGHT or self._bytes_in_flight > _BYTES_IN_FLIGHT:
            await self._acknowledged()

    async def finish(self) -> None:
        """Until all is acknowledged."""
        while self._in_flight:
            await self._acknowledged()

    async def _sent(self, answer: Answer, partition: int) -> "asyncio.Future[Any]":
        """Stamped now: a topic's retention counts from there, not from when it was first sent."""
        producer, topic = self._producer, self._target.name
        if answer.key is None and answer.value is None:  # `send` refuses it
            batch = producer.create_batch()
            batch.append(key=None, value=None, headers=answer.headers, timestamp=None)
            batch.close()
            sent: asyncio.Future[Any] = await producer.send_batch(batch, topic, partition=partition)
        else:
            sent = await producer.send(
                topic, key=answer.key, value=answer.value, headers=answer.headers, partition=partition
            )
        return sent

    async def _acknowledged(self) -> None:
        future, size = self._in_flight.popleft()
        async with _bounded():
            await future
        self._bytes_in_flight -= size
        self._resent.sent += 1


@asynccontextmanager
async def _bounded() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_STALLED_AFTER):
            yield
    except TimeoutError:
        raise DependencyAway(f"Kafka has acknowledged nothing for {_STALLED_AFTER:.0f} s") from None


@asynccontextmanager
async def _producer(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers,
        client_id="measurement-updates",
        enable_idempotence=True,
        linger_ms=2,
        max_batch_size=128 * 1024,
        max_request_size=_LARGEST,
        retry_backoff_ms=50,
    )
    try:
        async with asyncio.timeout(15):
            await producer.start()
        yield producer
    finally:
        await stop_client(producer)
