"""Plain FastStream, what most people write, as a process: a typed handler, one transaction and one publish a message.

Arguments: brokers, DSN, input topic, output topic, events (not needed), workers.
"""

import asyncio
import json
import logging
import sys
from typing import Any

import asyncpg
from faststream.kafka import KafkaBroker
from faststream.kafka.annotations import KafkaMessage

from contracts.patch import CellMeasurementPatch


async def main(servers: str, dsn: str, updates: str, updated: str, workers: int) -> None:
    pool = await asyncpg.create_pool(
        dsn, min_size=workers, max_size=workers, server_settings={"measurement_updates.applying": "on"}
    )
    broker = KafkaBroker(servers.split(","), logger=logging.getLogger("plain"))

    @broker.subscriber(updates, group_id="plain", auto_offset_reset="earliest", max_workers=workers)
    async def handle(patch: CellMeasurementPatch, message: KafkaMessage) -> None:
        record: Any = message.raw_message
        key = record.key
        sent = patch.model_dump(mode="json", exclude_unset=True)
        async with pool.acquire() as connection, connection.transaction():
            sets = ", ".join(f"{name} = ${number}" for number, name in enumerate(sent, 2))
            row = await connection.fetchrow(
                f"UPDATE cell_measurements SET {sets}, updated_at = now(), revision = revision + 1"
                " WHERE id = $1 RETURNING to_jsonb(cell_measurements)",
                key.decode(),
                *[_column(name, value) for name, value in sent.items()],
            )
        await broker.publish(json.loads(row[0]), updated, key=key)

    await broker.start()
    await asyncio.Event().wait()


def _column(name: str, value: Any) -> Any:
    return value if value is None or name in ("name", "notes") else json.dumps(value)


if __name__ == "__main__":
    servers, dsn, updates, updated, _, workers = sys.argv[1:]
    asyncio.run(main(servers, dsn, updates, updated, int(workers)))
