"""The rows and the log that all contestants work on: `measurements` rows, events of about 450 bytes, headers included."""

import hashlib
import json
import uuid
from functools import cache
from typing import Any

from confluent_kafka import Producer

from contracts.cloudevents import binary_update
from tests.system import System

_SETUP = {"cycler": "Biologic BCS-815", "operator": "m.keller", "lab": "Lab 2", "channel_number": 7}
_PROTOCOL = {
    "name": "formation C/10",
    "ambient_temperature_degc": 25,
    "definition": {"steps": list(range(20))},
}


@cache
def measurement_id(number: int) -> str:
    return str(uuid.UUID(hashlib.md5(str(number).encode()).hexdigest()))


def patch(number: int, definition_bytes: int = 0) -> dict[str, Any]:
    """`definition_bytes`: with a protocol whose definition is so long."""
    changes: dict[str, Any] = {
        "notes": f"step {number}: capacity 2.31 Ah at 25.0 °C, CE 99.87 %\r\nchannel rested 600 s",
        "test_setup": {**_SETUP, "channel_number": number % 64},
    }
    if definition_bytes:
        step = f"step {number}: CC charge C/10 to 4.2 V, CV to C/50, rest 600 s;\r\n"
        definition = (step * (definition_bytes // len(step) + 1))[:definition_bytes]
        changes["protocol"] = {**_PROTOCOL, "definition": definition}
    return changes


async def fill_rows(bench: System, measurements: int) -> None:
    await bench.database.execute(
        """INSERT INTO cell_measurements (id, cell_instance_id, name, protocol, test_setup)
           SELECT md5(number::text)::uuid::text, 'cell-' || number % 500, 'cycle life ' || number, $2::jsonb, $3::jsonb
           FROM generate_series(0, $1::bigint - 1) AS number""",
        measurements,
        json.dumps(_PROTOCOL),
        json.dumps(_SETUP),
        timeout=3600,
    )
    await bench.database.execute("VACUUM ANALYZE cell_measurements", timeout=3600)


async def fill_history(bench: System, rows: int) -> None:
    """As if so many updates had been applied lately, through another topic's lane."""
    if not rows:
        return
    lane = await bench.database.fetchval(
        """INSERT INTO measurement_updates.lanes
               (topic, partition, cluster, consumer_group, next_to_apply, next_to_answer)
           VALUES ('history', 0, 'history', 'history', $1, $1) RETURNING lane""",
        rows,
    )
    await bench.database.execute(
        """INSERT INTO measurement_updates.applied_updates
               (lane, log_offset, arrival, identity, content, measurement_id, event_source, event_id, revision, changed,
                answer_source, answer)
           SELECT $1, number, extract(epoch FROM now())::bigint * 1000, substr(sha256(number::text::bytea), 1, 16),
                  substr(sha256(number::text::bytea), 17, 16), md5((number % 50000)::text)::uuid::text, 'urn:history',
                  number::text, number / 50000 + 1, 'test_setup,notes', 'urn:worker', repeat('x', 600)
           FROM generate_series(0, $2::bigint - 1) AS number""",
        lane,
        rows,
        timeout=7200,
    )
    await bench.database.execute("VACUUM ANALYZE measurement_updates.applied_updates", timeout=3600)
    await bench.database.execute("CHECKPOINT", timeout=3600)


def fill_log(bench: System, events: int, measurements: int, definition_bytes: int = 0) -> None:
    producer = Producer(
        {
            "bootstrap.servers": bench.settings.bootstrap_servers,
            "enable.idempotence": True,
            "linger.ms": 20,
            "batch.size": 512 * 1024,
            "queue.buffering.max.messages": events + 1,
        }
    )
    for number in range(events):
        key, value, headers = binary_update(
            measurement_id(number * 7919 % measurements),
            patch(number, definition_bytes),
            id=f"{number}",
            source="urn:lab-2:biologic",
        )
        producer.produce(bench.updates, key=key, value=value, headers=list(headers), partition=-1)
        producer.poll(0)
    if left := producer.flush(120):
        raise SystemExit(f"Kafka hasn't acknowledged {left} of {events} events")
