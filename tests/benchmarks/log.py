"""The rows and the log that all contestants work on: `measurements` rows, events of about 450 bytes, headers included."""

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
    return str(uuid.uuid5(uuid.NAMESPACE_URL, str(number)))


def patch(number: int) -> dict[str, Any]:
    return {
        "notes": f"step {number}: capacity 2.31 Ah at 25.0 °C, CE 99.87 %\r\nchannel rested 600 s",
        "test_setup": {**_SETUP, "channel_number": number % 64},
    }


async def fill_rows(bench: System, measurements: int) -> None:
    await bench.database.copy_records_to_table(
        "cell_measurements",
        records=[
            (
                measurement_id(number),
                f"cell-{number % 500}",
                f"cycle life {number}",
                json.dumps(_PROTOCOL),
                json.dumps(_SETUP),
            )
            for number in range(measurements)
        ],
        columns=["id", "cell_instance_id", "name", "protocol", "test_setup"],
    )
    await bench.database.execute("VACUUM ANALYZE cell_measurements")


def fill_log(bench: System, events: int, measurements: int) -> None:
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
            patch(number),
            id=f"{number}",
            source="urn:lab-2:biologic",
        )
        producer.produce(bench.updates, key=key, value=value, headers=list(headers), partition=-1)
        producer.poll(0)
    if left := producer.flush(120):
        raise SystemExit(f"Kafka hasn't acknowledged {left} of {events} events")
