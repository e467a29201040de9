"""Hostile records, seeded: mutated from valid events of all three forms, and made from scratch.

`record()` gives one; the mix is such that each code of decode comes up often, and so do records that are right in an
odd way. Nothing here knows what is right: that is for `naive_decode` to say.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

Headers = list[tuple[bytes, bytes | None]]

TYPE = b"cell_measurement.update.v1"
# fmt: off
NUMBERS = (
    "0", "-0", "-0.0", "3", "3.0", "30e-1", "0.30E+1", "2.5", "-2.5", "1e22", "1E+2", "1e-400", "-1e-7",
    "0.1", "5e-324", "1e18", "1e19", "1e20", "9007199254740993", "9007199254740993.0", "99999999999999.95",
    "123456789012345678.0", "1.7976931348623157e308", "9223372036854775807", "9223372036854775808",
    "9223372036854775807.0", "-9223372036854775808", "18446744073709551615", "18446744073709551616",
    "-9223372036854775809", "1.8446744073709551616e19", "1e400", "-1e400", "1.8e308", "NaN", "-NaN",
    "Infinity", "-Infinity", "01", "+1", "1.", ".5", "1e", "--1", "0x10", "1_000", "٣", "-",
    *("9" * 23, "9" * 400, "9" * 5_000, "0." + "0" * 30, "0." + "1" * 40, "1" + "0" * 18 + ".000"),
)
STRINGS = (
    *('"x"', '"µ°−×"', '"\U0001f50b"', r'"\ud83d\ude00"', r'"\u00e9"', r'"\/\b\f\n\r\t\"\\"', '"\x7f\u2028\ufeff"'),
    *('""', r'"\u0000"', r'"a\u0000b"', r'"\\u0000"', r'"\\\u0000"', r'"\U0000"', r'"\u000"', r'"\x41"'),
    *(r'"\ud800"', r'"\udc00"', r'"\udc00\ud800"', r'"\ud800x"', r'"\\ud800"', r'"\uD83D\uDE00\uDE00"', r'"\ud83d\u0020"'),
    *(f'"{character * size}"' for character in ("x", "é", "\U0001f50b") for size in (255, 256)),
    *('"' + "[{" * 80 + '"', '"' + r"\"[" * 120 + '"', '"' + r"\\" * 60 + '"', '"\0"', '"\n"', '"\t"', r'"\"'),
    *('"25"', '"true"', "'x'", '"', "“x”"),
)
OTHERS = ("null", "true", "[]", "{}", "[1]", '{"a":1}', "True", "nul", "[1,]", '{"a":1,}', "{1:2}", "")
PLAIN = ("5", "2.5", "-1e2", '"x"', "true", "false", "null", "[]", "{}", '["x"]', '{"a":{}}')
"""JSON; it is rather its place that is wrong."""
HEADER_VALUES = (
    *(None, b"", b"\0", b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xef\xbb\xbf1.0", b"1.0", b"1", b"0.3"),
    *(TYPE, TYPE.upper(), b"e-1", b"s", b"a\0b", b" x", b"\xc2\xb5", b"x" * 3_000),
    *(b"9" * 5_000, b"0" * 5_000 + b"7"),
)
MEDIA_TYPES = (
    *(b"application/json", b"Application/JSON", b"application/json; charset=utf-8", b" application/json\t;x"),
    *(b"application/jsonx", b"application/json\0", b"application/json\n", b"application /json", b"application"),
    *(b"application/cloudevents+json", b"APPLICATION/CloudEvents+JSON ;v=1", b"application/cloudevents+json\xff"),
    *(b"application/cloudevents", b"application/cloudevents+avro", b"application/cloudevents-batch+json"),
    *(b"text/plain", b"", b";", b"*/*", b"application/json,application/json", b"\xff", None),
)
REVISIONS = (
    *(b"0", b"1", b"7", b"007", b"9223372036854775807", b"0" * 40 + b"3", b"9223372036854775808", b"-1", b"+1"),
    *(b"1.0", b"1e0", b" 1", b"1 ", b"1\n", b"", b"\xd9\xa3", b"\xc2\xb2", b"0x1", b"true", b"null", b"1_0", b"\xff"),
    None,
)
POSITIONS = (
    *("T/0/3@900", "T/1/5@1000", "T/0/0@0", "T/9/99999@1759999999999", "T/0/1@9223372036854775807", "T/007/08@009"),
    *("T/0/3@9223372036854775808", "T/0/18446744073709551616@1", "T/9223372036854775808/1@1", "T/-1/3@9", "T/0/3@-9"),
    *("other/0/3@900", "Tx/0/3@900", "/0/3@900", "T/0/3", "T/0@3", "T/0/3@", "T/0/3@9 ", " T/0/3@9", "T/0/3@9\n"),
    *("T/0/3@9/1", "T/a/3@9", "T/٣/3@9", "T//0/3@9", "T/0/3@9@9", "", "\0", "T/" + "0" * 50 + "/3@9"),
)
"""T: the input topic."""
OTHER_NAMES = (
    *(b"other", b"caf\xe9", b"\xff\xfe", b"", b"\0", b"x" * 300, b"rejection-code", b"Content-Type", b"CE_ID"),
    *(b"ce-id", b"ce"),
)
CE_NAMES = (b"ce_", b"ce_\xff", b"ce_time", b"ce_traceparent", b"ce_revision", b"ce_myextension", b"ce_dataschema")
FIELDS = ("name", "protocol", "test_setup", "notes", "properties")
PROTOCOL_KEYS = ("name", "ambient_temperature_degc", "definition", "cycle")
TEST_SETUP_KEYS = ("cycler", "operator", "lab", "channel_number", "rack")
# fmt: on


class Raw(str):
    """Stands in a body as it is: a literal, or what isn't one."""


class Pairs(list[tuple[Any, Any]]):
    """An object whose keys may stand twice, and may be Raw."""


class Record(NamedTuple):
    """As `System.publish_raw` takes it."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[bytes, bytes | None]]


class Fuzzer:
    """The same seed, the same records. `ids`: of the measurements that they are about."""

    def __init__(
        self,
        seed: str,
        topic: str,
        ids: Sequence[str] = ("m-1", "m-2", "m-3"),
        max_event_bytes: int = 4_096,
    ) -> None:
        self.random = Random(seed)
        self._topic = topic
        self._ids = ids
        self._max_event_bytes = max_event_bytes
        self._header_values = (*HEADER_VALUES, *(id_.encode() for id_ in ids[:3]))

    def record(self) -> Record:
        """One record."""
        random = self.random
        if random.random() < 0.05:
            return self._from_scratch()
        record = self._valid()
        for _ in range(random.choices((0, 1, 2, 3), (3, 8, 2, 1))[0]):
            record = random.choices(
                (self._other_bytes, self._other_headers, self._other_key, self._other_size), (8, 8, 2, 2)
            )[0](record)
        return record

    # Valid events, but for the odd body or envelope -----------------------------------------------------------

    def _valid(self) -> Record:
        random = self.random
        id_ = random.choice(self._ids).encode()
        form = random.choice(("binary", "structured", "bare"))
        body = self._body()
        if form == "bare":
            return Record(id_, self._text(body).encode("utf-8", "surrogatepass"), self._extras([]))
        keyed = random.random() < 0.7
        subject = not keyed or random.random() < 0.2
        if form == "binary":
            headers: Headers = [
                (b"ce_specversion", b"1.0"),
                (b"ce_type", TYPE),
                (b"ce_id", b"e-%d" % random.randrange(2_000)),
                (b"ce_source", random.choice((b"s", b"urn:lab:b2", b"s\xc2\xb5"))),
            ]
            if random.random() < 0.7:
                headers.append((b"content-type", b"application/json"))
            if subject:
                headers.append((b"ce_subject", id_))
            if random.random() < 0.15:
                headers.append((b"ce_expectedrevision", random.choice(REVISIONS[:6])))
            if random.random() < 0.1:
                headers.append((b"ce_organizationid", random.choice((b"org-1", b"org-2"))))
            if random.random() < 0.1:
                headers.append((b"ce_time", random.choice((b"2026-01-31T12:00:00Z", *self._header_values))))
            value = self._text(body).encode("utf-8", "surrogatepass")
        else:
            envelope = Pairs(
                [
                    ("specversion", "1.0"),
                    ("type", TYPE.decode()),
                    ("id", f"e-{random.randrange(2_000)}"),
                    ("source", random.choice(("s", "urn:lab:b2", "sµ"))),
                    ("data", body),
                ]
            )
            if subject:
                envelope.append(("subject", id_.decode()))
            if random.random() < 0.4:
                self._odd_envelope(envelope)
            if random.random() < 0.3:
                random.shuffle(envelope)
            headers = [(b"content-type", b"application/cloudevents+json")]
            value = self._text(envelope).encode("utf-8", "surrogatepass")
        return Record(id_ if keyed else random.choice((None, b"")), value, self._extras(headers))

    def _extras(self, headers: Headers) -> Headers:
        random = self.random
        if random.random() < 0.1:
            position = random.choice(POSITIONS[:6]).replace("T", self._topic)
            headers.append((b"requeued-from", position.encode()))
        if random.random() < 0.05:
            headers.append((b"reapply", random.choice((b"", b"run-1", b"run-2", b"a\0b"))))
        if random.random() < 0.1:
            headers.append((b"traceparent", random.choice((b"00-ab-cd-01", b"\xff", b"", b"a\0b", None))))
        if random.random() < 0.15:
            headers.append((random.choice(OTHER_NAMES), random.choice(self._header_values)))
        if random.random() < 0.3:
            random.shuffle(headers)
        return headers

    def _odd_envelope(self, envelope: Pairs) -> None:
        random = self.random
        name = random.choice(
            (
                *("specversion", "type", "id", "source", "subject", "data", "data_base64", "datacontenttype"),
                *("organizationid", "expectedrevision", "traceparent", "time", "Id", "extension"),
            )
        )
        likely: dict[str, tuple[Any, ...]] = {
            "datacontenttype": ("application/json", "Application/JSON; a=b", "text/plain", ""),
            "expectedrevision": (0, "7", "007", f"{2**63 - 1}", f"{2**63}", Raw("3.0"), Raw("3.5"), -1, "", True),
            "organizationid": ("org-1", "org-2", "", 5),
            "subject": (*self._ids[:2], ""),
            "data": (None, [], "{}", Pairs([("data", Pairs())])),
        }  # fmt: skip
        value = random.choice((None, None, self._scalar(), self._scalar(), *likely.get(name, ())))
        if random.random() < 0.4:
            for at, (present, _) in enumerate(envelope):
                if present == name:
                    envelope[at] = (name, value)
                    if random.random() < 0.4:
                        del envelope[at]
                    return
        envelope.insert(random.randrange(len(envelope) + 1), (name, value))

    def _body(self) -> Any:
        random = self.random
        if random.random() < 0.02:
            return self._anything(2)
        body = Pairs()
        for name in random.sample(FIELDS, random.choice((0, 1, 1, 1, 2, 3))):
            body.append((name, self._field(name)))
        if random.random() < 0.05:
            body.append(
                (random.choice(("nmae", "Name", "id", "", "revision", Raw(r'"n\u0061me"'))), self._scalar())
            )
        if body and random.random() < 0.04:  # of duplicate keys the last one counts
            body.insert(0, (body[-1][0], self._anything(1)))
        return body

    def _field(self, name: str) -> Any:
        random = self.random
        if random.random() < 0.25:
            return self._anything(2)
        if random.random() < 0.12:
            return None
        if name in ("name", "notes"):
            return random.choice(
                ("x", "LFP-0042", "cell vented", "µ° \U0001f50b", Raw(random.choice(STRINGS[1:8])))
            )
        if name == "properties":
            return Pairs(
                (random.choice(("thickness", "vented", "batch", "a b")), self._property())
                for _ in range(random.randrange(4))
            )
        part = Pairs()
        keys = PROTOCOL_KEYS if name == "protocol" else TEST_SETUP_KEYS
        for key in random.sample(keys, random.randrange(4)):
            right = {
                "ambient_temperature_degc": (25, 25.5, -5, None),
                "definition": ("UCP", Pairs([("steps", [Pairs([("rate", 0.1)])])]), None),
                "channel_number": (7, Raw("7.0"), 0, None),
            }.get(key, ("x", "B2", None))
            part.append((key, self._anything(1) if random.random() < 0.08 else random.choice(right)))
        return part

    def _property(self) -> Any:
        random = self.random
        if random.random() < 0.1:
            return self._anything(1)
        if random.random() < 0.4:
            return random.choice(("B12", True, False, None, ""))
        quantity = Pairs(
            [
                ("value", random.choice((0.52, 3, -1, Raw("3.0"), 0.1))),
                ("unit", random.choice(("mm", "", "°C"))),
            ]
        )
        if random.random() < 0.1:
            quantity[random.randrange(2)] = (random.choice(("value", "unit", "more")), self._scalar())
        return quantity

    def _scalar(self) -> Any:
        """Any literal, and what looks like one."""
        kind = self.random.choice((PLAIN, PLAIN, NUMBERS, STRINGS, OTHERS))
        return Raw(self.random.choice(kind))

    def _anything(self, depth: int) -> Any:
        random = self.random
        shape = random.random()
        if depth == 0 or shape < 0.6:
            return self._scalar()
        if shape < 0.65:
            levels = random.choice((95, 97, 98, 99, 100, 101, 102, 150, 900))
            opening, closing = random.choice((("[", "]"), ('{"a":', "}")))
            return Raw(opening * levels + "1" + closing * levels)
        inside = [self._anything(depth - 1) for _ in range(random.randrange(4))]
        if shape < 0.8:
            return inside
        keys = ("value", "unit", "lab", "definition", "é", Raw(r'"a\u0000"'))
        return Pairs((random.choice(keys), value) for value in inside)

    def _text(self, value: Any) -> str:
        """JSON, spelled one way or another."""
        random = self.random
        space = random.choice(("", "", "", " ", "\n", "\r\n\t"))

        def write(value: Any) -> str:
            match value:
                case Raw():
                    return value
                case Pairs():
                    return (
                        "{"
                        + f",{space}".join(f"{write(key)}{space}:{write(member)}" for key, member in value)
                        + "}"
                    )
                case list():
                    return "[" + f",{space}".join(map(write, value)) + "]"
                case None:
                    return "null"
                case bool():
                    return "true" if value else "false"
                case str():
                    return '"' + "".join(map(self._character, value)) + '"'
            return repr(value)

        return space + write(value) + space

    def _character(self, character: str) -> str:
        if self.random.random() > 0.01 or ord(character) > 0xFFFF:
            return character
        return f"\\u{ord(character):04x}"

    # Mutations ------------------------------------------------------------------------------------------------

    def _other_bytes(self, record: Record) -> Record:
        """The value with bytes flipped, cut, doubled or put in; or none."""
        random, value = self.random, bytearray(record.value or b"")
        at = random.randrange(len(value) + 1)
        snippet = random.choice((*NUMBERS, *STRINGS, *OTHERS)).encode("utf-8", "surrogatepass")

        def put(more: bytes) -> bytes:
            return bytes(value[:at]) + more + bytes(value[at:])

        def flip() -> bytes:
            for place in random.sample(range(len(value)), min(len(value), random.choice((1, 1, 2, 5)))):
                value[place] ^= 1 << random.randrange(8)
            return bytes(value)

        ways: tuple[Callable[[], bytes | None], ...] = (
            flip,
            flip,
            lambda: bytes(value[:at]),
            lambda: bytes(value[at:]),
            lambda: bytes(value[:at] + value[at + random.randrange(8) :]),
            lambda: put(snippet),
            lambda: put(random.randbytes(random.randrange(1, 5))),
            lambda: put(bytes(value[: random.randrange(len(value) + 1)])),
            lambda: put(random.choice((*(b"%c" % byte for byte in b'"\\{}[],:\0'), b"\xed\xa0\x80", b"\xc0\x80"))),
            lambda: b"\xef\xbb\xbf" + bytes(value),
            lambda: value.decode("utf-8", "replace").encode(random.choice(("utf-16", "utf-16-be", "utf-32-le"))),
            lambda: bytes(value) + random.choice((b" ", b"\n", b"\0", b"x", b"{}", b"\xa0", b"\x0b")),
            lambda: snippet,
            lambda: random.choice((None, None, b"")),
        )  # fmt: skip
        return record._replace(value=random.choice(ways)())

    def _other_headers(self, record: Record) -> Record:
        """A header lost, doubled, renamed, emptied, or with another value; or one more."""
        random, headers = self.random, list(record.headers)
        at = random.randrange(len(headers)) if headers else 0
        way = random.randrange(9) if headers else random.randrange(5, 9)
        if way == 0:
            del headers[at]
        elif way == 1:
            headers.insert(
                random.randrange(len(headers) + 1), (headers[at][0], random.choice(self._header_values))
            )
        elif way == 2:
            name = headers[at][0]
            other = random.choice(
                (name.upper(), name.title(), name + b" ", name[:-1], name + b"\xff", name.replace(b"_", b"-"))
            )
            headers[at] = (other, headers[at][1])
        elif way == 3:
            headers[at] = (headers[at][0], random.choice(self._header_values))
        elif way == 4:
            value = bytearray(headers[at][1] or b"x")
            if value:
                value[random.randrange(len(value))] ^= 1 << random.randrange(8)
            headers[at] = (headers[at][0], bytes(value))
        else:
            name, values = random.choice(self._known_headers())
            headers.insert(random.randrange(len(headers) + 1), (name, random.choice(values)))
        return record._replace(headers=headers)

    def _known_headers(self) -> list[tuple[bytes, Sequence[bytes | None]]]:
        positions = [position.replace("T", self._topic).encode() for position in POSITIONS]
        return [
            (b"content-type", MEDIA_TYPES),
            (b"ce_expectedrevision", REVISIONS),
            (b"requeued-from", [*positions, None, b"\xff"]),
            (b"ce_subject", self._header_values),
            (b"ce_organizationid", (b"org-1", b"org-2", *self._header_values)),
            (self.random.choice((b"reapply", b"traceparent")), self._header_values),
            (self.random.choice(CE_NAMES), self._header_values),
            (self.random.choice(OTHER_NAMES), self._header_values),
        ]

    def _other_key(self, record: Record) -> Record:
        return record._replace(
            key=self.random.choice(
                (None, b"", b"\xff", b"m\0", self._ids[-1].encode(), b"\xed\xa0\x80", b"x" * 300)
            )
        )

    def _other_size(self, record: Record) -> Record:
        """One part just about as large as it may be."""
        random, more = self.random, self.random.choice((-1, 0, 1))
        part = random.choice(("value", "value", "key", "headers"))
        if part == "value":
            text = b'{"notes":"%b"}' % (b"x" * (self._max_event_bytes - 12 + more))
            return record._replace(
                value=random.choice((text, text[:-1] + b" ", b"[" * random.choice((99, 101, 4_000))))
            )
        if part == "key":
            return record._replace(key=b"m" * (64 * 1024 + more))
        taken = sum(len(name) + len(value or b"") for name, value in record.headers)
        return record._replace(headers=[*record.headers, (b"caf\xe9", b"x" * (64 * 1024 - 4 - taken + more))])

    def _from_scratch(self) -> Record:
        """Random bytes, random JSON, random headers."""
        random = self.random
        value = random.choice(
            (
                random.randbytes(random.randrange(40)),
                self._text(self._anything(3)).encode("utf-8", "surrogatepass"),
                bytes(random.choices(b'{}[]:,"\\u0d8 nulltruefals.eE+-19\xff\x00', k=random.randrange(30))),
                b"[" * random.choice((100, 101, 3_000)) + b"]" * random.choice((100, 101, 3_000)),
            )
        )
        known = (b"ce_specversion", b"ce_id", b"ce_source", b"ce_type", b"content-type", b"requeued-from")
        headers = [
            (
                random.choice((*OTHER_NAMES, *CE_NAMES, *known, random.randbytes(3))),
                random.choice((*self._header_values, *MEDIA_TYPES, random.randbytes(4))),
            )
            for _ in range(random.choice((0, 0, 1, 3, 8)))
        ]
        return Record(random.choice((None, self._ids[0].encode(), random.randbytes(3))), value, headers)
