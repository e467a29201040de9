"""The PATCH body: what a measurement update carries. An absent field is left alone, `null` clears it."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contracts.events import Violation
from contracts.json_values import Json, json_path, shortened
from contracts.measurement import Name, Protocol, Quantity, TestSetup, without_defaults

# The types exclude each other, so the first that fits is right: left to right saves trying the others.
_Property = Annotated[str | bool | Quantity, Field(union_mode="left_to_right")]


class CellMeasurementPatch(BaseModel):
    """All fields are optional: an absent one is left alone, `null` clears it, an unknown one is an error.

    Types are strict: `"25"` is no number, `true` isn't 1. A number without a fraction is an integer.
    """

    # In Python `model_fields_set` tells absent from null: dump it with `exclude_unset=True`.
    model_config = ConfigDict(
        strict=True, extra="forbid", use_attribute_docstrings=True, json_schema_extra=without_defaults
    )

    name: Name | None = None
    """1 to 255 characters. `null` is accepted and leaves the name as it is: a measurement always has one."""
    protocol: Protocol | None = None
    """Replaces the whole protocol; further keys are kept."""
    test_setup: TestSetup | None = None
    """Replaces the whole test setup; further keys are kept."""
    notes: str | None = None
    properties: dict[str, _Property | None] | None = None
    """Replaces them all. Flat: a number is a Quantity. Only where `measurement_type` is `properties`."""


MAX_VIOLATIONS = 400
"""So many are described, the others only counted: a body can hold a hundred thousand of them, and a
`rejection-detail` not even so many."""

# A dict and a validator of pydantic-core's own: a model needn't be kept, strict validation changes no value.
validate_patch = CellMeasurementPatch.__pydantic_validator__.validate_python
"""Raises `ValidationError` where a body as `read_json` gives it breaks the schema. U+0000 it doesn't look
for: `holds_nul`, needed only where the JSON text contains `\\u0000`."""

_QUANTITY = "a Quantity: an object with value (a number) and unit (a string, empty for none)"
_BODY = "an object with some of the fields " + ", ".join(CellMeasurementPatch.model_fields)
_NO_FIELD = f"nothing (no such field; the fields are {', '.join(CellMeasurementPatch.model_fields)})"
_NO_NUL = "text without the character U+0000"
_EXPECTED: dict[tuple[str, ...], str] = {
    ("name",): "a string of 1 to 255 characters, or null",
    ("protocol",): "an object or null",
    ("protocol", "name"): "a string or null",
    ("protocol", "ambient_temperature_degc"): "a number (in °C) or null",
    ("protocol", "definition"): "an object, a string or null",
    ("test_setup",): "an object or null",
    ("test_setup", "cycler"): "a string or null",
    ("test_setup", "operator"): "a string or null",
    ("test_setup", "lab"): "a string or null",
    ("test_setup", "channel_number"): "an integer of at most 64 bits, or null",
    ("notes",): "a string or null",
    ("properties",): "an object or null",
}


def violations_of(body: Json) -> tuple[list[Violation], int]:
    """Everything that is wrong with a PATCH body (of `read_json`), one violation a place, in the body's order.

    Returns at most `MAX_VIOLATIONS` of them, and how many there are: none exactly where `validate_patch` and
    `holds_nul` find nothing.
    """
    places = _places(body)
    described = list(islice(places, MAX_VIOLATIONS))
    total = len(described) + sum(1 for _ in places)
    return [
        Violation(json_path(*place), expected, shortened(found)) for place, expected, found in described
    ], total


_Path = tuple[str | int, ...]
_Place = tuple[_Path, str, Any]
"""Steps from the body, what is expected there, what was found."""


def _places(body: Json) -> Iterator[_Place]:
    if type(body) is not dict:
        yield (), _BODY, body
        return
    for name, value in body.items():
        if name not in CellMeasurementPatch.model_fields:
            yield (name,), _NO_FIELD, value
            continue
        wrong: set[_Path] = set()
        for place, expected in _broken(name, value):
            wrong.add(place)
            yield place, expected, _at(body, place)
        for place in _nuls((name,), value):
            if place not in wrong:
                yield place, _NO_NUL, _at(body, place)


def _broken(name: str, value: Json) -> Iterator[tuple[_Path, str]]:
    """Where one field breaks the schema."""
    if name == "properties" and type(value) is dict:
        for key, member in value.items():
            for place, expected in _broken_property(member):
                yield (name, key, *place), expected
        return
    # A union has an error for each of its members: one place is enough.
    for place in dict.fromkeys(_known(location) for location in _errors(validate_patch, {name: value})):
        yield place, _EXPECTED[place]


def _known(location: tuple[int | str, ...]) -> tuple[str, ...]:
    place = tuple(map(str, location[:2]))
    return place if place in _EXPECTED else place[:1]


def _broken_property(member: Json) -> Iterator[tuple[_Path, str]]:
    """Asks pydantic only about objects, and one by one: a large body's errors all at once take 100s of MB."""
    if member is None or type(member) in (str, bool):
        return
    if type(member) is not dict:
        yield (), _QUANTITY + "; or a string, true, false or null"
        return
    wrong = sorted(str(location[0]) for location in _errors(_validate_quantity, member))
    if wrong and not (member.keys() >= {"value", "unit"}):
        yield (), _QUANTITY
        return
    for part in dict.fromkeys(wrong):
        yield (part,), "a number" if part == "value" else "a string (empty for none)"


_validate_quantity = Quantity.__pydantic_validator__.validate_python


def _errors(validate: Callable[[Json], object], value: Json) -> list[tuple[int | str, ...]]:
    try:
        validate(value)
    except ValidationError as error:
        lines = error.errors(include_url=False, include_context=False, include_input=False)
        return [line["loc"] for line in lines]
    return []


def _at(body: Json, place: _Path) -> Json:
    for step in place:
        body = body[step]
    return body


def holds_nul(value: Json) -> bool:
    """Whether U+0000, which Postgres can't store, is in any string or key, at any depth."""
    return next(_nuls((), value), None) is not None


def _nuls(place: _Path, value: Json) -> Iterator[_Path]:
    if type(value) is str:
        if "\0" in value:
            yield place
    elif type(value) is dict:
        for key, member in value.items():
            inner = (*place, key)
            if "\0" in key:
                yield inner
            else:
                yield from _nuls(inner, member)
    elif type(value) is list:
        for index, element in enumerate(value):
            yield from _nuls((*place, index), element)
