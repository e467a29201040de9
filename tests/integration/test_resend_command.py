"""`resend`: stored answers, byte for byte, and the present state of measurements, in a topic of the operator's."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import NewTopic

from contracts.cloudevents import read_updated
from tests.faults.states import administering
from tests.integration.test_contract_replay import publish_some
from tests.integration.test_contract_replay import seed as seed_six
from tests.system import COMMAND, Answer, System, answer_of
from worker.replay.selection import time_text


async def resend(lab: System, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        COMMAND, "resend", *arguments, env={**lab.environment, **environment},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), errors.decode()


async def own_topic(lab: System, partitions: int = 2, max_bytes: int = 8 * 1024**2) -> str:
    name = f"own-{random.randbytes(6).hex()}"
    async with administering(lab) as admin:
        await admin.create_topics(
            [NewTopic(name, partitions, 1, topic_configs={"max.message.bytes": str(max_bytes)})]
        )
    return name


async def records_of(lab: System, topic: str, partitions: int = 2) -> list[Answer]:
    """In order in each partition."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=lab.settings.bootstrap_servers,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    await consumer.start()
    try:
        of_topic = [TopicPartition(topic, number) for number in range(partitions)]
        consumer.assign(of_topic)
        ends = await consumer.end_offsets(of_topic)
        await consumer.seek_to_beginning(*of_topic)
        found: list[ConsumerRecord[bytes, bytes]] = []
        async with asyncio.timeout(30):
            while any([await consumer.position(tp) < ends[tp] for tp in of_topic]):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += records
    finally:
        await consumer.stop()
    return [answer_of(record) for record in sorted(found, key=lambda one: (one.partition, one.offset))]


def wire(answers: Sequence[Answer]) -> list[tuple[Any, ...]]:
    """In an order of their own: partitions have none."""
    found = [(one.key, one.value, one.raw_headers) for one in answers]
    return sorted(found, key=repr)


async def sent(lab: System, *arguments: str) -> dict[str, Any]:
    code, out, errors = await resend(lab, *arguments, "--json")
    assert code == 0, errors
    return dict(orjson.loads(out))


async def test_stored_answers_come_byte_for_byte_and_in_order(lab: System) -> None:
    await seed_six(lab)
    async with lab.worker():
        await publish_some(lab, 60, seed=5)
        answers = await lab.answers()
    updated = [answer for answer in answers if not answer.rejected]
    rejected = [answer for answer in answers if answer.rejected]
    to = await own_topic(lab)
    assert await sent(lab, "--from", "earliest", "--to", to) == {
        "topic": to,
        "sent": len(updated),
        "unreadable": [],
    }
    again = await records_of(lab, to)
    assert wire(again) == wire(updated)
    for key in {answer.key for answer in again}:
        revisions = [answer.revision for answer in again if answer.key == key]
        assert revisions == sorted(revisions)
    to = await own_topic(lab)
    await sent(lab, "--from", "1h", "--rejected", "--to", to)
    assert wire(await records_of(lab, to)) == wire(rejected)
    to = await own_topic(lab, partitions=1)
    await sent(lab, "--measurement", "m-0", "--to", to)
    of_one = [answer for answer in updated if answer.key == b"m-0"]
    assert [one.raw_headers for one in await records_of(lab, to, 1)] == [one.raw_headers for one in of_one]


async def test_a_range_of_time_or_of_offsets(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        records = [await lab.publish("m-1", {"notes": f"{number}"}, partition=0) for number in range(12)]
        await lab.settled()
    for options in (
        ("--from", time_text(records[4].timestamp), "--until", time_text(records[9].timestamp)),
        ("--from", "4", "--until", "9", "--partition", "0"),
    ):
        to = await own_topic(lab)
        await sent(lab, *options, "--to", to)
        notes = [answer.model["notes"] for answer in await records_of(lab, to)]
        arrivals = {f"{number}": record.timestamp for number, record in enumerate(records)}
        if "--partition" in options:
            assert notes == [f"{number}" for number in range(4, 9)]
        else:  # several may have arrived in the same millisecond
            between = [
                note for note, at in arrivals.items() if records[4].timestamp <= at < records[9].timestamp
            ]
            assert notes == between


async def test_the_present_state_of_every_measurement(lab: System) -> None:
    await lab.seed("m-1", notes="never updated", protocol={"large": 1e22})
    await lab.seed("m-2")
    async with lab.worker():
        await lab.update("m-2", {"notes": "updated"}, id="e-1")
        await lab.settled()
    await lab.database.execute("UPDATE cell_measurements SET created_by = 'anna' WHERE id = 'm-2'")
    to = await own_topic(lab)
    for _ in range(2):
        await sent(lab, "--current", "--to", to)
    found = await records_of(lab, to)
    states = {answer.text("ce_id"): answer for answer in found}
    assert (len(found), len(states)) == (4, 2)
    for answer in states.values():
        read = read_updated(answer.key, answer.value, answer.raw_headers)
        row = await lab.row(read.measurement_id)
        assert (read.revision, read.changed) == (row["revision"], ())
        assert (read.measurement.notes, read.measurement.created_by) == (row["notes"], row["created_by"])
        assert read.measurement.updated_at == row["updated_at"]
    await lab.seed("m-3", name="")
    code, out, errors = await resend(lab, "--current", "--to", to)
    assert code == 1
    assert "2 answers sent" in out
    assert "measurement m-3 can't be expressed in the response model: name" in errors


async def test_what_is_refused(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        await lab.update("m-1", {"notes": "x" * 3_000}, id="e-1")
        await lab.settled()
    to, small = await own_topic(lab), await own_topic(lab, max_bytes=2_000)
    for arguments, code, words in (
        (("--to", to), 2, "expected one of --from (and --until), --measurement and --current, found none"),
        (("--to", to, "--from", "1h", "--current"), 2, "found --from and --current"),
        (("--to", to, "--current", "--rejected"), 2, "--partition and --rejected"),
        (("--to", to, "--from", "0"), 2, "expected --partition beside it"),
        (("--to", to, "--from", "soon"), 2, "--from: expected an offset"),
        (("--to", to, "--measurement", "nobody"), 1, "no stored answer of measurement nobody"),
        (
            ("--to", "nowhere", "--current"),
            1,
            "topic nowhere doesn't exist: create it first, for example kafka-topics",
        ),
        (("--to", small, "--current"), 1, "raise its max.message.bytes"),
        *((("--to", live, "--current"), 2, "expected a topic of your own") for live in live_topics(lab)),
    ):
        found, out, errors = await resend(lab, *arguments)
        assert (found, out) == (code, ""), errors
        assert words in " ".join(errors.split()), errors
        assert "Traceback" not in errors


def live_topics(lab: System) -> tuple[str, str, str]:
    settings = lab.settings
    return settings.worker_updates_topic, settings.worker_updated_topic, settings.worker_rejected_topic
