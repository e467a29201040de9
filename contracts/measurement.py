"""The response model: a cell measurement as the PATCH answers with it, and the parts it is made of."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema


def _whole(value: Any) -> Any:
    return int(value) if type(value) is float and value.is_integer() else value


Integer = Annotated[int, Field(ge=-(2**63), le=2**64 - 1), BeforeValidator(_whole)]
"""A number without a fraction is an integer: `3.0` is 3."""

Number = Annotated[int | Annotated[float, Field(allow_inf_nan=False)], WithJsonSchema({"type": "number"})]
"""Booleans are no numbers. An integer stays exact: it isn't made a float on its way through a model."""

Name = Annotated[str, Field(min_length=1, max_length=255)]


class MeasurementType(StrEnum):
    """What a measurement holds; only one of type `properties` takes `properties`."""

    TIME_SERIES = "time_series"
    FILE = "file"
    PROPERTIES = "properties"


def without_defaults(schema: dict[str, Any]) -> None:
    """For JSON Schemas of objects in which absent isn't null: that `None` stands for both in Python isn't theirs."""
    for field in schema["properties"].values():
        field.pop("default", None)


class _Part(BaseModel):
    # Strict as the PATCH body is: `"25"` is no number.
    model_config = ConfigDict(
        strict=True, extra="allow", use_attribute_docstrings=True, json_schema_extra=without_defaults
    )


class Quantity(_Part):
    """A number with its unit: `{"value": 0.52, "unit": "mm"}`. Further keys are kept."""

    value: Number
    unit: str
    """Empty for none."""


class Protocol(_Part):
    """How the cell was measured. Further keys are kept."""

    name: str | None = None
    ambient_temperature_degc: Number | None = None
    """In °C."""
    definition: dict[str, Any] | str | None = None
    """A UCP object, or another protocol format as an object or as text."""


class TestSetup(_Part):
    """What the cell was measured with, where and by whom. Further keys are kept."""

    __test__ = False  # not a test, whatever pytest makes of its name

    cycler: str | None = None
    operator: str | None = None
    lab: str | None = None
    channel_number: Integer | None = None


class CellMeasurement(BaseModel):
    """The full model; every field is present in every dump.

    Looser than the PATCH body, since REST may have written whatever it likes into the objects: what is meant
    to be a `Protocol`, a `TestSetup` or a `Quantity` is a plain dict here. Read one with
    `Protocol.model_validate(...)`, and expect `ValidationError` where it is something else. Fields that a
    later version adds are ignored.
    """

    model_config = ConfigDict(
        extra="ignore", use_attribute_docstrings=True, json_schema_serialization_defaults_required=True
    )

    id: str
    cell_instance_id: str | None
    """Null only where a row was written so elsewhere."""
    name: Name
    protocol: dict[str, Any] | None = None
    start_time: AwareDatetime | None = None
    """When the measurement itself began."""
    test_setup: dict[str, Any] | None = None
    step_labels_validated: bool = False
    notes: str | None = None
    measurement_type: MeasurementType = MeasurementType.TIME_SERIES
    properties: dict[str, Any] | None = None
    """Quantities, strings, booleans and nulls by name; null unless `measurement_type` is `properties`."""
    file_metadata: dict[str, Any] | None = None
    organization_id: str | None = None
    created_by: str | None = None
    created_by_email: str | None = None
    created_at: AwareDatetime
    updated_at: AwareDatetime
    """The arrival of the last event that changed something."""
