"""The composition root of the worker: the only place that builds pool, broker and lanes."""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import asyncpg
import structlog
import uvloop
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from faststream.kafka import KafkaBroker

from worker.answer import AnswerForm
from worker.connecting import bound_connecting
from worker.database import COMMAND_TIMEOUT, POSTGRES_ERRORS, close, connect, schema_is_current
from worker.errors import DependencyAway, Fatal, WorkerError
from worker.input_log import InputLog
from worker.lane import Lane
from worker.lane_states import LaneStates
from worker.lane_watch import LaneWatch
from worker.metrics import Metrics
from worker.observer import Observer
from worker.record import DecodeLimits
from worker.repeats import hold_back_repeats
from worker.retention import keep_retention
from worker.retry import as_worker_error, backoff
from worker.serving import serving
from worker.settings import Settings
from worker.sql import queries
from worker.subscriber import Lanes, build_broker
from worker.takeover import LaneParts
from worker.topics import check_topics
from worker.tracing import tracing
from worker.turns import Turns

_AFTER_A_DEFECT = "start it again (nothing is lost: what was in flight is decided, or isn't), and report it"
_TOPIC_AS_IT_SHOULD_BE = (
    "alter the topic's setting (kafka-configs.sh --alter --add-config …): the worker goes on meanwhile"
)
_TOPIC_AS_IT_MUST_BE = (
    "make what is missing with `measurement-updates topics`, alter what differs, start again"
)

log = structlog.get_logger()
Found = TypeVar("Found")


class Worker:
    """One worker process: start it, let it run, stop it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = asyncio.Event()
        self._fault: BaseException | None = None
        self._metrics = Metrics()
        self._observer = Observer()
        self._metrics.look_at(self._observer.gauges)

    def stop(self) -> None:
        """Finish what is in flight, then `run` returns. Not lost where it comes before `run`."""
        self._stop.set()

    def fail(self, error: BaseException) -> None:
        """Stop, and let `run` raise this."""
        if self._fault is None:
            self._fault = error
        self._stop.set()

    async def run(self) -> None:
        """Until stopped. Raises Fatal, or the defect that ended it."""
        try:
            # first there, last to go
            async with serving(self._settings, self._observer, self._metrics, self._ended):
                await self._run()
        except Exception as error:
            why = str(error) if isinstance(error, WorkerError) else f"{type(error).__name__}: {error}"
            do = error.do if isinstance(error, WorkerError) else _AFTER_A_DEFECT
            log.error("worker fails", why=why, **({"do": do} if do else {}))
            raise

    async def _run(self) -> None:
        settings = self._settings
        log.info(
            "worker starts",
            kafka=settings.bootstrap_servers,
            topic=settings.worker_updates_topic,
            group=settings.worker_group,
        )
        found = await self._once_there(self._look_at_topics)
        if found is None:
            return
        cluster, form = found
        if await self._once_there(lambda: self._look_at_database(cluster)) is None:
            return
        pool = await asyncpg.create_pool(
            settings.dsn,
            min_size=0,
            max_size=2,
            max_inactive_connection_lifetime=30,
            timeout=10,
            command_timeout=COMMAND_TIMEOUT,
        )
        try:
            await self._work(cluster, form, pool)
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2):  # it waits for every session to be given back
                    await pool.close()
        if self._fault is not None:
            raise self._fault
        log.info("worker stopped")

    async def _work(self, cluster: str, form: AnswerForm, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        settings = self._settings
        owner = f"{socket.gethostname()}:{os.getpid()}"
        states = LaneStates(pool, owner)
        limits = DecodeLimits(max_event_bytes=settings.worker_max_event_bytes)
        traces = tracing(settings, os.environ)

        def build_log() -> InputLog:
            assert lanes.consumer is not None
            return InputLog(lanes.consumer, settings.bootstrap_servers, settings.worker_group)

        turns = Turns()

        def build_lane(tp: TopicPartition) -> Lane:
            watch = LaneWatch(tp, self._metrics, None if traces is None else traces.lane(tp))
            return Lane(
                tp, LaneParts(settings, cluster, owner, form, limits, build_log(), pool, states, turns, watch)
            )

        # of a value that is over both nothing more is needed: it isn't admitted, and it is rejected cut
        lanes = Lanes(build_lane, self.fail, max(settings.worker_max_event_bytes, form.max_rejected_bytes))
        self._observer.lanes = lanes
        keeping_states = asyncio.create_task(states.keep())
        keeping_states.add_done_callback(self._ended)
        broker = await self._once_there(lambda: self._start_broker(lanes))
        if broker is not None:
            await self._housekeep(build_log(), pool)
        # stopped while it started, there may be lanes all the same: partitions are assigned before the start has ended
        log.info("worker stops: finishing what is in flight")
        drain_seconds = settings.worker_drain_timeout.total_seconds()
        if not await lanes.drain(timeout=max(0.5, drain_seconds - 5)):
            log.warning(
                "not everything in flight was answered in time: the next owner of the partitions does it",
                do="nothing. Where it happens at every stop, a longer WORKER_DRAIN_TIMEOUT (and grace period) gives it time",
            )
        keeping_states.cancel()
        await states.flush(timeout=0.5)
        if broker is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await broker.stop()
        if traces is not None:
            await asyncio.to_thread(traces.stop)

    async def _housekeep(self, input_log: InputLog, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        """Until stopped: what goes on beside the lanes."""
        settings, topic = self._settings, self._settings.worker_updates_topic
        housekeeping = [keep_retention(pool, settings, lambda: input_log.all_ends(topic), self._metrics)]
        if settings.worker_http is not None:
            housekeeping.append(self._observer.keep_surveying(pool, input_log, topic))
        tasks = [asyncio.create_task(work) for work in housekeeping]
        for task in tasks:
            task.add_done_callback(self._ended)
        await self._stop.wait()
        for task in tasks:
            task.cancel()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """A task that goes on for ever has ended: cancelled by us, or by a defect."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    async def _start_broker(self, lanes: Lanes) -> KafkaBroker:
        broker = build_broker(self._settings, lanes, self.fail)
        try:
            await broker.start()
        except BaseException:
            await broker.stop()
            raise
        return broker

    async def _look_at_topics(self) -> tuple[str, AnswerForm]:
        settings = self._settings
        cluster, topics = await check_topics(settings)
        faults = [f"topic {topic.name}: {fault}" for topic in topics for fault in topic.faults]
        if faults:
            raise Fatal("\n".join(faults), do=_TOPIC_AS_IT_MUST_BE)
        for topic in topics:
            for warning in topic.warnings:
                log.warning(
                    "topic isn't as it should be", topic=topic.name, why=warning, do=_TOPIC_AS_IT_SHOULD_BE
                )
        limit = {topic.purpose: topic.max_message_bytes for topic in topics}
        return cluster, AnswerForm(
            settings.worker_updates_topic,
            settings.worker_updated_topic,
            settings.worker_rejected_topic,
            settings.worker_source,
            limit["updated"],
            limit["rejected"],
        )

    async def _look_at_database(self, cluster: str) -> bool:
        settings = self._settings
        connection = await connect(settings.dsn, application="measurement-updates run")
        try:
            if not await schema_is_current(connection):
                raise Fatal("the database's schema isn't this version's: run `measurement-updates migrate`")
            foreign = await connection.fetchrow(
                queries()["foreign_lanes"], settings.worker_updates_topic, cluster, settings.worker_group
            )
        finally:
            await close(connection)
        if foreign is not None:
            name = f"{settings.worker_updates_topic}/{foreign['partition']}"
            raise Fatal(
                f"this database applies {name} from Kafka cluster {foreign['cluster']} in group"
                f" {foreign['consumer_group']}; this worker is of cluster {cluster} and group {settings.worker_group}."
                " Point it at the right broker and database (KAFKA_BOOTSTRAP_SERVERS, WORKER_GROUP, DATABASE_URL), or"
                f" give the old log up: measurement-updates lanes restart {name} --why …"
            )
        return True

    async def _once_there(self, attempt: Callable[[], Coroutine[Any, Any, Found]]) -> Found | None:
        """Try until Kafka and Postgres are there; None where the worker was stopped meanwhile. Raises Fatal."""
        said = ""
        for seconds in backoff():
            if self._stop.is_set():
                return None
            task = asyncio.ensure_future(attempt())
            stopped = asyncio.ensure_future(self._stop.wait())
            await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait([task], timeout=2)
                return None
            try:
                found = task.result()
                self._observer.waits_for = ""
                return found
            except (DependencyAway, KafkaError, OSError, *POSTGRES_ERRORS) as error:
                known = as_worker_error(error)
                if str(known) != said:
                    said = self._observer.waits_for = str(known)
                    log.warning("worker waits", why=said, do=known.do if known else "")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stop.wait()
        return None


def run_worker(settings: Settings) -> None:
    """The worker as a process: SIGTERM and SIGINT stop it within WORKER_DRAIN_TIMEOUT, whatever is away."""
    tune_collector()
    hold_back_repeats()
    bound_connecting()
    uvloop.run(_run(settings))


async def _run(settings: Settings) -> None:
    worker = Worker(settings)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        # the last resort, should a library hang: everything in flight is in transactions, nothing is lost
        last_resort = threading.Timer(settings.worker_drain_timeout.total_seconds() - 0.5, os._exit, [0])
        last_resort.daemon = True
        last_resort.start()
        worker.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await worker.run()


def tune_collector() -> None:
    """Thousands of young objects a batch, none of them cyclic: at Python's thresholds the collector costs more than
    validation does (20 µs an event instead of 4)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(500_000, 10, 10)
