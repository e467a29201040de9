"""The floor of the latency, as a process: a transaction of Kafka and one of Postgres for what has come, without our logic.

The worker's emitter and a session for each partition, as the worker has them; one update by key, an answer of as many bytes,
the offset in the same transaction. Arguments: brokers, DSN, input topic, output topic, partitions.
"""

import asyncio
import logging
import sys
from typing import TypeAlias

import asyncpg
import uvloop
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from worker.answer import PlainAnswer
from worker.emit import Emitter

Queue: TypeAlias = "asyncio.Queue[list[ConsumerRecord[bytes, bytes]]]"
_ANSWER_BYTES = b"x" * 900
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # that it waits for markers is no news


async def lane(servers: str, dsn: str, updated: str, tp: TopicPartition, queue: Queue) -> None:
    connection = await asyncpg.connect(dsn, server_settings={"measurement_updates.applying": "on"})
    emitter = Emitter(servers, "latency-floor", tp, 1024**2)
    await emitter.start()
    while True:
        records = await queue.get()
        while not queue.empty():
            records += queue.get_nowait()
        await connection.execute(
            "UPDATE cell_measurements SET updated_at = now() WHERE id = ANY($1)",
            [(record.key or b"").decode() for record in records],
        )
        answers = [
            PlainAnswer(
                record.offset, updated, record.key, _ANSWER_BYTES, record.timestamp, None,
                [("ce_id", f"@{record.timestamp}".encode())],
            )
            for record in records
        ]  # fmt: skip
        await emitter.emit(answers, records[-1].offset + 1)


async def main(servers: str, dsn: str, updates: str, updated: str, partitions: int) -> None:
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest")
    await consumer.start()
    queues: dict[TopicPartition, Queue] = {
        TopicPartition(updates, number): asyncio.Queue() for number in range(partitions)
    }
    consumer.assign(list(queues))
    async with asyncio.TaskGroup() as lanes:
        for tp, queue in queues.items():
            lanes.create_task(lane(servers, dsn, updated, tp, queue))
        while True:
            for tp, records in (await consumer.getmany(timeout_ms=500)).items():
                queues[tp].put_nowait(records)


if __name__ == "__main__":
    servers, dsn, updates, updated, partitions = sys.argv[1:]
    uvloop.run(main(servers, dsn, updates, updated, int(partitions)))
