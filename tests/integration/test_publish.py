"""`publish`: files checked as a whole, sent once, and safe to send again."""

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.system import COMMAND, System

CSV = """\
measurement_id,notes,test_setup.cycler,test_setup.channel_number,properties.thickness.value,properties.thickness.unit
m-1,"vented
at 45 °C",BCS-815,25,,
m-2,\\N,,,0.52,mm
m-1,later,,,,
"""


async def publish(
    lab: System, *arguments: str, stdin: bytes = b"", **environment: str
) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        COMMAND, "publish", *arguments, env={**lab.environment, **environment},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, errors = await asyncio.wait_for(process.communicate(stdin), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), errors.decode()


def words(text: str) -> str:
    return " ".join(text.split())


async def test_a_csv_is_applied_and_the_same_command_again_changes_nothing(
    lab: System, tmp_path: Path
) -> None:
    file = tmp_path / "export.csv"
    file.write_text(CSV)
    await lab.seed("m-1")
    await lab.seed("m-2", notes="before", measurement_type="properties")
    async with lab.worker():
        code, out, errors = await publish(lab, str(file))
        assert code == 0, errors
        assert words(out).startswith("published 3 updates of 2 measurements")
        answers = await lab.answers(3)
        code, out, _ = await publish(lab, str(file), "--json")
        assert code == 0
        assert orjson.loads(out)["published"] == 3
        again = await lab.answers()
    assert [answer.code for answer in answers if answer.rejected] == []
    assert len(again) == 3
    first, second = await lab.row("m-1"), await lab.row("m-2")
    assert first["notes"] == "later"
    assert first["revision"] == 2
    assert first["test_setup"] == {"cycler": "BCS-815", "channel_number": 25}
    assert second["notes"] is None
    assert second["properties"] == {"thickness": {"value": 0.52, "unit": "mm"}}
    assert await lab.database.fetchval("SELECT sum(duplicates) FROM measurement_updates.lanes") == 3


async def test_the_same_words_twice_in_a_file_are_two_updates(lab: System) -> None:
    rows = b"".join(
        orjson.dumps({"measurement_id": "m-1", "notes": notes}) + b"\n" for notes in ("on", "off", "on")
    )
    await lab.seed("m-1")
    async with lab.worker():
        assert (await publish(lab, "-", "--format", "jsonl", stdin=rows))[0] == 0
        await lab.answers(3)
    assert (await lab.row("m-1"))["notes"] == "on"


async def test_after_a_mended_row_the_later_ones_have_the_last_word_again(
    lab: System, tmp_path: Path
) -> None:
    file = tmp_path / "updates.jsonl"
    rows = [
        {"measurement_id": "m-1", "notes": "chanel 3"},
        {"measurement_id": "m-2", "notes": "untouched"},
        {"measurement_id": "m-1", "notes": "finished"},
    ]
    await lab.seed("m-1")
    await lab.seed("m-2")
    async with lab.worker():
        file.write_bytes(b"\n".join(map(orjson.dumps, rows)))
        assert (await publish(lab, str(file)))[0] == 0
        await lab.answers(3)
        rows[0]["notes"] = "channel 3"
        file.write_bytes(b"\n".join(map(orjson.dumps, rows)))
        assert (await publish(lab, str(file)))[0] == 0
        await lab.answers(5)
    assert (await lab.row("m-1"))["notes"] == "finished"


@pytest.mark.parametrize("form", ["binary", "structured", "bare"])
async def test_every_form_arrives(lab: System, form: str) -> None:
    await lab.seed("m-1")
    row: dict[str, Any] = {"measurement_id": "m-1", "patch": {"notes": "µ"}, "traceparent": "00-1-2-01"}
    if form != "bare":
        row |= {"id": "e-1", "source": "urn:lims", "expectedrevision": 0}
    async with lab.worker():
        arguments = ("-", "--format", "jsonl", "--form", form)
        code, _, errors = await publish(lab, *arguments, stdin=orjson.dumps(row))
        assert code == 0, errors
        [answer] = await lab.answers(1)
    assert answer.model["notes"] == "µ"
    if form == "bare":
        assert answer.text("ce_causationsource") == f"kafka:{lab.updates}"
    else:
        assert answer.text("ce_causationsource") == "urn:lims"
        assert answer.text("ce_causationid") == "e-1"


async def test_one_wrong_row_and_nothing_is_sent(lab: System) -> None:
    rows = (
        b'{"measurement_id": "m-1", "notes": "right"}\n'
        b'{"measurement_id": "m-1", "test_setup": {"channel_number": "25"}}\n'
        b"\n"
        b"not json\n"
        b'{"notes": "no id"}\n'
    )
    code, out, errors = await publish(lab, "-", "--format", "jsonl", stdin=rows)
    assert code == 1
    assert out == ""
    text = words(errors)
    assert (
        'line 2: $.test_setup.channel_number: expected an integer of at most 64 bits, or null, found "25"'
        in text
    )
    assert "line 4: $: expected one JSON object a line" in text
    assert "line 5: measurement_id: expected a string" in text
    assert "3 of 4 rows are wrong: nothing was sent" in text
    assert await lab.answers() == []


async def test_what_breaks_the_schema_is_sent_where_that_is_asked_for(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        row = b'{"measurement_id": "m-1", "colour": "red"}'
        arguments = ("-", "--format", "jsonl", "--skip-validation")
        code, _, _ = await publish(lab, *arguments, stdin=row)
        assert code == 0
        [answer] = await lab.answers(1)
    assert answer.code == "invalid_patch"


async def test_a_dry_run_needs_no_broker(lab: System) -> None:
    row = b'{"measurement_id": "m-1", "notes": null}'
    arguments = ("-", "--format", "jsonl", "--dry-run")
    code, out, _ = await publish(lab, *arguments, stdin=row, KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1")
    assert code == 0
    assert "1 update of 1 measurement, all right" in out


async def test_a_broker_that_is_away_is_named_and_running_again_called_safe(lab: System) -> None:
    row = b'{"measurement_id": "m-1", "notes": null}'
    code, _, errors = await publish(
        lab, "-", "--format", "jsonl", stdin=row, KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1"
    )
    assert code == 1
    assert "Kafka can't be reached at 127.0.0.1:1" in words(errors)
    assert "0 of 1 updates were acknowledged; running the same command again is safe" in words(errors)


async def test_a_missing_topic_is_not_made_by_the_way(lab: System) -> None:
    row = b'{"measurement_id": "m-1", "notes": null}'
    arguments = ("-", "--format", "jsonl")
    name = f"{lab.updates}-misspelt"
    for _ in range(2):
        code, _, errors = await publish(lab, *arguments, stdin=row, WORKER_UPDATES_TOPIC=name)
        assert code == 1
        assert f"topic {name} doesn't exist" in words(errors)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/nowhere/updates.csv"], "No such file"),
        (["updates.txt"], "expected a name that ends in .jsonl or .csv"),
        (["-"], "found standard input"),
    ],
)
async def test_a_wrong_call_is_exit_code_2(lab: System, arguments: list[str], said: str) -> None:
    code, _, errors = await publish(lab, *arguments)
    assert code == 2
    assert said in words(errors)
