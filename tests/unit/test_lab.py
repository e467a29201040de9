"""The demo lab: the same seed makes the same lab, and what it holds is what real labs have."""

from collections import Counter
from typing import get_args

import orjson
import pytest
from aiokafka import ConsumerRecord
from aurora_unicycler import CyclingProtocol

from contracts.envelope import read_update
from contracts.events import RejectionCode
from contracts.json_values import NotJson, read_json
from contracts.patch import CellMeasurementPatch
from worker.decode import decode
from worker.lab import protocols
from worker.lab.exports import INTEGRATIONS
from worker.lab.measurements import ORGANIZATIONS, measurements
from worker.lab.updates import FEWEST, LabUpdate, burst, lab_updates
from worker.record import DecodeLimits, Rejection

UPDATES = lab_updates(400)


def bodies(updates: list[LabUpdate]) -> list[dict[str, object]]:
    """The PATCH bodies of those that are to be applied."""
    found = []
    for update in updates:
        if update.outcome == "applied":
            value = read_json(update.message.value)
            found.append(value["data"] if "specversion" in value else value)
    return found


def test_the_same_seed_makes_the_same_bytes() -> None:
    assert lab_updates(400) == UPDATES
    assert measurements() == measurements()
    assert burst(50) == burst(50)


def test_another_seed_makes_another_day_of_the_same_lab() -> None:
    assert lab_updates(400, seed=2) != UPDATES
    assert [row.id for row in measurements(2)] == [row.id for row in measurements(1)]


def test_another_run_is_the_same_day_with_other_event_ids() -> None:
    other = lab_updates(400, run="second")
    assert [update.about for update in other] == [update.about for update in UPDATES]
    ids = {update.identity for update in UPDATES if update.identity}
    assert not ids & {update.identity for update in other if update.identity}


@pytest.mark.parametrize("count", [FEWEST, 61, 199, 400, 1_000])
def test_any_count_of_updates_has_every_kind_in_it(count: int) -> None:
    updates = lab_updates(count)
    assert [update.number for update in updates] == list(range(count))
    outcomes = Counter(update.outcome for update in updates)
    not_shown = {
        "measurement_unreadable",
        "answer_too_large",
        "storage_refused",
    }  # nothing that a cycler would do
    assert outcomes.keys() == {"applied", "duplicate", *get_args(RejectionCode)} - not_shown
    assert outcomes["applied"] > count // 2
    assert {update.integration for update in updates} == {one.name for one in INTEGRATIONS}
    assert any(update.repairs is not None for update in updates)


def test_fewer_updates_than_there_are_kinds_are_made_enough() -> None:
    assert len(lab_updates(1)) == FEWEST


def test_all_three_forms_are_used() -> None:
    forms: Counter[str] = Counter()
    for update in UPDATES:
        if update.outcome == "applied":
            message = update.message
            forms[read_update(message.key, dict(message.headers), message.value).form] += 1
    assert min(forms[form] for form in ("binary", "structured", "bare")) > 20


def test_a_rejection_for_its_form_is_one_to_the_worker_too() -> None:
    """What depends on the database is for the demo itself to find out."""
    by_form = {"empty_event", "too_large", "invalid_event", "invalid_json", "invalid_patch"}
    limits = DecodeLimits(max_event_bytes=1024**2)
    for update in UPDATES:
        message = update.message
        record = ConsumerRecord(
            "measurement-updates", 0, update.number, 0, 1, message.key, message.value, None, 0, 0,
            tuple(message.headers),
        )  # fmt: skip
        decoded = decode(record, 1_750_000_000_000, limits)
        code = decoded.code if isinstance(decoded, Rejection) else None
        assert code == (update.outcome if update.outcome in by_form else None), update.about


def test_what_is_to_be_applied_keeps_to_the_patch_schema() -> None:
    for body in bodies(UPDATES):
        CellMeasurementPatch.model_validate(body)


def test_a_duplicate_is_an_earlier_event_again() -> None:
    seen = set()
    for update in UPDATES:
        if update.outcome == "duplicate":
            assert update.identity in seen, update.about
        elif update.outcome == "applied":
            seen.add(update.identity)


def test_a_late_event_is_overtaken_in_part_and_another_one_wholly() -> None:
    partly, wholly = (update for update in UPDATES if update.repairs is not None)
    assert partly.changed == ("test_setup",)
    assert wholly.changed == ()
    for update in (partly, wholly):
        assert update.repairs is not None
        rejected = UPDATES[update.repairs]
        assert rejected.outcome == "invalid_patch"
        assert rejected.identity == update.identity
        assert rejected.message.key == update.message.key


def test_protocol_definitions_are_ones_that_unicycler_reads_and_texts_of_every_make() -> None:
    definitions = [
        body["protocol"]["definition"]  # type: ignore[index]  # a PATCH body of ours
        for body in bodies(UPDATES)
        if "protocol" in body
    ]
    objects = [one for one in definitions if isinstance(one, dict)]
    texts = [one for one in definitions if isinstance(one, str)]
    assert objects
    for definition in objects:
        protocols.as_ucp(CyclingProtocol.from_dict(definition))
    assert {text[:12] for text in texts} >= {"EC-LAB SETTI", "<?xml versio"}
    assert any(text.startswith(("Charge", "Rest")) for text in texts)
    assert max(map(len, texts)) > 30_000


def test_an_object_and_its_texts_have_the_same_steps() -> None:
    protocol = protocols.titration("C-1", 3.4, 20)
    steps = protocols.as_ucp(protocol)["method"]
    assert len(steps) == 80
    assert len(protocols.as_steps(protocol).splitlines()) == 80
    assert protocols.as_bts(protocol).count("Step_ID") == 81  # BTS has a last one: End
    assert protocols.as_eclab(protocol).count("\r\n") > 50


def test_payloads_look_as_exports_do() -> None:
    text = b"".join(update.message.value for update in UPDATES if update.outcome == "applied").decode()
    for sign in ("µA", "°C", "mΩ", "\\r\\n"):
        assert sign in text
    assert sum(len(update.message.value) > 10_000 for update in UPDATES) > 10


def test_a_text_of_the_cycler_is_the_same_each_time() -> None:
    protocol = protocols.ageing("C-1", 4.8)
    assert protocols.as_bts(protocol) == protocols.as_bts(protocol)


def test_the_lab_has_measurements_of_all_types_in_every_organization() -> None:
    rows = measurements()
    assert len({row.id for row in rows}) == len(rows)
    kinds = Counter((row.organization_id, row.measurement_type) for row in rows)
    assert len(kinds) == 3 * len(ORGANIZATIONS)
    assert all(row.properties is not None for row in rows if row.measurement_type == "properties")
    for row in rows:
        if row.protocol is not None:
            orjson.dumps(row.protocol)


def test_values_that_are_not_json_are_none_to_a_parser_either() -> None:
    for update in UPDATES:
        if update.outcome == "invalid_json":
            with pytest.raises(NotJson):
                read_json(update.message.value)
