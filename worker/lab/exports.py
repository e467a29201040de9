"""What the lab's programs write: test setups, notes, tables, inspections and protocol definitions."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from worker.lab import protocols


@dataclass(frozen=True, slots=True)
class Integration:
    """A program that watches one make of cycler."""

    name: str
    source: str
    form: Literal["binary", "structured", "bare"]
    cycler: str
    definition: Callable[[Any], dict[str, Any] | str]


INTEGRATIONS = (
    Integration("biologic", "urn:lab:biologic:eclab-pc-2", "binary", "BioLogic BCS-815", protocols.as_eclab),
    Integration("arbin", "urn:lab:arbin:mits-pro-8", "structured", "Arbin LBT21084", protocols.as_ucp),
    Integration("maccor", "", "bare", "Maccor Series 4600", protocols.as_steps),
    Integration("neware", "urn:lab:neware:bts-8.0", "binary", "Neware CT-4008Tn", protocols.as_bts),
    Integration("lims", "https://lims.lab.example/api", "structured", "", protocols.as_ucp),
)
"""What measures cells, and the lab's information system, which knows their properties."""
BIOLOGIC, ARBIN, MACCOR, NEWARE, LIMS = INTEGRATIONS


def setup(integration: Integration, chance: random.Random) -> dict[str, Any]:
    """Whose channel it is."""
    return {
        "cycler": integration.cycler,
        "operator": chance.choice(("ihaug", "tferreira", "ymori", "alindqvist")),
        "lab": chance.choice(("B2.14 climate chamber 3", "B2.16", "Halle 5, 45 °C")),
        "channel_number": chance.randrange(1, 65),
    }


def cycle_note(capacity_mah: float, chance: random.Random) -> str:
    """Two lines about the last cycle."""
    cycle = chance.randrange(1, 900)
    capacity = capacity_mah * (1 - cycle * 2e-4) * chance.uniform(0.995, 1.0)
    return (
        f"Cycle {cycle}: Qdis {capacity:.4f} mAh, CE {chance.uniform(99.6, 99.99):.2f} %\r\n"
        f"T {chance.uniform(24.5, 25.6):.1f} °C, Rdc {chance.uniform(18, 44):.1f} mΩ,"
        f" leakage {chance.uniform(0.2, 9):.2f} µA"
    )


def cycle_table(capacity_mah: float, cycles: int, chance: random.Random) -> str:
    """As an export looks: tab-separated, Windows line ends, 10 to 50 kB."""
    lines = [
        "cycle number\ttime/h\tQ charge/µA.h\tQ discharge/µA.h\tEfficiency/%\tT/°C\tEnergy discharge/µW.h"
    ]
    capacity = capacity_mah * 1000
    for cycle in range(1, cycles + 1):
        charged = capacity * (1 - cycle * 2e-4) * chance.uniform(0.998, 1.002)
        efficiency = chance.uniform(99.6, 99.99)
        discharged = charged * efficiency / 100
        lines.append(
            f"{cycle}\t{cycle * 2.31:.2f}\t{charged:.3f}\t{discharged:.3f}\t{efficiency:.3f}"
            f"\t{chance.uniform(24.6, 25.4):.1f}\t{discharged * 3.7:.3f}"
        )
    return "\r\n".join(lines)


def inspection(before: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """The properties of a cell, measured again."""
    return {
        **before,
        "thickness": {"value": round(chance.uniform(0.48, 0.61), 3), "unit": "mm"},
        "coating_roughness": {"value": round(chance.uniform(0.4, 2.5), 2), "unit": "µm"},
        "acir_1khz": {"value": round(chance.uniform(12, 40), 2), "unit": "mΩ"},
        "vented": chance.random() < 0.05,
        "remark": chance.choice(("swollen at the tab", "Kratzer auf der Hülle", "", None)),
    }


@cache
def definition(kind: str, cell: str, capacity_mah: float, integration: Integration) -> dict[str, Any] | str:
    """A protocol as this integration writes it."""
    match kind:
        case "formation":
            protocol = protocols.formation(cell, capacity_mah)
        case "ageing":
            protocol = protocols.ageing(cell, capacity_mah)
        case "rate test":
            protocol = protocols.rate_test(cell, capacity_mah)
        case _:
            protocol = protocols.titration(cell, capacity_mah, 15)
    return integration.definition(protocol)
