"""The lab before its first update: three organizations, their cells, and measurements of all three types."""

import random
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import orjson

from worker.lab import protocols

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "lab.measurement-updates.example")
BEGAN = datetime(2025, 3, 3, 7, 30, tzinfo=UTC)

ORGANIZATIONS = {"Nordlab": "no", "Cellworks": "cw", "TU Rheinstadt": "tu"}
"""Name → what its cells' names begin with."""
CELLS = 5
"""An organization."""


def lab_id(*names: str) -> str:
    """The UUID of something of this lab, the same for ever."""
    return str(uuid.uuid5(NAMESPACE, "/".join(names)))


@dataclass(slots=True)
class Measurement:
    """One row of `cell_measurements`."""

    id: str
    cell_instance_id: str
    name: str
    measurement_type: str
    organization_id: str
    created_by: str
    created_by_email: str
    created_at: datetime
    start_time: datetime | None = None
    protocol: dict[str, Any] | None = None
    test_setup: dict[str, Any] | None = None
    notes: str | None = None
    properties: dict[str, Any] | None = None
    file_metadata: dict[str, Any] | None = None
    step_labels_validated: bool = False
    capacity_mah: float = field(default=0.0)
    """Of its cell; no column."""

    def patchable(self) -> dict[str, Any]:
        """The fields that an update may change."""
        return {
            "name": self.name,
            "protocol": self.protocol,
            "test_setup": self.test_setup,
            "notes": self.notes,
            "properties": self.properties,
        }


PEOPLE = ("Ines Haug", "Tomás Ferreira", "Yuki Mori", "Åsa Lindqvist")


def measurements(seed: int = 1) -> list[Measurement]:
    """Each cell has two time series, a file and its properties; ids don't depend on the seed."""
    chance = random.Random(f"measurements {seed}")
    found = []
    for organization, prefix in ORGANIZATIONS.items():
        for number in range(1, CELLS + 1):
            cell = f"{prefix.upper()}-{number:03}"
            capacity = chance.choice((0.31, 3.4, 4.8, 150.0))
            person = chance.choice(PEOPLE)
            made = BEGAN + timedelta(hours=chance.randrange(24 * 20), minutes=chance.randrange(60))
            for kind, title in (
                ("time_series", "formation"),
                ("time_series", "ageing at 25 °C"),
                ("file", "CT scan"),
                ("properties", "incoming inspection"),
            ):
                one = Measurement(
                    id=lab_id(organization, cell, title),
                    cell_instance_id=lab_id(organization, cell),
                    name=f"{cell} {title}",
                    measurement_type=kind,
                    organization_id=lab_id(organization),
                    created_by=lab_id("person", person),
                    created_by_email=_email(person, organization),
                    created_at=made,
                    capacity_mah=capacity,
                )
                _fill(one, cell, chance)
                found.append(one)
    return found


def _fill(one: Measurement, cell: str, chance: random.Random) -> None:
    match one.measurement_type:
        case "time_series":
            one.start_time = one.created_at + timedelta(minutes=30)
            if "formation" in one.name:
                definition = protocols.as_ucp(protocols.formation(cell, one.capacity_mah))
                one.protocol = {"name": "formation C/10", "definition": definition}
                one.step_labels_validated = True
        case "file":
            one.file_metadata = {
                "filename": f"{cell}_ct_42µm.tiff",
                "size_bytes": chance.randrange(10**8, 10**9),
                "media_type": "image/tiff",
            }
        case _:
            one.properties = {
                "thickness": {"value": round(chance.uniform(0.48, 0.55), 3), "unit": "mm"},
                "mass": {"value": round(chance.uniform(44, 47), 2), "unit": "g"},
                "supplier": "LfP GmbH",
                "vented": False,
            }


def _email(person: str, organization: str) -> str:
    name = person.lower().replace(" ", ".").replace("á", "a").replace("å", "a")
    return f"{name}@{organization.lower().replace(' ', '-')}.example"


async def seed_measurements(
    connection: "asyncpg.Connection[asyncpg.Record]", rows: list[Measurement]
) -> None:
    """Put the rows there as they are before the first update, in place of those of an earlier demo."""
    columns = (
        "id", "cell_instance_id", "name", "measurement_type", "organization_id", "created_by", "created_by_email",
        "created_at", "updated_at", "start_time", "protocol", "test_setup", "notes", "properties", "file_metadata",
        "step_labels_validated",
    )  # fmt: skip
    async with connection.transaction():
        await remove_measurements(connection, rows)
        await connection.executemany(
            f"INSERT INTO cell_measurements ({', '.join(columns)})"
            f" VALUES ({', '.join(f'${number}' for number in range(1, len(columns) + 1))})",
            [tuple(_column(row, column) for column in columns) for row in rows],
        )


def _column(row: Measurement, column: str) -> Any:
    value = row.created_at if column == "updated_at" else getattr(row, column)
    return orjson.dumps(value).decode() if isinstance(value, dict) else value


async def remove_measurements(
    connection: "asyncpg.Connection[asyncpg.Record]", rows: list[Measurement]
) -> None:
    """Take the lab's rows out again, and no others."""
    await connection.execute(
        "DELETE FROM cell_measurements WHERE id = ANY($1::text[])", [row.id for row in rows]
    )


async def foreign_measurements(
    connection: "asyncpg.Connection[asyncpg.Record]", rows: list[Measurement]
) -> int:
    """How many measurements are there that aren't the lab's."""
    return int(
        await connection.fetchval(
            "SELECT count(*) FROM cell_measurements WHERE NOT id = ANY($1::text[])", [row.id for row in rows]
        )
    )
