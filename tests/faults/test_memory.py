"""The memory of a worker, under the largest records that it admits, larger ones, and rows larger than their updates.

Each waits as a backlog, in every partition, so that batches are as full as they get. What a lane may hold: 16 MiB of
records, and a fetch of 4 MiB more; one batch decoded, 8 MiB about, or one event, which takes up to 32 times its JSON; the
batch's rows as text and as bytes, its answers, and those of up to three batches that Kafka hasn't taken yet (16 MiB each).
No lane has all of it at its most: about half is the bound here.
"""

import asyncio
import re
from pathlib import Path

import pytest

from tests.batches import ZSTD, Repeated, publish
from tests.faults.states import Log
from tests.system import System

MIB = 1024**2
LANES = 4
MOST = (96 + LANES * 96) * MIB

pytestmark = pytest.mark.partitions(LANES)


@pytest.mark.thorough
async def test_the_largest_events(lab: System, log: Log) -> None:
    """Valid ones, of what takes the most memory once it is decoded: lists of `{"":{}}` and the like."""
    shapes = (b'{"":{}}', b'{"":0}', b"{}", b"[]", b'"ab"', b"1.5")
    bodies = [
        b'{"protocol":{"a":[%b]}}' % b",".join([shape] * (MIB // (len(shape) + 1) - 8)) for shape in shapes
    ]
    for partition in range(LANES):
        await lab.seed(f"m-{partition}")
        await asyncio.gather(
            *[lab.publish(f"m-{partition}", body, partition=partition) for body in bodies * 2]
        )
    await worked_off(lab, log)
    assert await lab.database.fetchval("SELECT bool_and(revision = 12) FROM cell_measurements")


async def test_small_updates_of_large_measurements(lab: System, log: Log) -> None:
    for partition in range(LANES):
        ids = [
            await lab.seed(f"m-{partition}-{number}", protocol={"x": "x" * 4 * MIB}) for number in range(15)
        ]
        await asyncio.gather(*[lab.publish(id, {"notes": "x"}, partition=partition) for id in ids])
    await worked_off(lab, log)
    assert await lab.database.fetchval("SELECT bool_and(revision = 1) FROM cell_measurements")


@pytest.mark.thorough
async def test_a_batch_of_four_gibibytes(lab: System, log: Log) -> None:
    await lab.seed("m-0")
    bomb = Repeated(b'{"notes":"', b"x", 2_047 * MIB, b'"}')
    records = await publish(
        lab.settings.bootstrap_servers, lab.updates, 0, [(b"m-0", bomb, [])] * 2 + [(b"m-0", b"{}", [])], ZSTD
    )
    await worked_off(lab, log)
    assert await lab.verdicts(*records) == ["too_large", "too_large", "0"]


async def worked_off(lab: System, log: Log) -> None:
    """By a worker with the default settings."""
    with lab.process(log.file, WORKER_SESSION_TIMEOUT_MS="10000") as worker:
        await lab.settled(120)
        most = peak(worker.pid)
    epochs = await lab.database.fetchval("SELECT array_agg(epoch) FROM measurement_updates.lanes")
    assert epochs == [1] * LANES, f"a lane was taken over a second time: {log.events()}"
    assert most < MOST, f"expected less than {MOST / MIB:.0f} MiB, found {most / MIB:.0f}"


def peak(pid: int) -> int:
    """Bytes of memory that a process has had at most."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
