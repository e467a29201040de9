"""The floor of the latency, as a process: a transaction of Kafka and one of Postgres for what has come, without our logic.

A transactional producer and a session for each partition, as the worker has them; one update by key, an answer of as many
bytes, the offset in the same transaction. Arguments: brokers, DSN, input topic, output topic, partitions.
"""

import asyncio
import logging
import sys
from typing import TypeAlias

import aiokafka.producer.sender as sender_module
import asyncpg
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

Queue: TypeAlias = "asyncio.Queue[list[ConsumerRecord[bytes, bytes]]]"
_ANSWER_BYTES = b"x" * 900
_GROUP = "latency-floor"
sender_module.BACKOFF_OVERRIDE = 0.002  # as the worker has it
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # that it waits for markers is no news


async def lane(
    servers: str,
    dsn: str,
    updated: str,
    tp: TopicPartition,
    queue: Queue,
) -> None:
    connection = await asyncpg.connect(dsn, server_settings={"measurement_updates.applying": "on"})
    producer = AIOKafkaProducer(
        bootstrap_servers=servers, transactional_id=f"{_GROUP}.{tp.partition}", retry_backoff_ms=10
    )
    await producer.start()
    while True:
        records = await queue.get()
        while not queue.empty():
            records += queue.get_nowait()
        await connection.execute(
            "UPDATE cell_measurements SET updated_at = now() WHERE id = ANY($1)",
            [(record.key or b"").decode() for record in records],
        )
        async with producer.transaction():
            for record in records:
                arrival = [("ce_id", f"@{record.timestamp}".encode())]
                await producer.send(
                    updated, key=record.key, value=_ANSWER_BYTES, headers=arrival, partition=tp.partition
                )
            await producer.send_offsets_to_transaction({tp: records[-1].offset + 1}, _GROUP)


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
