"""The floor, as a process: consume, the worker's set-wise update, as many bytes produced; no logic of ours.

Arguments: brokers, DSN, input topic, output topic, events, batch.
"""

import asyncio
import sys
from datetime import UTC, datetime

import asyncpg
import orjson
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from worker.measurement import BIT
from worker.sql import queries

_ANSWER_BYTES = b"x" * 900
"""About what an answer to one of the benchmark's events takes, headers included."""
_POSITION = bytes(24)


async def main(servers: str, dsn: str, updates: str, updated: str, events: int, batch: int) -> None:
    connection = await asyncpg.connect(dsn, server_settings={"measurement_updates.applying": "on"})
    consumer = AIOKafkaConsumer(updates, bootstrap_servers=servers, auto_offset_reset="earliest")
    producer = AIOKafkaProducer(bootstrap_servers=servers, enable_idempotence=True, max_batch_size=512 * 1024)
    await producer.start()
    await consumer.start()
    partitions = len(await producer.partitions_for(updated))
    pending: list[asyncio.Future[object]] = []
    seen = 0
    while seen < events:
        fetched = await consumer.getmany(timeout_ms=500, max_records=batch)
        records = [record for of_one in fetched.values() for record in of_one]
        if not records:
            continue
        seen += len(records)
        patches = {record.key.decode(): orjson.loads(record.value) for record in records}
        rows = len(patches)
        await connection.execute(
            queries()["write_updates"],
            list(patches),
            [BIT["test_setup"] | BIT["notes"]] * rows,
            [datetime.now(UTC)] * rows, [seen] * rows, [seen] * rows,
            None, None, [orjson.dumps(patch["test_setup"]).decode() for patch in patches.values()],
            [patch["notes"] for patch in patches.values()], None,
            None, None, [_POSITION] * rows, [_POSITION] * rows, None, *[None] * 15,
        )  # fmt: skip
        partition = seen % partitions
        builder = producer.create_batch()
        for record in records:
            if builder.append(key=record.key, value=_ANSWER_BYTES, timestamp=None) is None:
                pending.append(await producer.send_batch(builder, updated, partition=partition))
                builder = producer.create_batch()
                builder.append(key=record.key, value=_ANSWER_BYTES, timestamp=None)
        pending.append(await producer.send_batch(builder, updated, partition=partition))
    await asyncio.gather(*pending)
    await asyncio.Event().wait()  # until ended: whoever measures reads the sessions' CPU first


if __name__ == "__main__":
    servers, dsn, updates, updated, events, batch = sys.argv[1:]
    uvloop.run(main(servers, dsn, updates, updated, int(events), int(batch)))
