"""The committed schemas are what the models make now, and hang together."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faststream.specification.asyncapi.v3_0_0.schema import ApplicationSchema

import contracts.schemas
from contracts.measurement import CellMeasurement
from contracts.schemas import documents
from contracts.schemas.__main__ import written

FOLDER = Path(contracts.schemas.__file__).parent
DOCUMENTS = documents()


@pytest.mark.parametrize("name", list(DOCUMENTS))
def test_the_committed_file_is_what_the_command_makes_now(name: str) -> None:
    committed = (FOLDER / name).read_text(encoding="utf-8")
    assert committed == written(DOCUMENTS[name]), "run `python -m contracts.schemas`"


def test_no_file_is_left_over() -> None:
    assert {path.name for path in FOLDER.glob("*.json")} == DOCUMENTS.keys()


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            yield from references(value)
    elif isinstance(node, list):
        for element in node:
            yield from references(element)


@pytest.mark.parametrize("name", list(DOCUMENTS))
def test_every_reference_leads_somewhere(name: str) -> None:
    for reference in references(DOCUMENTS[name]):
        place: Any = DOCUMENTS[name]
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
        assert isinstance(place, dict), reference


def test_absent_is_not_null_in_the_patch_schema() -> None:
    patch = DOCUMENTS["patch.json"]
    assert "required" not in patch
    assert patch["additionalProperties"] is False
    for schema in (patch, *patch["$defs"].values()):
        assert not any("default" in field for field in schema["properties"].values())
    assert {"type": "null"} in patch["properties"]["notes"]["anyOf"]


def test_every_field_of_the_response_is_required_in_its_schema() -> None:
    assert set(DOCUMENTS["measurement.json"]["required"]) == set(CellMeasurement.model_fields)


def test_channel_number_is_an_integer_of_64_bits_in_its_schema() -> None:
    setup = DOCUMENTS["patch.json"]["$defs"]["TestSetup"]["properties"]["channel_number"]["anyOf"][0]
    assert setup == {"type": "integer", "minimum": -(2**63), "maximum": 2**64 - 1}


def test_the_asyncapi_document_has_the_three_topics_and_all_their_messages() -> None:
    document = DOCUMENTS["asyncapi.json"]
    ApplicationSchema.model_validate(document)
    topics = {channel["address"]: set(channel["messages"]) for channel in document["channels"].values()}
    assert topics == {
        "measurement-updates": {"BinaryUpdate", "StructuredUpdate", "BareUpdate"},
        "measurement-updated": {"MeasurementUpdated"},
        "measurement-updates-rejected": {"UpdateRejected"},
    }
    assert json.loads(json.dumps(document)) == document
