"""Protocol definitions: real ones, made with aurora-unicycler (https://github.com/EmpaEconversion/aurora-unicycler).

Each comes as a UCP object and as the text that the cycler's own software reads, of the same steps.
"""

import re
from typing import Any

from aurora_unicycler import (
    ConstantCurrent,
    ConstantVoltage,
    CyclingProtocol,
    Loop,
    OpenCircuitVoltage,
    RecordParams,
    SafetyParams,
    SampleParams,
    Step,
    Tag,
)

HOUR = 3600.0


def formation(sample: str, capacity_mah: float) -> CyclingProtocol:
    """Three slow cycles after a soak: what every new cell begins with."""
    return _protocol(
        sample,
        capacity_mah,
        [
            OpenCircuitVoltage(until_time_s=12 * HOUR),
            Tag(tag="formation"),
            *_cycle("C/10"),
            Loop(loop_to="formation", cycle_count=3),
        ],
    )


def ageing(sample: str, capacity_mah: float) -> CyclingProtocol:
    """Up to a thousand cycles in blocks of fifty, a slow check-up cycle before each block."""
    return _protocol(
        sample,
        capacity_mah,
        [
            Tag(tag="check-up"),
            *_cycle("C/20"),
            OpenCircuitVoltage(until_time_s=HOUR),
            Tag(tag="ageing"),
            *_cycle("1C/1"),
            Loop(loop_to="ageing", cycle_count=50),
            Loop(loop_to="check-up", cycle_count=20),
        ],
    )


def rate_test(sample: str, capacity_mah: float) -> CyclingProtocol:
    """Discharges from C/10 to 3C, each after the same slow charge: a long list of steps."""
    steps: list[Step] = []
    for number, rate in enumerate((0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 0.1), 1):
        tag = f"{number}: discharge at {rate:g}C"
        steps += [Tag(tag=tag), *_cycle("C/5", discharge=-rate), Loop(loop_to=tag, cycle_count=5)]
    return _protocol(sample, capacity_mah, steps)


def titration(sample: str, capacity_mah: float, pulses: int) -> CyclingProtocol:
    """GITT, pulse by pulse as older cyclers want it: hundreds of steps, tens of kilobytes."""
    steps: list[Step] = []
    for rate, limit in ((0.05, 4.2), (-0.05, 2.8)):
        for _ in range(pulses):
            steps += [
                ConstantCurrent(rate_C=rate, until_time_s=HOUR / 2, until_voltage_V=limit),
                OpenCircuitVoltage(until_time_s=2 * HOUR),
            ]
    return _protocol(sample, capacity_mah, steps)


def _cycle(charge: str, discharge: float | str | None = None) -> list[Step]:
    return [
        ConstantCurrent(rate_C=charge, until_voltage_V=4.2, until_time_s=24 * HOUR),
        ConstantVoltage(voltage_V=4.2, until_rate_C=0.02, until_time_s=6 * HOUR),
        OpenCircuitVoltage(until_time_s=600),
        ConstantCurrent(
            rate_C=discharge or charge.replace("C", "D"), until_voltage_V=2.8, until_time_s=24 * HOUR
        ),
        OpenCircuitVoltage(until_time_s=600),
    ]


def _protocol(sample: str, capacity_mah: float, steps: list[Step]) -> CyclingProtocol:
    most = 4 * capacity_mah
    return CyclingProtocol(
        sample=SampleParams(name=sample, capacity_mAh=capacity_mah),
        record=RecordParams(time_s=10, voltage_V=0.005),
        safety=SafetyParams(
            max_voltage_V=4.35, min_voltage_V=2.5, max_current_mA=most, min_current_mA=-most, delay_s=1
        ),
        method=steps,
    )


def as_ucp(protocol: CyclingProtocol) -> dict[str, Any]:
    """The UCP object; `CyclingProtocol.from_dict` reads it back."""
    return dict(protocol.to_dict(exclude_none=True))


def as_eclab(protocol: CyclingProtocol) -> str:
    """BioLogic EC-Lab settings (.mps): Windows line ends, µA."""
    return _windows(protocol.to_biologic_mps())


def as_bts(protocol: CyclingProtocol) -> str:
    """Neware BTS step file (XML), but without the two things in it that are new each time."""
    text = str(protocol.to_neware_xml())
    text = re.sub(r' date="\d+"', ' date="20250317090000"', text, count=1)
    text = re.sub(r' Guid="[^"]*"', ' Guid="5c7a1f0e-8d5b-4f0c-9a39-2d6b6a0f2f11"', text, count=1)
    return _windows(text)


def as_steps(protocol: CyclingProtocol) -> str:
    """One sentence a step, loops written out, as PyBaMM reads them: "Charge at 0.1C for 24 hours or until 4.2 V"."""
    return "\n".join(protocol.to_pybamm_experiment())


def _windows(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\n", "\r\n")
