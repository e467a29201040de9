"""Rejections: every code with a detail that a person understands, their order, and the record as it was received."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka.structs import RecordMetadata

from tests.system import Header, System

ENVELOPE: tuple[Header, ...] = (
    ("ce_specversion", b"1.0"),
    ("ce_id", b"e-1"),
    ("ce_source", b"cycler"),
    ("ce_type", b"cell_measurement.update.v1"),
)
STRUCTURED: Header = ("content-type", b"application/cloudevents+json")
EVENT = '"specversion":"1.0","id":"s-1","source":"cycler","type":"cell_measurement.update.v1"'
GOOD = b'{"notes":"x"}'
KEY = b"m-1"


@dataclass(frozen=True, slots=True)
class Bad:
    """A record, and where its detail has to point."""

    code: str
    path: str
    value: bytes | None = GOOD
    headers: Sequence[Header] = ()
    key: bytes | None = KEY
    found: Any = ...
    """What the first violation has found; not looked at where it is left out."""
    total: int = 1


def envelope(**other: bytes | None) -> list[Header]:
    """A binary event's headers with one of them changed."""
    return [*ENVELOPE, *other.items()]


def without(name: str) -> list[Header]:
    return [header for header in ENVELOPE if header[0] != name]


def structured(data: str = '{"notes":"x"}', event: str = EVENT) -> bytes:
    return f'{{{event},"data":{data}}}'.encode()


CASES = {
    # empty_event
    "a tombstone": Bad("empty_event", "$", None, found=None),
    "a tombstone without a key": Bad("empty_event", "$", None, key=None, found=None),
    "no bytes": Bad("empty_event", "$", b"", found=None),
    "an empty binary event": Bad("empty_event", "$", None, ENVELOPE),
    "an empty structured event": Bad("empty_event", "$", b"", [STRUCTURED]),
    # too_large
    "nested 101 deep": Bad("too_large", "$", b'{"protocol":' + b'{"a":' * 99 + b"{}" + b"}" * 99 + b"}"),
    "nested 10,000 deep": Bad("too_large", "$", b"[" * 10_000 + b"]" * 10_000),
    "nested 10,000 deep as an object": Bad("too_large", "$", b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    # invalid_event, binary
    "an empty key": Bad("invalid_event", "key", key=b""),
    "no key": Bad("invalid_event", "key", key=None),
    "a key that isn't UTF-8": Bad("invalid_event", "key", key=b"m-\xff"),
    "a key with U+0000": Bad("invalid_event", "key", key=b"m\x00"),
    "no key and no subject": Bad("invalid_event", "key", GOOD, ENVELOPE, key=None),
    "key and subject differ": Bad(
        "invalid_event", "ce_subject", GOOD, envelope(ce_subject=b"m-2"), found="m-2"
    ),
    "another version": Bad("invalid_event", "ce_specversion", GOOD, envelope(ce_specversion=b"0.3"), found="0.3"),
    "another type": Bad("invalid_event", "ce_type", GOOD, envelope(ce_type=b"x.v2"), found="x.v2"),
    "no id": Bad("invalid_event", "ce_id", GOOD, without("ce_id"), found=None),
    "no source": Bad("invalid_event", "ce_source", GOOD, without("ce_source"), found=None),
    "only an unknown attribute": Bad("invalid_event", "ce_specversion", GOOD, [("ce_x", b"")], total=4),
    "an empty id": Bad("invalid_event", "ce_id", GOOD, envelope(ce_id=b""), found=""),
    "a null id": Bad("invalid_event", "ce_id", GOOD, envelope(ce_id=None), found=None),
    "an id that isn't UTF-8": Bad("invalid_event", "ce_id", GOOD, envelope(ce_id=b"a\xff"), found="a\\xff"),
    "an id with U+0000": Bad("invalid_event", "ce_id", GOOD, envelope(ce_id=b"a\x00")),
    "a source with U+0000": Bad("invalid_event", "ce_source", GOOD, envelope(ce_source=b"\x00")),
    "an empty subject": Bad("invalid_event", "ce_subject", GOOD, envelope(ce_subject=b"")),
    "an empty organization": Bad("invalid_event", "ce_organizationid", GOOD, envelope(ce_organizationid=b"")),
    "a null organization": Bad("invalid_event", "ce_organizationid", GOOD, envelope(ce_organizationid=None)),
    "a negative revision": Bad(
        "invalid_event", "ce_expectedrevision", GOOD, envelope(ce_expectedrevision=b"-1"), found="-1"
    ),
    "a revision of 2^63": Bad("invalid_event", "ce_expectedrevision", GOOD, envelope(ce_expectedrevision=b"%d" % 2**63)),
    "no content type": Bad("invalid_event", "content-type", GOOD, [("content-type", None)]),
    "another content type": Bad(
        "invalid_event", "content-type", GOOD, [*ENVELOPE, ("content-type", b"text/csv")], found="text/csv"
    ),
    "a batch of events": Bad(
        "invalid_event", "content-type", GOOD, [("content-type", b"application/cloudevents-batch+json")]
    ),
    # invalid_event, structured
    "no object": Bad("invalid_event", "value", b"[]", [STRUCTURED], found=[]),
    "no data": Bad("invalid_event", "data", f"{{{EVENT}}}".encode(), [STRUCTURED]),
    "binary data": Bad("invalid_event", "data_base64", structured(event=EVENT + ',"data_base64":"e30="'), [STRUCTURED]),
    "another data type": Bad(
        "invalid_event", "datacontenttype", structured(event=EVENT + ',"datacontenttype":"text/xml"'), [STRUCTURED]
    ),
    "an envelope without an id": Bad(
        "invalid_event", "id", structured(event=EVENT.replace('"id":"s-1"', '"id":null')), [STRUCTURED], found=None
    ),
    "another subject": Bad("invalid_event", "subject", structured(event=EVENT + ',"subject":"m-2"'), [STRUCTURED]),
    # invalid_event, requeued-from and reapply
    "a malformed position": Bad("invalid_event", "requeued-from", GOOD, [("requeued-from", b"x/0/1")], found="x/0/1"),
    "another topic's position": Bad("invalid_event", "requeued-from", GOOD, [("requeued-from", b"other/0/1@1")]),
    "a null position": Bad("invalid_event", "requeued-from", GOOD, [("requeued-from", None)]),
    "a run that isn't UTF-8": Bad("invalid_event", "reapply", GOOD, [("reapply", b"\xff")]),
    # invalid_json
    "cut off": Bad("invalid_json", "$", b'{"notes":"x'),
    "not UTF-8": Bad("invalid_json", "$", b'{"notes":"\xff"}', found='{"notes":"\\xff"}'),
    "a byte-order mark": Bad("invalid_json", "$", b'\xef\xbb\xbf{"notes":"x"}'),
    "UTF-16": Bad("invalid_json", "$", '{"notes":"x"}'.encode("utf-16")),
    "NaN": Bad("invalid_json", "$", b'{"protocol":{"n":NaN}}', found='{"protocol":{"n":NaN}}'),
    "Infinity": Bad("invalid_json", "$", b'{"protocol":{"n":Infinity}}'),
    "minus Infinity": Bad("invalid_json", "$", b'{"protocol":{"n":-Infinity}}'),
    "1e400": Bad("invalid_json", "$", b'{"protocol":{"n":1e400}}'),
    "an integer of 400 digits": Bad("invalid_json", "$", b'{"protocol":{"n":%b}}' % (b"9" * 400)),
    "2^64": Bad("invalid_json", "$", b'{"protocol":{"n":18446744073709551616}}'),
    "below -2^63": Bad("invalid_json", "$", b'{"protocol":{"n":-9223372036854775809}}'),
    "a high surrogate alone": Bad("invalid_json", "$", b'{"notes":"\\ud83d"}'),
    "a low surrogate in a key": Bad("invalid_json", "$", b'{"protocol":{"\\udd0b":1}}'),
    "a raw control character": Bad("invalid_json", "$", b'{"notes":"a\nb"}'),
    "raw zeros": Bad("invalid_json", "$", b"\x00" * 50),
    "two values": Bad("invalid_json", "$", b"{}{}"),
    "only spaces": Bad("invalid_json", "$", b"  "),
    "an envelope cut off": Bad("invalid_json", "$", structured()[:-1], [STRUCTURED]),
    "NaN in an envelope": Bad("invalid_json", "$", structured('{"protocol":{"n":NaN}}'), [STRUCTURED]),
    # invalid_patch
    "a list": Bad("invalid_patch", "$", b"[]", found=[]),
    "null": Bad("invalid_patch", "$", b"null", found=None),
    "a string": Bad("invalid_patch", "$", b'"x"', found="x"),
    "null data": Bad("invalid_patch", "$", structured("null"), [STRUCTURED], found=None),
    "an unknown field": Bad("invalid_patch", "$.note", b'{"note":"x"}', found="x"),
    "an answer's field": Bad("invalid_patch", "$.updated_at", b'{"updated_at":null}', found=None),
    "a field that isn't patchable": Bad("invalid_patch", "$.measurement_type", b'{"measurement_type":"file"}'),
    "an empty name": Bad("invalid_patch", "$.name", b'{"name":""}', found=""),
    "a name of 256": Bad("invalid_patch", "$.name", b'{"name":"%b"}' % (b"x" * 256)),
    "a name that is a number": Bad("invalid_patch", "$.name", b'{"name":3}', found=3),
    "notes that are a list": Bad("invalid_patch", "$.notes", b'{"notes":["x"]}', found=["x"]),
    "a protocol that is a string": Bad("invalid_patch", "$.protocol", b'{"protocol":"x"}', found="x"),
    "a protocol's name": Bad("invalid_patch", "$.protocol.name", b'{"protocol":{"name":1}}', found=1),
    "a temperature as text": Bad(
        "invalid_patch", "$.protocol.ambient_temperature_degc",
        b'{"protocol":{"ambient_temperature_degc":"25"}}', found="25",
    ),
    "a temperature that is true": Bad(
        "invalid_patch", "$.protocol.ambient_temperature_degc",
        b'{"protocol":{"ambient_temperature_degc":true}}', found=True,
    ),
    "a definition that is a list": Bad(
        "invalid_patch", "$.protocol.definition", b'{"protocol":{"definition":[]}}', found=[]
    ),
    "a channel as text": Bad(
        "invalid_patch", "$.test_setup.channel_number", b'{"test_setup":{"channel_number":"3"}}', found="3"
    ),
    "a channel with a fraction": Bad(
        "invalid_patch", "$.test_setup.channel_number", b'{"test_setup":{"channel_number":3.5}}', found=3.5
    ),
    "a channel in an envelope": Bad(
        "invalid_patch", "$.test_setup.channel_number", structured('{"test_setup":{"channel_number":false}}'),
        [STRUCTURED], found=False,
    ),
    "an operator that is a number": Bad("invalid_patch", "$.test_setup.operator", b'{"test_setup":{"operator":7}}'),
    "a number as a property": Bad("invalid_patch", "$.properties.mass", b'{"properties":{"mass":1}}', found=1),
    "a quantity without a unit": Bad("invalid_patch", "$.properties.mass", b'{"properties":{"mass":{"value":1}}}'),
    "a quantity of null": Bad(
        "invalid_patch", "$.properties.mass.value", b'{"properties":{"mass":{"value":null,"unit":""}}}', found=None
    ),
    "a quantity without a unit's text": Bad(
        "invalid_patch", "$.properties['a b'].unit", b'{"properties":{"a b":{"value":1,"unit":null}}}', found=None
    ),
    "a list as a property": Bad("invalid_patch", "$.properties.mass", b'{"properties":{"mass":[1]}}', found=[1]),
    "U+0000 in a text": Bad("invalid_patch", "$.notes", b'{"notes":"a\\u0000b"}'),
    "U+0000 in a key": Bad("invalid_patch", "$.protocol['\\u0000']", b'{"protocol":{"\\u0000":1}}'),
    "U+0000 far below": Bad("invalid_patch", "$.protocol.a[1].b", b'{"protocol":{"a":[0,{"b":"\\u0000"}]}}'),
    "U+0000 in a field's name": Bad("invalid_patch", "$['\\u0000']", b'{"\\u0000":1}'),
    "three things": Bad("invalid_patch", "$.name", b'{"name":"","x":1,"notes":3}', total=3),
    # what the database knows
    "no such measurement": Bad("measurement_not_found", "key", key=b"m-0", found="m-0"),
    "another organization's": Bad("measurement_not_found", "key", GOOD, envelope(ce_organizationid=b"org-2")),
    "properties of a time series": Bad("properties_not_allowed", "$.properties", b'{"properties":{}}', found={}),
    "another revision": Bad(
        "revision_conflict", "ce_expectedrevision", GOOD, envelope(ce_expectedrevision=b"99"), found=99
    ),
    "another revision in an envelope": Bad(
        "revision_conflict", "ce_expectedrevision", structured(event=EVENT + ',"expectedrevision":98'), [STRUCTURED],
        found=98,
    ),
}  # fmt: skip


async def test_each_bad_record_is_rejected_as_it_was_received_with_its_reason_and_harms_no_neighbour(
    lab: System,
) -> None:
    await lab.seed("m-1", notes="as it was")
    await lab.seed("good")
    records, neighbours = [], []
    for number, bad in enumerate(CASES.values()):
        records.append(await lab.publish(bad.key, bad.value, bad.headers, partition=0))
        neighbours.append(await lab.publish("good", {"notes": str(number)}, partition=0))
    async with lab.worker():
        verdicts = dict(zip(CASES, await lab.verdicts(*records), strict=True))
        assert verdicts == {name: bad.code for name, bad in CASES.items()}
        assert await lab.verdicts(*neighbours) == [f"{number} notes" for number in range(1, len(CASES) + 1)]
        answers = await lab.answers_to(*records)
    for (name, bad), record, answer in zip(CASES.items(), records, answers, strict=True):
        assert (answer.key, answer.value) == (bad.key, bad.value), name
        assert list(answer.raw_headers[: len(bad.headers)]) == list(bad.headers), name
        added = dict(answer.raw_headers[len(bad.headers) :])
        detail = added.pop("rejection-detail")
        assert added == rejection_headers(lab, record, bad.code), name
        assert detail is not None
        assert len(detail) <= 16 * 1024
        assert set(answer.detail) == {"message", "violations", "total"}, name
        assert len(answer.detail["message"]) > 20, name
        assert answer.detail["total"] == len(answer.detail["violations"]) == bad.total, name
        first = answer.detail["violations"][0]
        assert set(first) == {"path", "expected", "found"}, name
        assert (first["path"], type(first["expected"])) == (bad.path, str), name
        if bad.found is not ...:
            assert (first["found"], type(first["found"])) == (bad.found, type(bad.found)), name
    row = await lab.row("m-1")
    assert (row["notes"], row["revision"]) == ("as it was", 0)


def rejection_headers(lab: System, record: RecordMetadata, code: str) -> dict[str, bytes]:
    return {
        "rejection-code": code.encode(),
        "rejection-topic": lab.updates.encode(),
        "rejection-partition": b"%d" % record.partition,
        "rejection-offset": b"%d" % record.offset,
        "rejection-timestamp": b"%d" % record.timestamp,
    }


async def test_as_many_violations_are_listed_as_fit_and_all_are_counted(lab: System) -> None:
    await lab.seed("m-1")
    many = {f"unknown_{number}": number for number in range(5_000)}
    async with lab.worker():
        [answer] = await lab.answers_to(await lab.update("m-1", many, id="e-1"))
    detail = answer.headers["rejection-detail"]
    assert detail is not None
    assert 15 * 1024 < len(detail) <= 16 * 1024
    assert answer.detail["total"] == 5_000
    paths = [violation["path"] for violation in answer.detail["violations"]]
    assert paths == [f"$.unknown_{number}" for number in range(len(paths))]


async def test_whatever_bytes_headers_have_a_rejected_record_keeps_them(lab: System) -> None:
    headers: list[tuple[bytes, bytes | None]] = [
        (b"plain", b"text"),
        (b"", b"an empty name"),
        (b"null", None),
        (b"empty", b""),
        (b"bytes", bytes(range(256))),
        (b"\xff", b"a name that isn't UTF-8"),
        (b"a\xc3(\xf0\x9f", None),
        ("µ°\U0001f50b".encode(), "µ".encode()),
        (b"twice", b"1"),
        (b"twice", b"2"),
        (b"zero\x00", b"\x00"),
        (b"rejection-code", b"its producer's own"),
        (b"rejection-note", b"\xfe"),
    ]
    await lab.seed("m-1")
    sent = await lab.publish_raw((b"\xfe\xff", b"\x80", headers))
    async with lab.worker():
        [answer] = await lab.answers_to(*sent)
    assert (answer.key, answer.value) == (b"\xfe\xff", b"\x80")
    names = [name.decode("utf-8", "backslashreplace") for name, _ in headers]
    assert names[5:7] == ["\\xff", "a\\xc3(\\xf0\\x9f"]
    expected = list(zip(names, (value for _, value in headers), strict=True))
    assert list(answer.raw_headers[: len(headers)]) == expected
    # ours come last, and of a header given twice the last counts
    assert answer.code == "invalid_event"


async def test_header_names_that_are_not_utf8_are_no_fault_and_harm_no_record_of_their_batch(
    lab: System,
) -> None:
    codecs = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
    raw: list[tuple[bytes, bytes | None]] = [(name.encode(), value) for name, value in ENVELOPE]
    async with lab.worker():
        for codec, compression in codecs.items():
            key = (await lab.seed(codec)).encode()
            records = await lab.publish_raw(
                (key, b'{"notes":"a"}', []),
                (key, b'{"notes":"b"}', [(b"\xff\xfe", b"x"), (b"\x80", None)]),
                (None, None, [(b"\xff", b"")]),
                (key, b'{"notes":"c"}', [*raw, (b"ce_\xff", b"an unknown attribute")]),
                (key, b'{"notes":"d"}', [(b"ce_\xff", b"makes it a binary event")]),
                (key, b'{"notes":"e"}', []),
                compression=compression,
            )
            verdicts = await lab.verdicts(*records)
            assert verdicts == ["1 notes", "2 notes", "empty_event", "3 notes", "invalid_event", "4 notes"]
            [answer] = await lab.answers_to(records[2])
            assert answer.raw_headers[0] == ("\\xff", b"")


async def test_headers_that_are_none_of_ours_are_never_a_fault(lab: System) -> None:
    await lab.seed("m-1")
    odd: list[Header] = [("x", b"\xff"), ("y", None), ("", b""), ("rejection-code", None), ("ce", b"\xff")]
    async with lab.worker():
        records = [
            await lab.publish("m-1", b'{"notes":"a"}', odd),
            await lab.publish(
                "m-1", b'{"notes":"b"}', [*ENVELOPE, *odd, ("ce_time", b"\xff"), ("ce_x", None)]
            ),
            await lab.publish("m-1", structured('{"notes":"c"}'), [STRUCTURED, *odd, ("ce_id", None)]),
        ]
        assert await lab.verdicts(*records) == ["1 notes", "2 notes", "3 notes"]


async def test_where_two_codes_hold_the_earlier_one_is_given(lab: System) -> None:
    await lab.seed("m-1")
    await lab.seed("unreadable", measurement_type="other")
    await lab.seed("gone")
    await lab.database.execute("ALTER TABLE cell_measurements ADD CHECK (notes <> 'refused')")
    large = b'{"notes":"%b"}' % (b"x" * 2**20)
    refused = b'{"notes":"refused"}'
    conflict = "99"
    async with lab.worker():
        applied = [
            await lab.update("m-1", {"notes": "a"}, id="used"),
            await lab.update("gone", {"notes": "a"}, id="used"),
        ]
        assert await lab.verdicts(*applied) == ["1 notes"] * 2
        await lab.database.execute("DELETE FROM cell_measurements WHERE id = 'gone'")
        cases = {
            "empty_event before too_large": await lab.publish(b"x" * 70_000, None),
            "empty_event before invalid_event": await lab.publish(None, None, ENVELOPE),
            "too_large before invalid_event": await lab.publish(None, large, partition=0),
            "too_large before invalid_event, deep": await lab.publish(b"\xff", b"[" * 200 + b"]" * 200),
            "too_large before invalid_patch": await lab.publish("m-1", large.replace(b"notes", b"other")),
            "invalid_event before invalid_json": await lab.publish("m-1", b"{", without("ce_id")),
            "invalid_event before invalid_json, by key": await lab.publish(b"\xff", b"{", [STRUCTURED]),
            "invalid_event before invalid_patch": await lab.publish("m-1", b"[]", without("ce_source")),
            "invalid_event before measurement_not_found": await lab.publish("m-0", GOOD, without("ce_type")),
            "invalid_json before invalid_patch": await lab.publish("m-1", b'{"other":NaN}'),
            "invalid_json before measurement_not_found": await lab.publish("m-0", b"{"),
            "invalid_patch before event_id_reused": await lab.update("m-1", {"notes": 1}, id="used"),
            "invalid_patch before measurement_not_found": await lab.publish("m-0", b'{"name":""}'),
            "event_id_reused before measurement_not_found": await lab.update(
                "gone", {"notes": "b"}, id="used"
            ),
            "event_id_reused before properties_not_allowed": await lab.update(
                "m-1", {"properties": {}}, id="used"
            ),
            "event_id_reused before revision_conflict": await lab.update(
                "m-1", {"notes": "a"}, id="used", ce_expectedrevision=conflict
            ),
            "measurement_not_found before revision_conflict": await lab.update(
                "m-0", {}, id="1", ce_expectedrevision=conflict
            ),
            "properties_not_allowed before revision_conflict": await lab.update(
                "m-1", {"properties": {}}, id="2", ce_expectedrevision=conflict
            ),
            "properties_not_allowed before measurement_unreadable": await lab.update(
                "unreadable", {"properties": {}}, id="3"
            ),
            "revision_conflict before measurement_unreadable": await lab.update(
                "unreadable", {}, id="4", ce_expectedrevision=conflict
            ),
            "measurement_unreadable before storage_refused": await lab.update("unreadable", refused, id="5"),
            "revision_conflict before storage_refused": await lab.update(
                "m-1", refused, id="6", ce_expectedrevision=conflict
            ),
            "storage_refused": await lab.update("m-1", refused, id="7"),
        }
        verdicts = await lab.verdicts(*cases.values())
    assert dict(zip(cases, verdicts, strict=True)) == {
        name: name.partition(",")[0].partition(" ")[0] for name in cases
    }
