"""docs/contract.md: what it shows works, and nothing of the wire is missing from it."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from contracts import events
from contracts.envelope import read_update
from contracts.json_values import read_json
from contracts.measurement import CellMeasurement
from contracts.patch import validate_patch

PAGE = (Path(__file__).parents[2] / "docs" / "contract.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def read_by_worker(key: str, headers: dict[str, str], value: str) -> Any:
    """The body, after envelope and body were found to be right."""
    encoded = {name: content.encode() for name, content in headers.items()}
    envelope = read_update(key.encode(), encoded, value.encode())
    body = envelope.data if envelope.form == "structured" else read_json(value.encode())
    validate_patch(body)
    return body


@pytest.mark.parametrize("command", blocks("sh"))
def test_shell_examples_are_updates_that_the_worker_accepts(command: str) -> None:
    words = shlex.split(command)
    value, options = words[1], words[words.index("kcat") :]
    headers = dict(options[n + 1].split("=", 1) for n, word in enumerate(options) if word == "-H")
    assert "partitioner=murmur2_random" in options
    assert read_by_worker(options[options.index("-k") + 1], headers, value) == {"notes": "cell vented"}


def test_python_examples_are_updates_that_the_worker_accepts() -> None:
    produced = []

    class Producer:
        def __init__(self, settings: dict[str, Any]) -> None:
            assert settings["partitioner"] == "murmur2_random"

        def produce(self, topic: str, key: str, value: str, headers: dict[str, str] | None = None) -> None:
            assert topic == "measurement-updates"
            produced.append(read_by_worker(key, headers or {}, value))

        def flush(self) -> None: ...

    names: dict[str, Any] = {}
    for source in blocks("python"):
        if "produce(" in source:
            exec(
                source.replace("from confluent_kafka import Producer", ""),
                names | {"Producer": Producer},
                names,
            )
            names["Producer"] = Producer
    assert produced == [{"notes": "cell vented"}] * 3


def test_the_json_examples_are_a_body_an_answer_and_a_detail() -> None:
    body, answer, detail = (json.loads(block) for block in blocks("json"))
    validate_patch(body)
    assert set(answer) == set(CellMeasurement.model_fields)
    CellMeasurement.model_validate(answer)
    assert len(detail["violations"]) == detail["total"]


@pytest.mark.parametrize("code", events.REJECTION_CODES)
def test_every_code_has_its_line(code: str) -> None:
    assert re.search(rf"^\| `{code}` \|", PAGE, re.MULTILINE)


def test_codes_stand_in_their_order() -> None:
    table = re.findall(r"^\| `([a-z_]+)` \|", PAGE[PAGE.index("### The codes") :], re.MULTILINE)
    assert table == list(events.REJECTION_CODES)


@pytest.mark.parametrize(
    "name",
    [
        value
        for name, value in vars(events).items()
        if name.startswith(("CE_", "REJECT", "REQUEUED", "REAPPLY"))
    ],
)
def test_every_header_is_explained(name: Any) -> None:
    if isinstance(name, str):
        assert any(
            f"`{shown}" in PAGE for shown in (name, name.removeprefix("ce_"), name.removeprefix("rejection"))
        )
