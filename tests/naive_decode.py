"""A second decoder, written from the contract (design.md, sections 1 to 3) alone: naive, plain and slow on purpose.

Shares nothing with `worker` and `contracts`. Where the two disagree about a record, one of them is wrong, or the
contract says too little.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tests.model import Event, Position

Codes: TypeAlias = frozenset[str]
"""Of a rejection; two where the contract admits two (`too_large`, in what isn't JSON anyway)."""
Verdict: TypeAlias = Event | Codes

LARGEST = 2**63 - 1
MAX_DEPTH = 100
MAX_KEY = MAX_HEADERS = 64 * 1024


@dataclass(frozen=True)
class RawRecord:
    """A record of the input topic. A header name is bytes, or text with its odd bytes as surrogate escapes."""

    topic: str
    partition: int
    offset: int
    arrival: int
    """Milliseconds since 1970, never less than that of the record before it."""
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[bytes | str, bytes | None]]


class Refused(Exception):
    """The first code that holds."""


def decode(record: RawRecord, max_event_bytes: int = 1024**2) -> Verdict:
    """The event, or the code of its rejection."""
    text, parsed = None, None
    try:
        text = (record.value or b"").decode()
        parsed = [read_json(text)]
    except (ValueError, RecursionError):
        pass
    try:
        return judge(record, text, parsed, max_event_bytes)
    except Refused as refused:
        codes = {str(refused)}
    if parsed is None and record.value and (record.value.count(b"[") + record.value.count(b"{")) > MAX_DEPTH:
        codes.add("too_large")  # how deep is what isn't JSON? Either answer is right
    return frozenset(codes)


def judge(record: RawRecord, text: str | None, parsed: list[Any] | None, max_event_bytes: int) -> Event:
    """`parsed` holds the value as JSON; None where it is none. Raises Refused."""
    if not record.value:
        raise Refused("empty_event")
    named = [(name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name, value)
             for name, value in record.headers]  # fmt: skip
    if (
        len(record.value) > max_event_bytes
        or len(record.key or b"") > MAX_KEY
        or sum(len(name) + len(value or b"") for name, value in named) > MAX_HEADERS
        or len(named) > MAX_HEADERS  # an empty one counts as a byte
        or (parsed is not None and text is not None and depth(text) > MAX_DEPTH)
    ):
        raise Refused("too_large")

    headers = dict(named)
    key = identifier(record.key) if record.key else None
    own = (record.arrival, record.partition, record.offset)
    first = own
    if b"requeued-from" in headers:
        first = min(own, position_in(headers[b"requeued-from"], record.topic))
    reapply = text_of(headers[b"reapply"]) if b"reapply" in headers else None

    form = form_of(headers)
    if form == "bare" and key is None:
        raise Refused("invalid_event")
    attributes = binary_attributes(headers, key) if form == "binary" else {}
    if parsed is None:
        raise Refused("invalid_json")
    patch = parsed[0]
    if form == "structured":
        attributes, patch = structured_attributes(patch, key)
    if not is_patch(patch):
        raise Refused("invalid_patch")
    return Event(
        own=own,
        first=first,
        measurement_id=key or attributes["subject"],
        source=f"kafka:{record.topic}" if form == "bare" else attributes["source"],
        id=f"{first[1]}/{first[2]}@{first[0]}" if form == "bare" else attributes["id"],
        patch=patch,
        expected_revision=attributes.get("expectedrevision"),
        organization_id=attributes.get("organizationid"),
        reapply=reapply,
        traceparent=traceparent(headers, attributes.get("traceparent")),
    )


# Envelopes --------------------------------------------------------------------------------------------------


def form_of(headers: Mapping[bytes, bytes | None]) -> str:
    """Binary, structured or bare."""
    stated = (
        media_type(text_of(headers[b"content-type"])) if b"content-type" in headers else "application/json"
    )
    if stated == "application/cloudevents+json":
        return "structured"
    if stated.startswith("application/cloudevents"):
        raise Refused("invalid_event")
    if not any(name.startswith(b"ce_") for name in headers):
        return "bare"
    if stated != "application/json":
        raise Refused("invalid_event")
    return "binary"


def binary_attributes(headers: Mapping[bytes, bytes | None], key: str | None) -> dict[str, Any]:
    """What it says of itself, each right."""
    if headers.get(b"ce_specversion") != b"1.0" or headers.get(b"ce_type") != b"cell_measurement.update.v1":
        raise Refused("invalid_event")
    attributes: dict[str, Any] = {
        "id": identifier(headers.get(b"ce_id")),
        "source": identifier(headers.get(b"ce_source")),
    }
    for name in ("subject", "organizationid"):
        if b"ce_" + name.encode() in headers:
            attributes[name] = identifier(headers[b"ce_" + name.encode()])
    if b"ce_expectedrevision" in headers:
        attributes["expectedrevision"] = revision(text_of(headers[b"ce_expectedrevision"]))
    check_subject(attributes.get("subject"), key)
    return attributes


def structured_attributes(envelope: Any, key: str | None) -> tuple[dict[str, Any], Any]:
    """What the envelope says, each right, and its data."""
    if not isinstance(envelope, dict):
        raise Refused("invalid_event")
    present = {name: value for name, value in envelope.items() if value is not None}
    if present.get("specversion") != "1.0" or present.get("type") != "cell_measurement.update.v1":
        raise Refused("invalid_event")
    if "data" not in envelope or "data_base64" in present:
        raise Refused("invalid_event")
    for name in ("id", "source", "subject", "organizationid"):
        if name in present or name in ("id", "source"):
            identifier(present.get(name))
    stated = present.get("datacontenttype", "application/json")
    if not isinstance(stated, str) or media_type(stated) != "application/json":
        raise Refused("invalid_event")
    if "expectedrevision" in present:
        present["expectedrevision"] = revision(present["expectedrevision"])
    check_subject(present.get("subject"), key)
    return present, envelope["data"]


def check_subject(subject: str | None, key: str | None) -> None:
    """One of the two is the measurement id; where both are there they agree."""
    if (subject is None and key is None) or (subject is not None and key is not None and subject != key):
        raise Refused("invalid_event")


def text_of(value: bytes | None) -> str:
    """Of a header that is read."""
    try:
        return (value if value is not None else b"\xff").decode()
    except UnicodeDecodeError:
        raise Refused("invalid_event") from None


def identifier(value: Any) -> str:
    """Text that says something, and that the database can hold."""
    text = text_of(value) if value is None or isinstance(value, bytes) else value
    if not isinstance(text, str) or text == "" or "\0" in text:
        raise Refused("invalid_event")
    return text


def revision(stated: Any) -> int:
    """Decimal digits, or (in JSON) an integer; 0 to 2^63-1."""
    if isinstance(stated, str):
        if re.fullmatch("[0-9]+", stated) is None:
            raise Refused("invalid_event")
        stated = decimal(stated)
    if not is_integer(stated) or not 0 <= stated <= LARGEST:
        raise Refused("invalid_event")
    return int(stated)


def decimal(digits: str) -> int:
    """However many they are: Python refuses more than 4,300."""
    significant = digits.lstrip("0")
    return int(significant or "0") if len(significant) < 100 else 10**100


def position_in(requeued_from: bytes | None, topic: str) -> Position:
    """`topic/partition/offset@arrival`"""
    stated = re.fullmatch(re.escape(topic) + "/([0-9]+)/([0-9]+)@([0-9]+)", text_of(requeued_from))
    if stated is None:
        raise Refused("invalid_event")
    partition, offset, arrival = map(decimal, stated.groups())
    if max(partition, offset, arrival) > LARGEST:
        raise Refused("invalid_event")
    return arrival, partition, offset


def media_type(text: str) -> str:
    """Without parameters, in lower case."""
    return text.split(";")[0].strip(" \t").lower()


def traceparent(headers: Mapping[bytes, bytes | None], of_envelope: Any) -> str | None:
    """Never a fault: passed on where it is text that can be stored."""
    for value in (headers.get(b"traceparent"), headers.get(b"ce_traceparent"), of_envelope):
        try:
            return identifier(value)
        except Refused:
            pass
    return None


# JSON -------------------------------------------------------------------------------------------------------


def read_json(text: str) -> Any:
    """One JSON text; numbers in one way. Raises ValueError; RecursionError beyond any depth that is sent in earnest."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    try:
        # of duplicate keys json keeps the last one
        value = json.loads(text, parse_int=_integer, parse_float=_double, parse_constant=_constant)
        check_surrogates(text)
        return value
    finally:
        sys.setrecursionlimit(limit)


def check_surrogates(text: str) -> None:
    """Of JSON: each half of a pair, which can only be there as an escape, needs the other one. Raises ValueError."""
    unescaped = text.replace(r"\\", "--")
    unpaired = re.sub(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..", "", unescaped)
    if re.search(r"\\u[dD][89a-fA-F]", unpaired):
        raise ValueError("a lone surrogate")


def _integer(literal: str) -> int:
    value = int(literal)
    if not -(2**63) <= value <= 2**64 - 1:
        raise ValueError("no parser may guess")
    return value


def _double(literal: str) -> int | float:
    value = float(literal)
    if value in (float("inf"), float("-inf")):
        raise ValueError("beyond a double")
    if value.is_integer() and -(2**63) <= int(value) <= 2**64 - 1:
        return int(value)
    return value


def _constant(name: str) -> None:
    raise ValueError(name)


def depth(text: str) -> int:
    """Of JSON, as it stands."""
    level = deepest = 0
    in_string = escaped = False
    for character in text:
        if in_string:
            in_string = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            in_string = True
        elif character in "[{":
            level += 1
            deepest = max(deepest, level)
        elif character in "]}":
            level -= 1
    return deepest


# The PATCH body ---------------------------------------------------------------------------------------------


def is_patch(body: Any) -> bool:
    """Does it keep the schema?"""
    if not isinstance(body, dict) or any("\0" in text for text in strings_in(body)):
        return False
    rules: dict[str, Callable[[Any], bool]] = {
        "name": lambda value: isinstance(value, str) and 1 <= len(value) <= 255,
        "protocol": is_protocol,
        "test_setup": is_test_setup,
        "notes": lambda value: isinstance(value, str),
        "properties": lambda value: isinstance(value, dict) and all(map(is_property, value.values())),
    }
    return all(name in rules and (value is None or rules[name](value)) for name, value in body.items())


def is_protocol(value: Any) -> bool:
    return isinstance(value, dict) and (
        isinstance(value.get("name"), str | None)
        and (value.get("ambient_temperature_degc") is None or is_number(value["ambient_temperature_degc"]))
        and isinstance(value.get("definition"), dict | str | None)
    )


def is_test_setup(value: Any) -> bool:
    return isinstance(value, dict) and (
        all(isinstance(value.get(name), str | None) for name in ("cycler", "operator", "lab"))
        and (value.get("channel_number") is None or is_integer(value["channel_number"]))
    )


def is_property(value: Any) -> bool:
    if isinstance(value, dict):
        return is_number(value.get("value")) and isinstance(value.get("unit"), str)
    return value is None or isinstance(value, str | bool)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def strings_in(value: Any) -> Iterator[str]:
    """Keys too, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, member in value.items():
            yield key
            yield from strings_in(member)
    elif isinstance(value, list):
        for element in value:
            yield from strings_in(element)
