"""The response model: all 16 fields, always; looser than the PATCH body."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from contracts.measurement import CellMeasurement, MeasurementType, Protocol, Quantity, TestSetup
from contracts.patch import CellMeasurementPatch

REQUIRED: dict[str, Any] = {
    "name": "LFP-0042",
    "id": "m-1",
    "cell_instance_id": "c-1",
    "created_at": "2026-01-01T00:00:00Z",
    "updated_at": "2026-01-02T00:00:00.123456+02:00",
}
DEFAULTS: dict[str, Any] = {
    "protocol": None,
    "start_time": None,
    "test_setup": None,
    "step_labels_validated": False,
    "notes": None,
    "measurement_type": "time_series",
    "properties": None,
    "file_metadata": None,
    "organization_id": None,
    "created_by": None,
    "created_by_email": None,
}


def test_every_field_is_present_in_every_dump_with_its_default() -> None:
    dumped = json.loads(CellMeasurement.model_validate(REQUIRED).model_dump_json())
    assert dumped == {**REQUIRED, **DEFAULTS}
    assert len(dumped) == 16


@pytest.mark.parametrize("name", list(REQUIRED))
def test_required_fields_are_required(name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        CellMeasurement.model_validate({key: value for key, value in REQUIRED.items() if key != name})


@pytest.mark.parametrize("name", ["protocol", "test_setup", "properties", "file_metadata"])
def test_objects_are_any_object_whatever_rest_wrote_in_them(name: str) -> None:
    odd = {"name": 5, "channel_number": "x", "bare": 0.52, "list": [1, {"a": None}]}
    assert getattr(CellMeasurement.model_validate({**REQUIRED, name: odd}), name) == odd


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", None),
        ("name", ""),
        ("name", "x" * 256),
        ("measurement_type", "unheard_of"),
        ("measurement_type", None),
        ("protocol", "text"),
        ("test_setup", []),
        ("properties", 5),
        ("file_metadata", True),
        ("created_at", "infinity"),
        ("updated_at", "2026-01-01T00:00:00"),
        ("start_time", "-infinity"),
        ("step_labels_validated", None),
    ],
)
def test_what_cannot_be_expressed_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=name):
        CellMeasurement.model_validate({**REQUIRED, name: value})


def test_fields_of_a_later_version_are_ignored() -> None:
    assert CellMeasurement.model_validate({**REQUIRED, "later": 1}).id == "m-1"


def test_parts_keep_further_keys_and_exact_integers() -> None:
    quantity = Quantity.model_validate({"value": 2**53 + 1, "unit": "1", "uncertainty": 0.5})
    assert quantity.model_dump() == {"value": 2**53 + 1, "unit": "1", "uncertainty": 0.5}
    assert Protocol.model_validate({"name": "CC", "x": 1}).model_dump(exclude_unset=True) == {
        "name": "CC",
        "x": 1,
    }
    assert TestSetup.model_validate({"channel_number": 3.0}).channel_number == 3


def test_a_patch_is_built_in_python_from_parts() -> None:
    patch = CellMeasurementPatch(
        notes=None,
        test_setup=TestSetup(channel_number=3),
        properties={"d": Quantity(value=0.52, unit="mm"), "ok": True},
    )
    assert patch.model_dump(exclude_unset=True) == {
        "notes": None,
        "test_setup": {"channel_number": 3},
        "properties": {"d": {"value": 0.52, "unit": "mm"}, "ok": True},
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "0.52", None])
def test_a_number_is_finite_and_no_boolean(value: Any) -> None:
    with pytest.raises(ValidationError):
        Quantity.model_validate({"value": value, "unit": "mm"})


def test_types_are_those_of_the_rest_service() -> None:
    assert [str(kind) for kind in MeasurementType] == ["time_series", "file", "properties"]
