"""The command `replay`, run as a process, and what it published."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, TypeAlias

import orjson
from aiokafka import ConsumerRecord

from tests import commands
from tests.system import System, until
from worker.verification.topics import broker

Record: TypeAlias = "ConsumerRecord[bytes, bytes]"
WHY = ("--why", "a test")


def replaying(
    lab: System, *arguments: str, **environment: str
) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    return commands.begun(lab, "replay", *arguments, **environment)


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    out, errors = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode is not None
    return process.returncode, out.decode(), errors.decode()


async def replay(lab: System, *arguments: str, **environment: str) -> tuple[int, str, str]:
    async with replaying(lab, *arguments, **environment) as process:
        return await ended(process)


async def replayed(lab: System, *arguments: str, **environment: str) -> dict[str, Any]:
    """The replay, with what became of its records; workers have to run."""
    code, out, errors = await replay(lab, *arguments, "--json", **environment)
    assert code == 0, errors
    return dict(orjson.loads(out))


async def log_of(lab: System) -> list[Record]:
    """All committed records of the input, whatever their bytes."""
    found: list[Record] = []
    async with broker(lab.settings) as kafka:
        topic = await kafka.topic(lab.updates)
        ends = await kafka.stable_ends(topic)
        async with aclosing(kafka.read([topic], ends)) as pieces:
            async for _, _, records in pieces:
                found += records
    return sorted(found, key=lambda record: (record.partition, record.offset))


def copies(log: Sequence[Record]) -> list[Record]:
    return [record for record in log if "requeued-from" in dict(record.headers)]


def copied(log: Sequence[Record]) -> Counter[str]:
    """Place of each record that was published again, and how often."""
    return Counter((dict(record.headers)["requeued-from"] or b"").decode() for record in copies(log))


async def the_replay(lab: System) -> dict[str, Any]:
    row = await lab.database.fetchrow("SELECT * FROM measurement_updates.replays")
    assert row is not None
    return dict(row)


async def some_records(lab: System, count: int, each: int = 50) -> None:
    """In both partitions, all duplicates when they are published again; decided."""
    for number in range(10):
        await lab.seed(f"m-{number}")
    sent = [
        await lab.producer.send(
            lab.updates,
            key=b"m-%d" % (number % 10),
            value=b'{"notes": "%d"}' % number,
            headers=[
                ("ce_specversion", b"1.0"),
                ("ce_id", b"%d" % number),
                ("ce_source", b"cycler"),
                ("ce_type", b"cell_measurement.update.v1"),
            ],
        )
        for number in range(count)
    ]
    await asyncio.wait_for(asyncio.gather(*sent), 60)
    async with lab.worker():
        await lab.settled(60)


@asynccontextmanager
async def begun(lab: System, *arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A replay of many small transactions, after the first of them; its id."""
    async with replaying(lab, "--from", "earliest", *WHY, *arguments, WORKER_BATCH_RECORDS="2") as process:

        async def has_published() -> bool:
            return bool(
                await lab.database.fetchval("SELECT count(*) FROM measurement_updates.replayed_records")
            )

        await until(has_published, "the replay publishes")
        yield process, (await the_replay(lab))["id"]
