"""The floor, as a process: consume, the worker's set-wise update, as many bytes produced; no logic of ours.

Arguments: brokers, DSN, input topic, output topic, events, batch, bytes of an answer.
"""

import asyncio
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import asyncpg
import orjson
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

import worker.database  # noqa: F401  # which spares asyncpg a question about each element of an array, here as well
from worker.measurement import BIT, JSON_FIELDS, PATCHABLE
from worker.sql import queries

_POSITION = bytes(24)


def texts(field: str, patches: Iterable[dict[str, Any]]) -> list[str]:
    if field in JSON_FIELDS:
        return [orjson.dumps(patch[field]).decode() for patch in patches]
    return [patch[field] for patch in patches]


async def main(
    servers: str, dsn: str, updates: str, updated: str, events: int, batch: int, answer_bytes: int
) -> None:
    connection = await asyncpg.connect(dsn, server_settings={"measurement_updates.applying": "on"})
    consumer = AIOKafkaConsumer(updates, bootstrap_servers=servers, auto_offset_reset="earliest")
    producer = AIOKafkaProducer(bootstrap_servers=servers, enable_idempotence=True, max_batch_size=512 * 1024)
    await producer.start()
    await consumer.start()
    partitions = len(await producer.partitions_for(updated))
    answer = b"x" * answer_bytes
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
        fields = patches[records[0].key.decode()].keys()
        await connection.execute(
            queries()["write_updates"],
            list(patches),
            [sum(BIT[field] for field in fields)] * rows,
            [datetime.now(UTC)] * rows, [seen] * rows, [seen] * rows,
            *(texts(field, patches.values()) if field in fields else None for field in PATCHABLE),
            *([_POSITION] * rows if field in fields else None for field in PATCHABLE),
            *[None] * 25,
        )  # fmt: skip
        partition = seen % partitions
        builder = producer.create_batch()
        for record in records:
            if builder.append(key=record.key, value=answer, timestamp=None) is None:
                pending.append(await producer.send_batch(builder, updated, partition=partition))
                builder = producer.create_batch()
                builder.append(key=record.key, value=answer, timestamp=None)
        pending.append(await producer.send_batch(builder, updated, partition=partition))
    await asyncio.gather(*pending)
    await asyncio.Event().wait()  # until ended: whoever measures reads the sessions' CPU first


if __name__ == "__main__":
    servers, dsn, updates, updated, events, batch, answer_bytes = sys.argv[1:]
    uvloop.run(main(servers, dsn, updates, updated, int(events), int(batch), int(answer_bytes)))
