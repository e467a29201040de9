"""Sizes: what is too large for the input, for the answers' topic, and for the rejected topic."""

import hashlib
import json
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.structs import RecordMetadata
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.system import Answer, System
from worker.measurement import excess_in_database
from worker.sql import queries

MIB = 1024**2
KIB_64 = 64 * 1024

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner)
)


def notes_of(size: int) -> bytes:
    """A body of this many bytes."""
    return b'{"notes":"%b"}' % (b"x" * (size - len(b'{"notes":""}')))


def nested(depth: int) -> bytes:
    """A body of this depth, valid otherwise."""
    return b'{"protocol":' + b'{"a":' * (depth - 2) + b"{}" + b"}" * (depth - 2) + b"}"


def truncated(answer: Answer) -> dict[str, Any]:
    return dict(orjson.loads(answer.headers["rejection-truncated"] or b""))


async def compressed(lab: System, value: bytes, codec: str, key: bytes = b"m-1") -> RecordMetadata:
    """Sent by a producer whose batches are small on the wire."""
    async with AIOKafkaProducer(
        bootstrap_servers=lab.settings.bootstrap_servers,
        compression_type=codec,
        max_request_size=128 * MIB,
    ) as producer:
        return await producer.send_and_wait(lab.updates, value, key=key)


async def test_an_event_may_have_a_mebibyte_and_no_byte_more(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        records = [
            await lab.publish("m-1", notes_of(MIB)),
            await lab.publish("m-1", notes_of(MIB + 1)),
            await lab.publish("m-1", notes_of(2 * MIB)),
            await compressed(lab, notes_of(MIB - 1), "gzip"),
            await compressed(lab, notes_of(MIB + 1), "zstd"),
        ]
        verdicts = await lab.verdicts(*records)
        assert verdicts == ["1 notes", "too_large", "too_large", "2 notes", "too_large"]
        answers = await lab.answers_to(*records)
    assert len(answers[0].model["notes"]) == MIB - len(b'{"notes":""}')
    for answer, size in zip(answers[1:3], (MIB + 1, 2 * MIB), strict=True):
        assert answer.value == notes_of(size), "what the rejected topic takes is kept whole"
        assert "rejection-truncated" not in answer.headers
        [violation] = answer.detail["violations"]
        assert violation["path"] == "$"
        assert f"{MIB:,}" in violation["expected"]
        assert f"{size:,}" in violation["found"]


async def test_the_limit_is_a_setting(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker(worker_max_event_bytes=2_000):
        records = [await lab.publish("m-1", notes_of(size)) for size in (2_000, 2_001)]
        assert await lab.verdicts(*records) == ["1 notes", "too_large"]


async def test_depth_is_bounded_at_100_levels_of_the_value_as_it_stands(lab: System) -> None:
    await lab.seed("m-1")
    envelope = b'{"specversion":"1.0","type":"cell_measurement.update.v1","id":"%d","source":"c","data":%b}'
    headers = [("content-type", b"application/cloudevents+json")]
    async with lab.worker():
        records = [
            await lab.publish("m-1", nested(100)),
            await lab.publish("m-1", nested(101)),
            await lab.publish("m-1", envelope % (1, nested(99)), headers),
            await lab.publish("m-1", envelope % (2, nested(100)), headers),
            await lab.publish("m-1", b'{"notes":"%b"}' % (b"[{" * 500)),
            await lab.publish("m-1", b'{"protocol":{"a":[%b]}}' % b",".join([b"[{}]"] * 500)),
            await lab.publish("m-1", b'{"protocol":' * 100_000),
        ]
        assert await lab.verdicts(*records) == [
            "1 protocol",
            "too_large",
            "2 protocol",
            "too_large",
            "3 notes",
            "4 protocol",
            "too_large",
        ]


async def test_key_and_headers_over_64_kib_are_left_out_and_named(lab: System) -> None:
    await lab.seed("m-1")
    await lab.seed("x" * KIB_64)
    key, headers = b"x" * (KIB_64 + 1), [("n", b"x" * KIB_64)]
    value = b'{"notes":"x"}'
    async with lab.worker():
        fits = [
            await lab.publish("x" * KIB_64, value),
            await lab.publish("m-1", value, [("n", b"x" * (KIB_64 - 1))]),
        ]
        records = [
            await lab.publish(key, value),
            await lab.publish("m-1", value, headers),
            await lab.publish(key, value, headers),
            await lab.publish("m-1", value, [("n" * 2_000, None)] * 33),
            await lab.publish(key, None, headers),
        ]
        assert await lab.verdicts(*fits) == ["1 notes"] * 2
        assert await lab.verdicts(*records) == ["too_large"] * 4 + ["empty_event"]
        answers = await lab.answers_to(*records)
    left_out = [["key"], ["headers"], ["key", "headers"], ["headers"], ["key", "headers"]]
    for answer, record, names in zip(answers, records, left_out, strict=True):
        whole = value if answer.code == "too_large" else b""
        assert answer.value == (value if answer.code == "too_large" else None)
        assert answer.key == (None if "key" in names else b"m-1")
        assert truncated(answer) == {
            "length": len(whole),
            "sha256": hashlib.sha256(whole).hexdigest(),
            "left_out": names,
        }
        assert {name for name in answer.headers if not name.startswith("rejection-")} == set()
        assert int(answer.text("rejection-offset")) == record.offset
    paths = [[violation["path"] for violation in answer.detail["violations"]] for answer in answers]
    assert paths[:4] == [["key"], ["headers"], ["key", "headers"], ["headers"]]


async def test_a_compressed_bomb_is_rejected_cut_to_what_the_topic_takes(lab: System) -> None:
    await lab.seed("m-1")
    bombs = {"gzip": b"\x00" * 50_000_000, "zstd": b"[" * 50_000_000, "lz4": notes_of(50_000_000)}
    async with lab.worker():
        records, neighbours = [], []
        for codec, value in bombs.items():
            records.append(await compressed(lab, value, codec))
            neighbours.append(await lab.publish("m-1", {"notes": codec}))
        assert await lab.verdicts(*records) == ["too_large"] * 3
        assert await lab.verdicts(*neighbours) == ["1 notes", "2 notes", "3 notes"]
        answers = await lab.answers_to(*records)
    for answer, value in zip(answers, bombs.values(), strict=True):
        assert answer.value is not None
        assert MIB < len(answer.value) < 50_000_000
        assert value.startswith(answer.value)
        assert answer.key == b"m-1"
        assert truncated(answer) == {
            "length": 50_000_000,
            "sha256": hashlib.sha256(value).hexdigest(),
        }
        assert "50,000,000" in answer.detail["message"]


async def test_an_answer_that_would_be_larger_than_its_topic_takes_is_refused(lab: System) -> None:
    await lab.seed("m-1", notes="as it was")
    await lab.seed("m-2")
    await lab.database.execute(
        """UPDATE cell_measurements SET protocol = jsonb_build_object('x', repeat('x', 8 * 1024 * 1024))
           WHERE id = 'm-1'"""
    )
    revision = (await lab.row("m-1"))["revision"]
    async with lab.worker():
        records = [
            await lab.update("m-1", {"notes": "too much"}, id="e-1"),
            await lab.update("m-1", {}, id="e-2"),
            await lab.update("m-2", {"notes": "a neighbour"}, id="e-1"),
            await lab.update("m-1", {"protocol": {"x": "short"}, "notes": "mended"}, id="e-3"),
            await lab.update("m-1", {"notes": "sent again"}, id="e-1"),
        ]
        assert await lab.verdicts(*records) == [
            "answer_too_large",
            "answer_too_large",
            "1 notes",
            f"{revision + 1} protocol,notes",
            f"{revision + 2} notes",
        ]
        [rejected] = await lab.answers_to(records[0])
    assert rejected.detail["violations"][0]["path"] == "$"
    assert rejected.detail["violations"][0]["found"] > 8 * MIB
    assert "max.message.bytes" in rejected.detail["message"]


async def test_an_answer_just_below_the_limit_is_sent(lab: System) -> None:
    await lab.seed("m-1")
    await lab.seed("m-2")
    await lab.database.execute(
        "UPDATE cell_measurements SET protocol = jsonb_build_object('x', repeat('x', 8 * 1024 * 1024 - 4000))"
    )
    async with lab.worker():
        records = [await lab.update(id, {"notes": "y" * 2_000}, id="e-1") for id in ("m-1", "m-2")]
        answers = await lab.answers_to(*records)
    for answer in answers:
        assert answer.changed == ["notes"]
        assert 8 * MIB - 2_000 < len(answer.value or b"") < 8 * MIB


@pytest.mark.parametrize("batch_records", [1, 1_000])
async def test_an_answer_has_the_size_that_it_has_once_it_comes_from_the_database(
    lab: System, batch_records: int
) -> None:
    """Postgres prints all digits of a number: where batches end makes no difference to what is too large."""
    await lab.seed("m-1")
    records = [
        await lab.publish("m-1", b'{"protocol":{"a":[%b]}}' % b",".join([b"1e308"] * numbers))
        for numbers in (26_000, 28_000)  # 8.1 MB and 8.7 MB; as they come, 156 kB
    ]
    records.append(await lab.publish("m-1", b'{"notes":"%b"}' % (b"x" * 500_000)))
    records.append(await lab.publish("m-1", b'{"notes":"short"}'))
    async with lab.worker(worker_batch_records=batch_records):
        assert await lab.verdicts(*records) == [
            "1 protocol",
            "answer_too_large",
            "answer_too_large",
            "2 notes",
        ]


async def test_what_a_value_takes_in_the_database_is_told_beforehand(lab: System) -> None:
    values: list[Any] = [
        1e308,
        5e-324,
        -0.0,
        -0.5,
        1e22,
        1.5e300,
        3.0,
        {},
        [],
        '\x7f\n"é😀',
        {"a": [1, {"b": None}]},
    ]
    texts = [orjson.dumps(value) for value in values]

    @settings(max_examples=100, database=None)
    @given(json_values)
    def collect(value: Any) -> None:
        texts.append(orjson.dumps(value))

    collect()
    rows = await lab.database.fetch(
        "SELECT octet_length(text::jsonb::text) AS size FROM unnest($1::text[]) AS text",
        [text.decode() for text in texts],
    )
    told = [(text, len(text) + excess_in_database(text)) for text in texts]
    assert told == [(text, row["size"]) for text, row in zip(texts, rows, strict=True)]


async def test_rows_that_do_not_fit_into_memory_together_are_taken_in_parts(lab: System) -> None:
    """A batch of small updates of large measurements."""
    for number in range(12):
        await lab.seed(f"m-{number:02}", protocol={"x": "x" * 2 * MIB})
    records = [
        await lab.publish(f"m-{number:02}", {"notes": f"{number}"}, partition=0) for number in range(12)
    ]
    ids = [f"m-{number:02}" for number in range(12)]
    found = await lab.database.fetch(queries()["lock_measurements"], ids, 9 * MIB)
    assert [row["id"] for row in found] == [*ids[:4], None]
    [alone] = await lab.database.fetch(queries()["lock_measurements"], ids[:1], 1)
    assert alone["id"] == "m-00"
    async with lab.worker():
        verdicts = await lab.verdicts(*records)
        answers = await lab.answers_to(*records)
    assert verdicts == ["1 notes"] * 12
    assert [answer.model["notes"] for answer in answers] == [f"{number}" for number in range(12)]


async def test_many_large_events_and_answers_pass_in_order(lab: System) -> None:
    await lab.seed("m-1")
    texts = [chr(ord("a") + number) * 900_000 for number in range(12)]
    async with lab.worker():
        records = [
            await lab.publish("m-1", json.dumps({"notes": text}).encode(), partition=0) for text in texts
        ]
        answers = await lab.answers_to(*records)
    assert [answer.model["notes"][:1] for answer in answers] == [text[0] for text in texts]
    assert [answer.revision for answer in answers] == list(range(1, 13))
