"""Values by their digests: all that a comparison needs of a body, and a log of millions of records fits on a disk. Pure."""

import json
import struct
from hashlib import blake2b

import orjson

from contracts.json_values import MAX_INTEGER, MIN_INTEGER, Json, NotJson, canonical, read_json


def digest(*parts: bytes | str | None) -> bytes:
    """16 bytes; no two lists of parts are the same text."""
    text = blake2b(digest_size=16)
    for part in parts:
        if part is None:
            text.update(b"-")
        else:
            raw = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
            text.update(b"%d:" % len(raw))
            text.update(raw)
    return text.digest()


def json_digest(value: Json) -> bytes:
    """Equal for equal JSON values of `read_value`. Raises RecursionError."""
    try:
        text = canonical(value)
    except orjson.JSONEncodeError:  # nested deeper than orjson writes: another writer's
        text = json.dumps(value, sort_keys=True).encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=16).digest()


def read_value(text: bytes) -> Json:
    """JSON → value, also with numbers that only jsonb holds: 1e400, or a double's digits written out.

    Raises ValueError, and RecursionError where it is nested deeper than any event.
    """
    try:
        return read_json(text)
    except NotJson:
        return json.loads(text, parse_int=_number, parse_float=_number)


def _number(literal: str) -> int | float:
    value = float(literal)
    if literal.lstrip("-").isdigit() and len(literal) < 25 and MIN_INTEGER <= int(literal) <= MAX_INTEGER:
        return int(literal)
    return int(value) if value.is_integer() and -(2.0**63) <= value < 2.0**64 else value


def position(arrival: int, partition: int, offset: int) -> bytes:
    """(arrival, partition, offset) as bytes that compare in that order."""
    return struct.pack(">QQQ", arrival, partition, offset)
