"""JSON as this contract reads it (RFC 8259, narrowed): exact integers, finite doubles, one reading for every
parser.

Integer literals are exact and within -2^63 … 2^64-1. A number with point or exponent is a double, and an
integer where it has no fraction and fits 64 bits: `3.0` and `3` are the same value. Of duplicate keys the
last one counts.
"""

import json
import re
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import orjson

Json = Any
"""A JSON value as orjson reads it: dict, list, str, int, float, bool or None."""

MIN_INTEGER = -(2**63)
MAX_INTEGER = 2**64 - 1


class NotJson(ValueError):
    """Not JSON, or JSON with something that parsers don't agree about; the message says what and where."""


def read_json(value: bytes) -> Json:
    """Reads one JSON text. Depth must be bounded by the caller (`deeper_than`); beyond 1,024 levels it is
    `NotJson`.

    Raises `NotJson`: not UTF-8, a byte-order mark, NaN, Infinity, lone surrogates, numbers beyond a double or
    (integer literals) beyond 64 bits, and whatever else isn't JSON.
    """
    try:
        parsed = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise NotJson(str(error)) from None
    # orjson is right about most values. What it isn't right about shows in the bytes: a run of 16 digits
    # (and points), a digit before an "e", a fraction of zeros. In a string that costs a look, nothing else.
    shape = value.translate(_SHAPES)
    if _LONG in shape or b"9e" in shape or _may_hold_whole_double(value):
        if _TOO_LONG in shape:
            _check_integers(value)
        return _whole_numbers(parsed)
    return parsed


_SHAPES = bytes(
    ord("9") if byte in b"0123456789." else ord("e") if byte in b"eE" else ord(" ") for byte in range(256)
)
# With 15 digits or fewer, a number whose fraction isn't zeros can't come out as a double without one.
_LONG = b"9" * 16
# The shortest integer literals out of range have 19 digits.
_TOO_LONG = b"9" * 19
_ZERO_FRACTION = re.compile(rb"\.0+(?![0-9])")


def _may_hold_whole_double(value: bytes) -> bool:
    """Whether a fraction of zeros ends what may be a number, other than in "at 25.0 °C". Of many, some are looked at."""
    looked_at = 0
    dot = value.find(b".0")
    while dot >= 0:
        before = value[max(0, dot - 40) : dot].rstrip(b"0123456789").rstrip(b"- \t\n\r")
        # b"" is in there, too: it begins here, or too far away to be seen
        if (before[-1:] in b"[:," and _ZERO_FRACTION.match(value, dot)) or looked_at == 8:
            return True
        looked_at += 1
        dot = value.find(b".0", dot + 2)
    return False


def _integer(literal: str) -> int:
    # At most 309 digits: what would be infinite as a double, orjson has refused.
    if MIN_INTEGER <= (value := int(literal)) <= MAX_INTEGER:
        return value
    shown = literal if len(literal) <= 40 else f"{literal[:40]}… ({len(literal.lstrip('-'))} digits)"
    raise NotJson(f"integer out of range (-2^63 to 2^64-1): {shown}")


# Visits every literal, also those of keys that a later duplicate hides. Used to check, never for its value.
_EXACT = json.JSONDecoder(parse_int=_integer)


def _check_integers(value: bytes) -> None:
    """`value` is what orjson takes for JSON."""
    try:
        _EXACT.decode(value.decode())
    except RecursionError:  # only where the caller hasn't bounded the depth
        raise NotJson("nested too deep") from None


def _whole_numbers(parsed: Json) -> Json:
    """Doubles without a fraction that fit 64 bits become integers; objects and lists change in place."""
    kind = type(parsed)
    if kind is float:
        return int(parsed) if parsed.is_integer() and -(2.0**63) <= parsed < 2.0**64 else parsed
    members: Iterable[tuple[Any, Json]]
    if kind is dict:
        members = parsed.items()
    elif kind is list:
        members = enumerate(parsed)
    else:
        return parsed
    for place, member in members:
        kind = type(member)
        if kind is dict or kind is list:
            _whole_numbers(member)
        elif kind is float and member.is_integer():
            parsed[place] = _whole_numbers(member)  # the place is there already: nothing changes its size
    return parsed


def canonical(value: Json) -> bytes:
    """One text for equal values of `read_json`. Stored digests depend on it: a test pins what it makes of
    doubles."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def deeper_than(depth: int, value: bytes) -> bool:
    """Whether objects and lists are nested deeper than this, brackets in strings aside. Exact where `value`
    is JSON."""
    # Depth is at most the number of opening brackets, and few values have many.
    if len(value.translate(None, NOT_OPENING)) <= depth:
        return False
    if b"\\" in value:  # pairs first: what is left before a quote is an escape of it
        value = value.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = b"".join(value.split(b'"')[::2]).translate(None, _NO_BRACKETS)
    # Takes the innermost level off, twice; a list of plain steps is gone with that.
    rest = brackets.replace(b"{}", b"").replace(b"[]", b"")
    if len(rest) // 2 + 2 <= depth:
        return False
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > depth


NOT_OPENING = bytes(set(range(256)) - set(b"[{"))
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = [1 if byte in b"[{" else -1 for byte in range(256)]

# What a person is shown -------------------------------------------------------------------------------------

_KEY_CHARACTERS = 80
_FOUND_CHARACTERS = 160
_KEPT_CHARACTERS = 120
_PATH_ESCAPES = {"'": r"\'", "\\": r"\\", "\b": r"\b", "\t": r"\t", "\n": r"\n", "\f": r"\f", "\r": r"\r"}


def json_path(*steps: str | int) -> str:
    """`$.test_setup.channel_number`; a key that is no identifier as RFC 9535 has it: `$.properties['a b']`.

    A key of more than 80 characters is cut: such a path names the place for a person only.
    """
    path = "$"
    for step in steps:
        if isinstance(step, int):
            path += f"[{step}]"
        elif len(step) <= _KEY_CHARACTERS and step.isidentifier():
            path += "." + step
        else:
            shown = step if len(step) <= _KEY_CHARACTERS else step[:_KEY_CHARACTERS] + "…"
            path += "['" + "".join(map(_path_character, shown)) + "']"
    return path


def _path_character(character: str) -> str:
    if character in _PATH_ESCAPES:
        return _PATH_ESCAPES[character]
    return f"\\u{ord(character):04x}" if character < " " else character


def text(value: str, characters: int) -> str:
    """At most so many characters, all of which UTF-8 and Postgres can hold: lone surrogates and U+0000 are
    escaped."""
    value = value.encode("utf-8", "backslashreplace").decode().replace("\0", "\\u0000")
    return value if len(value) <= characters else value[: characters - 1] + "…"


def shortened(value: Any) -> Json:
    """A short JSON value that shows what this one is; what is long, or holds U+0000, comes as text.
    Idempotent."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        value = text(value, len(value) * 6)
        return value if len(value) <= _FOUND_CHARACTERS else _cut(value, f"{len(value):,} characters")
    try:
        written = orjson.dumps(value)
    except TypeError:  # what JSON can't hold: an integer beyond 64 bits, or no JSON value at all
        return text(repr(value), _FOUND_CHARACTERS)
    if len(written) <= _FOUND_CHARACTERS:
        return written.decode() if b"\\u0000" in written else value
    return _cut(written[: 4 * _KEPT_CHARACTERS].decode("utf-8", "ignore"), f"{len(written):,} bytes")


def _cut(start: str, size: str) -> str:
    return f"{start[:_KEPT_CHARACTERS]}… ({size})"
