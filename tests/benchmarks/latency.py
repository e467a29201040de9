"""Latency of the worker: from the append of a record to the moment when a read_committed subscriber has its answer.

Open loop: records are sent when their time has come, whatever has been answered, so that a slow answer delays nobody
else's clock. The append is the broker's timestamp (`@arrival` in the answer's ce_id; cut to a millisecond, so what is
measured is up to a millisecond too long).
"""

import asyncio
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

from contracts.cloudevents import binary_update
from tests.benchmarks.log import measurement_id, patch
from tests.system import System, until

_WARM_UP = 3.0
"""Seconds, not counted."""


@dataclass(frozen=True, slots=True)
class Latencies:
    """Milliseconds."""

    answers: list[float]
    """One an answer, sorted."""
    sender_late: float
    """How far behind its times the sender was at most: a machine that has no time for it has none for the worker."""


async def floor_latencies(bench: System, rate: int, seconds: float, measurements: int) -> Latencies:
    """Of the same transactions without our logic: what the machine, the broker and the database allow."""
    settings = bench.settings
    arguments = [settings.bootstrap_servers, settings.dsn, bench.updates, settings.worker_updated_topic]
    process = subprocess.Popen(  # noqa: ASYNC220  # starting it blocks for a moment, before anything is timed
        [
            sys.executable,
            "-m",
            "tests.benchmarks.latency_floor",
            *arguments,
            str(settings.worker_partitions),
        ]
    )
    try:
        return await asyncio.to_thread(_send_and_receive, bench, rate, seconds, measurements)
    finally:
        process.kill()
        process.wait()


async def latencies(bench: System, rate: int, seconds: float, measurements: int) -> Latencies:
    """The worker's, at so many events/s."""
    with tempfile.TemporaryFile() as log, bench.process(log) as process:

        async def is_there() -> bool:
            assert process.poll() is None
            lanes = await bench.database.fetchval("SELECT count(*) FROM measurement_updates.lanes")
            return int(lanes) == bench.settings.worker_partitions

        await until(is_there, "the worker has its lanes", timeout=60)
        return await asyncio.to_thread(_send_and_receive, bench, rate, seconds, measurements)


def _send_and_receive(bench: System, rate: int, seconds: float, measurements: int) -> Latencies:
    settings = bench.settings
    consumer = Consumer(
        {
            "bootstrap.servers": settings.bootstrap_servers,
            "group.id": "nobody",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 100,
        }
    )
    topic = settings.worker_updated_topic
    consumer.assign([TopicPartition(topic, number, 0) for number in range(settings.worker_partitions)])
    producer = Producer({"bootstrap.servers": settings.bootstrap_servers})
    total = int(rate * (seconds + _WARM_UP))
    updates = [
        binary_update(
            measurement_id(number * 7919 % measurements), patch(number), id=f"l-{number}", source="urn:lab-2"
        )
        for number in range(total)
    ]
    found: list[tuple[float, float]] = []
    sent = 0
    latest = 0.0
    began = time.time()
    while len(found) < total:
        due = min(total, int((time.time() - began) * rate))
        latest = max(latest, time.time() - began - sent / rate) if sent < due else latest
        for key, value, headers in updates[sent:due]:
            producer.produce(bench.updates, key=key, value=value, headers=list(headers))
        sent = max(sent, due)
        producer.poll(0)
        # the next answer, or the time to send; of many, at most a thousand times a second: the machine is shared
        pause = began + (sent + 1) / rate - time.time() if sent < total else 0.1
        messages: list[Any] = (
            [consumer.poll(pause)] if pause > 0.001 else consumer.consume(500, timeout=0.001)
        )
        now = time.time()
        for message in filter(None, messages):
            if message.error():
                raise SystemExit(str(message.error()))
            id = dict(message.headers())["ce_id"]
            arrival = int(id.rpartition(b"@")[2]) / 1000
            found.append((arrival, (now - arrival) * 1000))
        if time.time() - began > seconds + _WARM_UP + 60:
            raise SystemExit(f"{len(found)} of {total} answers a minute after the last event was sent")
    producer.flush()
    consumer.close()
    counted = sorted(latency for arrival, latency in found if arrival >= began + _WARM_UP)
    return Latencies(counted, latest * 1000)
