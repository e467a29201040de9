"""decode: the three forms, their envelopes, the order of the codes, identity and position."""

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest

from contracts.cloudevents import Message, bare_update, binary_update, structured_update
from contracts.envelope import Form
from worker.decode import decode
from worker.record import DecodeLimits, Rejection, Update, position

ID = "m-1"
ARRIVAL = 1_760_000_000_000
Headers = tuple[tuple[str, bytes | None], ...]
CLOUD_EVENTS: list[Form] = ["binary", "structured"]
ALL: list[Form] = ["binary", "structured", "bare"]


@dataclass(frozen=True)
class Received:
    value: bytes | None = b"{}"
    key: bytes | None = ID.encode()
    headers: Headers = ()
    topic: str = "measurement-updates"
    partition: int = 3
    offset: int = 42
    timestamp: int = ARRIVAL
    timestamp_type: int = 1

    def having(self, name: str, value: bytes | None) -> "Received":
        return replace(self, headers=(*self.headers, (name, value)))

    def lacking(self, name: str) -> "Received":
        return replace(self, headers=tuple(pair for pair in self.headers if pair[0] != name))


def received(message: Message) -> Received:
    return Received(message.value, message.key, tuple(message.headers))


def record(form: Form = "binary", patch: dict[str, Any] | None = None, **attributes: Any) -> Received:
    body = {"notes": "cell vented"} if patch is None else patch
    if form == "bare":
        return received(bare_update(ID, body))
    make = binary_update if form == "binary" else structured_update
    return received(make(ID, body, **{"id": "e-1", "source": "/cycler/7", **attributes}))


def enveloped(drop: str | None = None, **members: Any) -> Received:
    """A structured event with members of its envelope put in, or one left out."""
    message = structured_update(ID, {"notes": "cell vented"}, id="e-1", source="/cycler/7")
    envelope = {**json.loads(message.value), **members}
    envelope.pop(drop, None)
    return Received(json.dumps(envelope).encode(), message.key, tuple(message.headers))


def accepted(of: Received, limits: DecodeLimits | None = None) -> Update:
    decoded = decode(of, of.timestamp, limits or DecodeLimits())
    assert isinstance(decoded, Update), decoded
    return decoded


def rejected(of: Received, limits: DecodeLimits | None = None) -> Rejection:
    decoded = decode(of, of.timestamp, limits or DecodeLimits())
    assert isinstance(decoded, Rejection), decoded
    assert decoded.message
    assert decoded.total == len(decoded.violations) >= 1
    return decoded


def fault(of: Received) -> str:
    """The place of the one thing that is wrong with an envelope."""
    rejection = rejected(of)
    assert rejection.code == "invalid_event", rejection
    (violation,) = rejection.violations
    return violation.path


# Forms


def test_a_binary_event_has_its_attributes_in_headers_and_the_patch_as_its_value() -> None:
    update = accepted(
        record(patch={"notes": None}, expected_revision=7, organization_id="lab-1", traceparent="00-ab-cd-01")
    )
    assert (update.measurement_id, update.source, update.id) == (ID, "/cycler/7", "e-1")
    assert update.patch == {"notes": None}
    assert (update.expected_revision, update.organization_id) == (7, "lab-1")
    assert update.traceparent == "00-ab-cd-01"
    assert update.position == position(ARRIVAL, 3, 42)
    assert update.arrival == ARRIVAL


def test_a_structured_event_says_the_same_in_its_envelope() -> None:
    attributes: dict[str, Any] = {
        "expected_revision": 7,
        "organization_id": "lab-1",
        "traceparent": "00-ab-cd-01",
    }
    binary = accepted(record("binary", **attributes))
    structured = accepted(record("structured", **attributes))
    assert replace(structured, record=binary.record) == binary


def test_a_bare_event_is_key_and_value_and_is_known_by_its_position() -> None:
    update = accepted(record("bare", {"notes": "cell vented"}))
    assert (update.measurement_id, update.patch) == (ID, {"notes": "cell vented"})
    assert (update.source, update.id) == ("kafka:measurement-updates", f"3/42@{ARRIVAL}")
    assert (update.expected_revision, update.organization_id, update.traceparent) == (None, None, None)


@pytest.mark.parametrize(
    "content_type",
    [
        b"application/cloudevents+json",
        b"Application/CloudEvents+JSON",
        b"application/cloudevents+json; charset=utf-8",
        b" application/cloudevents+json ;x=y",
    ],
)
def test_media_type_of_a_structured_event_is_compared_without_case_and_parameters(
    content_type: bytes,
) -> None:
    assert accepted(record("structured").having("content-type", content_type)).id == "e-1"


@pytest.mark.parametrize(
    "content_type", [b"application/json", b"APPLICATION/json", b"application/json;charset=latin-1"]
)
def test_media_type_of_a_binary_event_is_compared_without_case_and_parameters(content_type: bytes) -> None:
    assert accepted(record().having("content-type", content_type)).id == "e-1"


def test_missing_content_type_means_json() -> None:
    assert accepted(record().lacking("content-type")).id == "e-1"


@pytest.mark.parametrize("content_type", [b"text/plain", b"application/json+x", b"application/jsonx", b""])
def test_another_content_type_is_a_fault_of_a_binary_event_only(content_type: bytes) -> None:
    assert fault(record().having("content-type", content_type)) == "content-type"
    assert accepted(record("bare").having("content-type", content_type)).id == f"3/42@{ARRIVAL}"


@pytest.mark.parametrize("form", ALL)
@pytest.mark.parametrize(
    "content_type",
    [b"application/cloudevents-batch+json", b"application/cloudevents", b"APPLICATION/CLOUDEVENTS+avro; a=b"],
)
def test_any_other_cloudevents_media_type_is_a_fault_of_every_form(form: Form, content_type: bytes) -> None:
    assert fault(record(form).having("content-type", content_type)) == "content-type"


@pytest.mark.parametrize("form", ALL)
@pytest.mark.parametrize("content_type", [None, b"application/json; \xff"])
def test_content_type_that_is_null_or_not_utf8_is_a_fault_as_it_is_read_of_every_record(
    form: Form, content_type: bytes | None
) -> None:
    assert fault(record(form).having("content-type", content_type)) == "content-type"


@pytest.mark.parametrize("name", ["ce_id", "ce_", "ce_whatever", "ce_\udcff"])
def test_any_header_that_begins_with_the_prefix_makes_it_a_binary_event(name: str) -> None:
    rejection = rejected(record("bare").having(name, b"x"))
    assert rejection.code == "invalid_event"
    assert {"ce_specversion", "ce_type", "ce_source"} <= {
        violation.path for violation in rejection.violations
    }


@pytest.mark.parametrize("name", ["ce_time", "ce_traceparent", "ce_unknown"])
@pytest.mark.parametrize("value", [None, b"\xff"])
def test_a_header_with_the_prefix_makes_it_binary_whatever_its_value(name: str, value: bytes | None) -> None:
    assert rejected(record("bare").having(name, value)).code == "invalid_event"
    assert accepted(record("binary").having(name, value)).id == "e-1"


@pytest.mark.parametrize("name", ["CE_id", "ce-id", "xce_id", "ce"])
def test_other_headers_leave_it_bare(name: str) -> None:
    assert accepted(record("bare").having(name, b"x")).source == "kafka:measurement-updates"


def test_prefixed_headers_beside_an_envelope_are_not_looked_at() -> None:
    beside = (
        record("structured").having("ce_id", b"\xff").having("ce_type", None).having("ce_subject", b"m-2")
    )
    beside = beside.having("ce_expectedrevision", b"x").having("ce_organizationid", b"")
    assert accepted(beside) == replace(accepted(record("structured")), record=beside)


# Headers


@pytest.mark.parametrize("form", ALL)
@pytest.mark.parametrize("name", ["x", "caf\udce9", "\udcff\udcfe", "", "rejection-code", "Content-Type"])
@pytest.mark.parametrize("value", [None, b"", b"\xff\xfe", b"x\0"])
def test_headers_that_are_none_of_ours_are_never_a_fault(form: Form, name: str, value: bytes | None) -> None:
    assert accepted(record(form).having(name, value)).measurement_id == ID


@pytest.mark.parametrize("value", [None, b"", b"\xff\xfe", b"x"])
@pytest.mark.parametrize("name", ["ce_time", "ce_dataschema", "ce_unknown", "ce_datacontenttype"])
def test_time_and_unknown_extensions_in_headers_are_never_a_fault(name: str, value: bytes | None) -> None:
    assert accepted(record().having(name, value)).id == "e-1"


@pytest.mark.parametrize("value", [None, "", "x", 5, [], {"a": True}])
@pytest.mark.parametrize("name", ["time", "dataschema", "unknown", "traceparent"])
def test_time_and_unknown_extensions_of_an_envelope_are_never_a_fault(name: str, value: Any) -> None:
    assert accepted(enveloped(**{name: value})).id == "e-1"


@pytest.mark.parametrize(
    "name",
    [
        "ce_specversion",
        "ce_type",
        "ce_id",
        "ce_source",
        "ce_subject",
        "ce_organizationid",
        "ce_expectedrevision",
    ],
)
@pytest.mark.parametrize("value", [None, b"", b"\xff"])
def test_null_empty_or_non_utf8_value_of_an_attribute_is_a_fault(name: str, value: bytes | None) -> None:
    assert fault(record().having(name, value)) == name


@pytest.mark.parametrize("name", ["ce_id", "ce_source", "ce_subject", "ce_organizationid"])
def test_nul_in_an_attribute_is_a_fault(name: str) -> None:
    assert fault(record().having(name, b"m\x00")) == name


@pytest.mark.parametrize("name", ["ce_specversion", "ce_type", "ce_id", "ce_source"])
def test_missing_attribute_of_a_binary_event_is_a_fault(name: str) -> None:
    assert fault(record().lacking(name)) == name


@pytest.mark.parametrize(
    ("name", "value"), [("ce_specversion", b"0.3"), ("ce_type", b"cell_measurement.updated.v1")]
)
def test_another_version_or_type_of_a_binary_event_is_a_fault(name: str, value: bytes) -> None:
    assert fault(record().having(name, value)) == name


def test_of_a_header_given_twice_the_last_counts() -> None:
    assert accepted(record().having("ce_id", b"e-2")).id == "e-2"
    first_broken = replace(record(), headers=(("ce_source", None), *record().headers))
    assert accepted(first_broken).source == "/cycler/7"


def test_all_faults_of_an_envelope_are_told_at_once() -> None:
    broken = record().lacking("ce_id").having("ce_type", b"x").having("requeued-from", b"x")
    assert {violation.path for violation in rejected(broken).violations} == {
        "ce_id",
        "ce_type",
        "requeued-from",
    }


# Measurement id


@pytest.mark.parametrize("form", CLOUD_EVENTS)
@pytest.mark.parametrize("key", [None, b""])
def test_subject_stands_in_for_a_key_that_is_missing_or_empty(form: Form, key: bytes | None) -> None:
    assert accepted(replace(record(form), key=key)).measurement_id == ID


def test_key_alone_is_enough() -> None:
    assert accepted(record().lacking("ce_subject")).measurement_id == ID
    assert accepted(enveloped(drop="subject")).measurement_id == ID


@pytest.mark.parametrize("key", [None, b""])
def test_no_measurement_id_at_all_is_a_fault_of_the_key(key: bytes | None) -> None:
    for without in (record("bare"), record().lacking("ce_subject"), enveloped(drop="subject")):
        assert fault(replace(without, key=key)) == "key"


@pytest.mark.parametrize("key", [b"m-2", b"M-1", b"m-1 "])
def test_key_and_subject_must_be_the_same(key: bytes) -> None:
    assert fault(replace(record("binary"), key=key)) == "ce_subject"
    assert fault(replace(record("structured"), key=key)) == "subject"


@pytest.mark.parametrize("form", ALL)
@pytest.mark.parametrize("key", [b"\xff", b"m\x00", b"\xed\xa0\x80"])
def test_key_that_is_not_utf8_or_has_nul_is_a_fault(form: Form, key: bytes) -> None:
    assert fault(replace(record(form), key=key)) == "key"
    assert fault(replace(record(form).lacking("ce_subject"), key=key)) == "key"


# Extensions


@pytest.mark.parametrize(
    ("text", "revision"),
    [("0", 0), ("7", 7), ("007", 7), ("9223372036854775807", 2**63 - 1), ("0" * 5000 + "1", 1)],
)
def test_expected_revision_is_decimal_digits(text: str, revision: int) -> None:
    assert accepted(record().having("ce_expectedrevision", text.encode())).expected_revision == revision
    assert accepted(enveloped(expectedrevision=text)).expected_revision == revision


@pytest.mark.parametrize(
    "text",
    ["-1", "+1", "1.0", "1e2", " 1", "1 ", "1\n", "x", "٣", "²", "9223372036854775808", "9" * 5000, "1_0"],
)
def test_any_other_expected_revision_is_a_fault(text: str) -> None:
    assert fault(record().having("ce_expectedrevision", text.encode())) == "ce_expectedrevision"
    assert fault(enveloped(expectedrevision=text)) == "expectedrevision"


def test_expected_revision_of_an_envelope_may_be_a_json_integer() -> None:
    assert accepted(enveloped(expectedrevision=7)).expected_revision == 7
    assert accepted(enveloped(expectedrevision=7.0)).expected_revision == 7
    assert accepted(enveloped(expectedrevision=2**63 - 1)).expected_revision == 2**63 - 1


@pytest.mark.parametrize("stated", [True, False, -1, 2**63, 7.5, 1e22, [7], {"a": 7}])
def test_expected_revision_of_an_envelope_is_no_other_json_value(stated: Any) -> None:
    assert fault(enveloped(expectedrevision=stated)) == "expectedrevision"


@pytest.mark.parametrize(
    ("headers", "passed_on"),
    [
        ([("traceparent", b"a"), ("ce_traceparent", b"b")], "a"),
        ([("traceparent", b"\xff"), ("ce_traceparent", b"b")], "b"),
        ([("traceparent", None), ("ce_traceparent", b"b")], "b"),
        ([("traceparent", b"\xff"), ("ce_traceparent", None)], None),
        ([("traceparent", b"a"), ("traceparent", b"b")], "b"),
        ([("traceparent", b"not even a trace")], "not even a trace"),
        ([("traceparent", b"a\x00")], None),
    ],
)
def test_traceparent_is_passed_on_where_it_is_text(
    headers: list[tuple[str, bytes | None]], passed_on: str | None
) -> None:
    event = record()
    for name, value in headers:
        event = event.having(name, value)
    assert accepted(event).traceparent == passed_on


def test_traceparent_of_an_envelope_comes_after_the_headers() -> None:
    event = enveloped(traceparent="c")
    assert accepted(event).traceparent == "c"
    assert accepted(event.having("ce_traceparent", b"b")).traceparent == "b"
    assert accepted(event.having("ce_traceparent", b"b").having("traceparent", b"a")).traceparent == "a"
    assert accepted(enveloped(traceparent="c\0")).traceparent is None


def test_traceparent_of_a_bare_event_is_passed_on() -> None:
    assert accepted(record("bare").having("traceparent", b"a")).traceparent == "a"


# Structured


@pytest.mark.parametrize("value", [b"[]", b'"x"', b"5", b"null", b"true"])
def test_envelope_that_is_no_object_is_a_fault(value: bytes) -> None:
    assert fault(replace(record("structured"), value=value)) == "value"


@pytest.mark.parametrize("name", ["specversion", "type", "id", "source", "data"])
def test_missing_attribute_of_an_envelope_is_a_fault(name: str) -> None:
    assert fault(enveloped(drop=name)) == name


@pytest.mark.parametrize("name", ["specversion", "type", "id", "source"])
def test_null_attribute_of_an_envelope_is_a_missing_one(name: str) -> None:
    assert fault(enveloped(**{name: None})) == name


@pytest.mark.parametrize(
    "name", ["subject", "organizationid", "expectedrevision", "datacontenttype", "data_base64", "traceparent"]
)
def test_null_of_an_optional_attribute_is_no_fault(name: str) -> None:
    assert accepted(enveloped(**{name: None})).id == "e-1"


@pytest.mark.parametrize("name", ["specversion", "type", "id", "source", "subject", "organizationid"])
@pytest.mark.parametrize("value", ["", 1, 1.0, True, [], {}, ["1.0"], "m\0"])
def test_attribute_of_an_envelope_that_is_no_proper_string_is_a_fault(name: str, value: Any) -> None:
    assert fault(enveloped(**{name: value})) == name


@pytest.mark.parametrize("media_type", ["application/json", "Application/JSON; charset=utf-8"])
def test_datacontenttype_is_json(media_type: str) -> None:
    assert accepted(enveloped(datacontenttype=media_type)).id == "e-1"


@pytest.mark.parametrize("media_type", ["text/json", "", 5, True, "application/json+x"])
def test_another_datacontenttype_is_a_fault(media_type: Any) -> None:
    assert fault(enveloped(datacontenttype=media_type)) == "datacontenttype"


def test_binary_data_is_a_fault_with_and_without_data() -> None:
    assert fault(enveloped(data_base64="e30=")) == "data_base64"
    assert fault(enveloped(data_base64="e30=", drop="data")) == "data_base64"


def test_null_data_is_a_patch_that_is_no_object() -> None:
    rejection = rejected(enveloped(data=None))
    assert rejection.code == "invalid_patch"
    assert rejection.violations[0].path == "$"


def test_paths_are_of_the_patch_body_in_every_form() -> None:
    for form in ALL:
        rejection = rejected(record(form, {"test_setup": {"channel_number": "7"}}))
        assert [violation.path for violation in rejection.violations] == ["$.test_setup.channel_number"]


# Sizes


@pytest.mark.parametrize("value", [None, b""])
@pytest.mark.parametrize("form", ALL)
def test_no_value_is_an_empty_event_whatever_else_is_wrong(form: Form, value: bytes | None) -> None:
    assert rejected(replace(record(form), value=value, key=b"k" * 70_000)).code == "empty_event"


def test_value_over_the_limit_is_too_large() -> None:
    limits = DecodeLimits(max_event_bytes=100)
    room = b'{"notes":"%s"}' % (b"x" * (100 - len(b'{"notes":""}')))
    assert accepted(Received(room), limits).patch["notes"]
    rejection = rejected(Received(room + b" "), limits)
    assert rejection.code == "too_large"
    (violation,) = rejection.violations
    assert (violation.expected, violation.found) == ("at most 100 bytes", "101 bytes")


@pytest.mark.parametrize("form", ALL)
def test_key_over_64_kib_is_too_large(form: Form) -> None:
    assert rejected(replace(record(form), key=b"k" * (64 * 1024 + 1))).code == "too_large"
    assert accepted(replace(record("bare"), key=b"k" * 64 * 1024)).measurement_id


@pytest.mark.parametrize("name", ["x" * 100, "\udcff" * 100, "µ" * 50])
def test_headers_over_64_kib_are_too_large_counting_names_as_their_bytes(name: str) -> None:
    fits = record("bare").having(name, b"v" * (64 * 1024 - 100)).having("", None)
    assert accepted(fits).measurement_id == ID
    rejection = rejected(fits.having("x", b""))
    assert rejection.code == "too_large"
    assert rejection.violations[0].path == "headers"


def test_only_what_is_too_large_is_told() -> None:
    full = Received(b"{}", b"k" * 64 * 1024).having("", b"v" * (64 * 1024 + 1))
    assert [violation.path for violation in rejected(full).violations] == ["headers"]
    deep = Received(b"[" * 101 + b"]" * 101)
    assert [violation.expected for violation in rejected(deep).violations] == [
        "objects and lists nested at most 100 deep"
    ]


def test_headers_given_twice_count_twice() -> None:
    assert rejected(record("bare").having("x", b"v" * 40_000).having("x", b"v" * 40_000)).code == "too_large"


def nested(depth: int, innermost: str = "1") -> str:
    return '{"protocol":{"definition":{"x":' + "[" * (depth - 3) + innermost + "]" * (depth - 3) + "}}}"


@pytest.mark.parametrize(
    "innermost", ["1", '"[[["', r'"\"[[["', r'"\\"', r'"\\\"]]]]"', '"]]]]"', r'"{\\\\"']
)
def test_value_nested_deeper_than_100_is_too_large_brackets_in_strings_aside(innermost: str) -> None:
    assert accepted(Received(nested(100, innermost).encode())).patch
    assert rejected(Received(nested(101, innermost).encode())).code == "too_large"


def test_many_brackets_side_by_side_are_not_deep() -> None:
    steps = '{"protocol":{"definition":{"steps":[' + '{"a":[[{}]],"b":{}},' * 500 + "{}]}}}"
    assert accepted(Received(steps.encode())).patch


def test_depth_hidden_by_a_duplicate_key_counts_since_it_is_of_the_value_as_it_stands() -> None:
    assert rejected(Received(b'{"notes":' + b"[" * 100 + b"]" * 100 + b',"notes":"x"}')).code == "too_large"


def test_an_envelope_is_one_level() -> None:
    message = structured_update(ID, json.loads(nested(99)), id="e-1", source="/cycler/7")
    assert accepted(received(message)).patch
    message = structured_update(ID, json.loads(nested(100)), id="e-1", source="/cycler/7")
    assert rejected(received(message)).code == "too_large"


@pytest.mark.parametrize("value", [b"[" * 10_000, b'{"a":' * 10_000, b"[" * 101 + b"]" * 101])
def test_ten_thousand_levels_are_rejected_and_harm_nothing(value: bytes) -> None:
    assert rejected(Received(value)).code == "too_large"


# The order of the codes


def test_too_large_comes_before_invalid_event() -> None:
    limits = DecodeLimits(max_event_bytes=10)
    assert rejected(replace(record().lacking("ce_id"), value=b"x" * 11), limits).code == "too_large"


@pytest.mark.parametrize("form", ALL)
def test_invalid_event_comes_before_invalid_json(form: Form) -> None:
    broken = replace(record(form), value=b"{")
    assert rejected(replace(broken, key=b"\xff")).code == "invalid_event"
    assert rejected(broken.having("requeued-from", b"x")).code == "invalid_event"
    assert rejected(broken.having("reapply", None)).code == "invalid_event"
    assert rejected(broken).code == "invalid_json"


def test_invalid_json_within_data_is_that_of_the_whole_value() -> None:
    value = record("structured").value
    assert value is not None
    assert rejected(replace(record("structured"), value=value.replace(b'"cell vented"', b"NaN"))).code == (
        "invalid_json"
    )


@pytest.mark.parametrize("form", CLOUD_EVENTS)
def test_invalid_event_comes_before_invalid_patch(form: Form) -> None:
    assert rejected(replace(record(form, {"notes": 5}), key=b"m-2")).code == "invalid_event"


# Position and identity


def requeued(event: Received, requeued_from: str) -> Received:
    return event.having("requeued-from", requeued_from.encode())


@pytest.mark.parametrize("form", ALL)
def test_a_requeued_event_is_stamped_with_its_first_position(form: Form) -> None:
    update = accepted(requeued(record(form), "measurement-updates/1/9@1700000000000"))
    assert update.position == position(1_700_000_000_000, 1, 9)
    assert update.arrival == ARRIVAL


def test_a_requeued_bare_event_keeps_its_first_position_as_its_identity() -> None:
    first = accepted(replace(record("bare"), partition=1, offset=9, timestamp=1_700_000_000_000))
    again = accepted(requeued(record("bare"), "measurement-updates/1/9@1700000000000"))
    assert (again.source, again.id, again.identity) == (first.source, first.id, first.identity)
    assert again.id == "1/9@1700000000000"


@pytest.mark.parametrize(
    "newer", [f"3/42@{ARRIVAL + 1}", f"4/0@{ARRIVAL}", f"3/43@{ARRIVAL}", f"{2**63 - 1}/0@{ARRIVAL}"]
)
def test_a_requeued_position_that_is_newer_than_the_records_own_counts_for_nothing(newer: str) -> None:
    update = accepted(requeued(record("bare"), f"measurement-updates/{newer}"))
    assert update.position == position(ARRIVAL, 3, 42)
    assert update.id == f"3/42@{ARRIVAL}"


def test_positions_are_compared_by_arrival_then_partition_then_offset() -> None:
    for older in (f"9/99@{ARRIVAL - 1}", f"2/99@{ARRIVAL}", f"3/41@{ARRIVAL}"):
        assert accepted(requeued(record("bare"), f"measurement-updates/{older}")).id == older


@pytest.mark.parametrize(
    "stated",
    [
        "",
        "x",
        "measurement-updates/1/9",
        "measurement-updates/1@9",
        "measurement-updates/-1/9@5",
        "measurement-updates/1/-9@5",
        "measurement-updates/1/9@-5",
        "measurement-updates/+1/9@5",
        "measurement-updates/1/9@5 ",
        "measurement-updates/1/9@5\n",
        "measurement-updates/٣/9@5",
        "measurement-updates/1/9@9223372036854775808",
        "measurement-updates/1/9223372036854775808@5",
        "measurement-updates/9223372036854775808/9@5",
        "measurement-updates/1/9@" + "9" * 5000,
        "measurement-updates/1/2/9@5",
        "another-topic/1/9@5",
        "Measurement-updates/1/9@5",
        "/1/9@5",
    ],
)
def test_a_requeued_position_that_is_malformed_or_of_another_topic_is_a_fault(stated: str) -> None:
    assert fault(requeued(record(), stated)) == "requeued-from"


@pytest.mark.parametrize("value", [None, b"measurement-updates/1/9@5\xff"])
def test_a_requeued_position_that_is_null_or_not_utf8_is_a_fault(value: bytes | None) -> None:
    assert fault(record().having("requeued-from", value)) == "requeued-from"


@pytest.mark.parametrize("timestamp_type", [0, 1])
def test_times_are_the_arrival_that_is_given_never_the_records_own(timestamp_type: int) -> None:
    stamped = replace(record("bare"), timestamp=5, timestamp_type=timestamp_type)
    update = decode(stamped, ARRIVAL, DecodeLimits())
    assert isinstance(update, Update)
    assert (update.arrival, update.position) == (ARRIVAL, position(ARRIVAL, 3, 42))
    assert update.id == f"3/42@{ARRIVAL}"


@pytest.mark.parametrize("value", [None, b"\xff"])
def test_the_id_of_a_replay_run_is_text(value: bytes | None) -> None:
    assert fault(record().having("reapply", value)) == "reapply"


@pytest.mark.parametrize("form", ALL)
def test_the_id_of_a_replay_run_joins_the_identity(form: Form) -> None:
    plain = accepted(record(form)).identity
    run_1 = accepted(record(form).having("reapply", b"run-1")).identity
    run_2 = accepted(record(form).having("reapply", b"run-2")).identity
    assert (
        accepted(record(form).having("reapply", b"run-2")).plain_identity == accepted(record(form)).identity
    )
    assert accepted(record(form)).plain_identity is None
    assert len({plain, run_1, run_2}) == 3
    assert run_1 == accepted(record(form).having("reapply", b"run-1")).identity


def test_identity_is_measurement_source_and_id_and_nothing_else() -> None:
    first = accepted(record(id="e", source="s"))
    same = replace(record("structured", {"name": "another"}, id="e", source="s"), offset=77, partition=1)
    assert accepted(same).identity == first.identity
    assert len(first.identity) == 16


def test_identities_do_not_run_into_each_other() -> None:
    identities = set()
    for measurement_id, source, id_ in [
        ("a", "b", "cd"),
        ("a", "bc", "d"),
        ("ab", "c", "d"),
        ("a,1", "b", "cd"),
    ]:
        message = binary_update(measurement_id, {}, id=id_, source=source)
        identities.add(accepted(received(message)).identity)
        identities.add(accepted(received(message).having("reapply", b"d")).identity)
    assert len(identities) == 8
