"""The batch script that a good engineer writes in a day, as a process: an inbox, a set-wise update, the row produced.

No validation, no history, not exactly once: killed between its two commits it answers twice, or not at all.
Arguments: brokers, DSN, input topic, output topic, events.
"""

import asyncio
import sys
from typing import Any

import asyncpg
import orjson
from confluent_kafka import Consumer, Producer

_BATCH = 5_000
_APPLY = """
    UPDATE cell_measurements AS m
    SET name = CASE WHEN u.patch ? 'name' THEN u.patch ->> 'name' ELSE m.name END,
        protocol = CASE WHEN u.patch ? 'protocol' THEN u.patch -> 'protocol' ELSE m.protocol END,
        test_setup = CASE WHEN u.patch ? 'test_setup' THEN u.patch -> 'test_setup' ELSE m.test_setup END,
        notes = CASE WHEN u.patch ? 'notes' THEN u.patch ->> 'notes' ELSE m.notes END,
        properties = CASE WHEN u.patch ? 'properties' THEN u.patch -> 'properties' ELSE m.properties END,
        updated_at = now(), revision = m.revision + 1
    FROM unnest($1::text[], $2::jsonb[]) AS u (id, patch) WHERE m.id = u.id
    RETURNING m.id, to_jsonb(m)::text"""


async def main(servers: str, dsn: str, updates: str, updated: str, events: int) -> None:
    connection = await asyncpg.connect(dsn, server_settings={"measurement_updates.applying": "on"})
    await connection.execute("CREATE TABLE inbox (source text, id text, PRIMARY KEY (source, id))")
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": "batch-script",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    producer = Producer({"bootstrap.servers": servers, "enable.idempotence": True, "linger.ms": 5})
    consumer.subscribe([updates])
    seen = 0
    while seen < events:
        messages: list[Any] = consumer.consume(_BATCH, timeout=0.5)
        if not messages:
            continue
        seen += len(messages)
        headers = [dict(message.headers()) for message in messages]
        events_of = [(header["ce_source"].decode(), header["ce_id"].decode()) for header in headers]
        async with connection.transaction():
            inserted = await connection.fetch(
                "INSERT INTO inbox SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT DO NOTHING RETURNING source, id",
                [source for source, _ in events_of],
                [id for _, id in events_of],
            )
            new = {(row["source"], row["id"]) for row in inserted}
            wanted = [message for message, event in zip(messages, events_of, strict=True) if event in new]
            patches: dict[str, dict[str, Any]] = {}
            for message in wanted:
                patches.setdefault(message.key().decode(), {}).update(orjson.loads(message.value()))
            rows = await connection.fetch(
                _APPLY, list(patches), [orjson.dumps(patch).decode() for patch in patches.values()]
            )
        models = dict(rows)
        for message in wanted:
            producer.produce(updated, key=message.key(), value=models[message.key().decode()])
            producer.poll(0)
        producer.flush()
        consumer.commit(asynchronous=False)
    await asyncio.Event().wait()  # until ended: whoever measures reads the sessions' CPU first


if __name__ == "__main__":
    servers, dsn, updates, updated, events = sys.argv[1:]
    asyncio.run(main(servers, dsn, updates, updated, int(events)))
