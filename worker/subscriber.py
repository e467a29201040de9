"""The FastStream subscriber of the input topic, and rebalances → lanes.

FastStream polls and hands over; it never acknowledges (offsets are committed in the lanes' transactions), never parses
(what a record is, `decode` decides), and never creates topics.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

import structlog
from aiokafka import ConsumerRebalanceListener, TopicPartition
from faststream import AckPolicy
from faststream.kafka import KafkaBroker, KafkaMessage, Topic
from faststream.kafka.message import FAKE_CONSUMER

from worker.consumer import Fetched, LogConsumer
from worker.lane import Lane
from worker.settings import Settings

log = structlog.get_logger()


class Lanes(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no complete types
    """The lanes of the partitions that are assigned to this worker now."""

    def __init__(
        self, build: Callable[[TopicPartition], Lane], fail: Callable[[BaseException], None], value_bytes: int
    ) -> None:
        """`value_bytes`: at least so much of a value is needed, however large it is."""
        self._build = build
        self._fail = fail
        self._value_bytes = value_bytes
        self._lanes: dict[TopicPartition, Lane] = {}
        self._tasks: dict[TopicPartition, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self.consumer: LogConsumer | None = None
        self.draining = False
        self.assigned = False
        """The group has said which partitions are ours, if any; not while it makes up its mind anew."""

    def use(self, consumer: LogConsumer) -> None:
        self.consumer = consumer
        consumer.broken = self._fail
        consumer.value_bytes = max(consumer.value_bytes, self._value_bytes)

    @property
    def present(self) -> Iterable[Lane]:
        return self._lanes.values()

    # No heartbeats are sent while these two run, and what they raise is swallowed: they return at once.
    # Coroutines, though they await nothing: FastStream runs plain functions in a thread.

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """What is in flight is dropped: the next owner finds it decided, or not, and goes on from there."""
        self.assigned = False
        for tp in list(self._lanes):
            self._drop(tp)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        for tp in list(self._lanes):
            self._drop(tp)
        self.assigned = True
        if not assigned:
            log.warning(
                "no partition is assigned to this worker: more workers than partitions, or the topic is gone",
                do="nothing, where it is a spare one. Else see with `measurement-updates topics` that the topic is there",
            )
        for tp in assigned:
            # paused until its lane has taken it over
            assert self.consumer is not None
            self.consumer.pause(tp)
            if self.draining:
                continue
            lane = self._lanes[tp] = self._build(tp)
            task = self._tasks[tp] = asyncio.create_task(lane.run(), name=f"lane {tp.topic}/{tp.partition}")
            task.add_done_callback(self._ended)

    def offer(self, fetched: Fetched) -> None:
        lane = self._lanes.get(TopicPartition(fetched.topic, fetched.partition))
        if lane is not None:
            lane.offer(fetched)

    async def drain(self, timeout: float) -> bool:
        """Let every lane finish what it has begun. False where some couldn't in time: those are cut off."""
        self.draining = True
        for tp, lane in self._lanes.items():
            if not lane.drain():
                self._tasks[tp].cancel()
        tasks = [*self._tasks.values(), *self._ending]
        pending: set[asyncio.Task[None]] = set()
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=timeout)
            for task in pending:
                task.cancel()
            if pending:
                await asyncio.wait(pending, timeout=1)
        return not pending

    def _drop(self, tp: TopicPartition) -> None:
        del self._lanes[tp]
        task = self._tasks.pop(tp)
        task.cancel()
        self._ending.add(task)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._ending.discard(task)
        if task.cancelled():
            if task in self._tasks.values() and not self.draining:
                # else its partition would stand still, and nothing would say so
                self._fail(
                    RuntimeError(f"{task.get_name()} was cancelled, though its partition is still ours")
                )
        elif (error := task.exception()) is not None:
            self._fail(error)


class _Broker(KafkaBroker):
    """FastStream has no setting for the consumer's class; it builds it by `config.builder`, made when it connects."""

    lanes: Lanes

    async def _connect(self) -> Callable[..., Any]:
        await super()._connect()
        options = self.config.broker_config.builder.keywords  # type: ignore[attr-defined]  # a functools.partial

        def build(*topics: str, **more: Any) -> LogConsumer:
            consumer = LogConsumer(*topics, **{**options, **more})
            self.lanes.use(consumer)
            return consumer

        self.config.broker_config.builder = build
        return build


def build_broker(settings: Settings, lanes: Lanes, fail: Callable[[BaseException], None]) -> KafkaBroker:
    """Not started yet."""
    # its warnings are of things that are meant to be so (no topic is created, nothing is acknowledged)
    logger = logging.getLogger(f"{__name__}.faststream")
    logger.setLevel(logging.ERROR)
    broker = _Broker(
        settings.bootstrap_servers.split(","),  # FastStream takes a string for one server
        consumer_only=True,
        apply_types=False,
        logger=logger,
        client_id=f"{settings.worker_group}-consumer",
        # that a connection has died without a word is noticed by nothing else; joining the group may take a session's time
        request_timeout_ms=settings.worker_session_timeout_ms + 5_000,
        metadata_max_age_ms=5_000,  # a topic that is there again, or has more partitions: the default is 5 minutes
    )
    broker.lanes = lanes
    subscriber = broker.subscriber(
        Topic(settings.worker_updates_topic, declare=False),
        group_id=settings.worker_group,
        batch=True,
        batch_timeout_ms=1,  # LogConsumer.getmany waits itself; this is what FastStream sleeps after an empty one
        auto_offset_reset="none",  # where to begin is for the lanes to say
        isolation_level="read_committed",
        ack_policy=AckPolicy.MANUAL,
        session_timeout_ms=settings.worker_session_timeout_ms,
        heartbeat_interval_ms=max(100, settings.worker_session_timeout_ms // 4),
        listener=lanes,
        parser=_wrap,
        decoder=_unwrap,
        no_reply=True,
        include_in_schema=False,
    )

    async def hand_over(batch: tuple[Fetched, ...]) -> None:
        try:
            for fetched in batch:
                lanes.offer(fetched)
        except Exception as error:  # FastStream would log it and go on
            fail(error)

    subscriber(hand_over)
    return broker


async def _wrap(fetched: tuple[Fetched, ...]) -> KafkaMessage:
    # what it consumes from is needed for acknowledging only
    return KafkaMessage(raw_message=fetched, body=fetched, consumer=FAKE_CONSUMER)


async def _unwrap(message: KafkaMessage) -> Any:
    return message.raw_message
