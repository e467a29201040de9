"""Identities: duplicates, reused ids, organizations, expected revisions, replay runs."""

import asyncio
from datetime import timedelta

import orjson

from tests.system import Header, System, until

CYCLER: tuple[Header, ...] = (
    ("ce_specversion", b"1.0"),
    ("ce_id", b"e-1"),
    ("ce_source", b"cycler"),
    ("ce_type", b"cell_measurement.update.v1"),
)


async def test_the_same_event_at_another_position_is_a_duplicate_however_it_is_written(lab: System) -> None:
    await lab.seed("m-1")
    patch = {"notes": "µ", "protocol": {"a": 3, "b": [1, 2]}}
    async with lab.worker():
        [first] = await lab.answers_to(await lab.update("m-1", patch, id="e-1"))
        again = [
            await lab.update("m-1", patch, id="e-1"),
            await lab.structured("m-1", patch, id="e-1", time="2026-01-01T00:00:00Z"),
            await lab.structured("m-1", patch, id="e-1", subject="m-1", datacontenttype="application/json"),
            await lab.structured(None, patch, id="e-1", subject="m-1", partition=0),
            await lab.structured(None, patch, id="e-1", subject="m-1", partition=1),
            await lab.publish("m-1", patch, CYCLER, partition=1 - first.partition),
            *[
                await lab.update("m-1", value, id="e-1", traceparent="00-other")
                for value in (
                    b'{"protocol":{"b":[1,2],"a":3},"notes":"\\u00b5"}',
                    ' {"notes" : "µ",\n"protocol":{"a":3.0,"b":[1.0,2e0]}} '.encode(),
                    '{"notes":"hidden","notes":"µ","protocol":{"a":3,"b":[1,2]}}'.encode(),
                )
            ],
        ]
        assert await lab.verdicts(*again) == ["duplicate"] * len(again)
        assert len(await lab.answers()) == 1
    row = await lab.row("m-1")
    assert (row["notes"], row["revision"]) == ("µ", 1)


async def test_duplicates_within_one_batch_are_recognised_as_those_of_another_are(lab: System) -> None:
    await lab.seed("m-1")
    records = [await lab.update("m-1", {"notes": "a"}, id="e-1") for _ in range(3)]
    records.append(await lab.update("m-1", {"notes": "b"}, id="e-1"))
    async with lab.worker():
        records += [await lab.update("m-1", {"notes": notes}, id="e-1") for notes in ("a", "b")]
        verdicts = await lab.verdicts(*records)
    assert verdicts == [
        "1 notes",
        "duplicate",
        "duplicate",
        "event_id_reused",
        "duplicate",
        "event_id_reused",
    ]


async def test_a_duplicate_of_an_event_that_changed_nothing_is_a_duplicate(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        records = [await lab.update("m-1", {}, id="e-1") for _ in range(2)]
        records += [await lab.update("m-1", {"name": None}, id="e-1")]
        assert await lab.verdicts(*records) == ["0", "duplicate", "event_id_reused"]


async def test_the_same_identity_with_another_content_is_rejected(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        first = await lab.update("m-1", {"protocol": {"a": 1}}, id="e-1", ce_expectedrevision="0")
        assert await lab.verdicts(first) == ["1 protocol"]
        records = [
            await lab.update("m-1", {"protocol": {"a": 1}}, id="e-1"),
            await lab.update("m-1", {"protocol": {"a": 1}}, id="e-1", ce_expectedrevision="1"),
            await lab.update("m-1", {"protocol": {"a": True}}, id="e-1", ce_expectedrevision="0"),
            await lab.update("m-1", {"protocol": {"a": "1"}}, id="e-1", ce_expectedrevision="0"),
            await lab.update("m-1", {"protocol": {"a": 1}, "notes": None}, id="e-1", ce_expectedrevision="0"),
            await lab.structured("m-1", {"protocol": {"a": 2}}, id="e-1", expectedrevision=0),
        ]
        assert await lab.verdicts(*records) == ["event_id_reused"] * len(records)
        same = await lab.structured("m-1", {"protocol": {"a": 1}}, id="e-1", expectedrevision="0")
        same_as_integer = await lab.structured("m-1", {"protocol": {"a": 1}}, id="e-1", expectedrevision=0)
        assert await lab.verdicts(same, same_as_integer) == ["duplicate"] * 2
        [rejected] = await lab.answers_to(records[0])
    assert rejected.detail["violations"][0]["path"] == "ce_id"
    assert rejected.detail["violations"][0]["found"] == "e-1"


async def test_another_measurement_source_or_id_is_another_event(lab: System) -> None:
    await lab.seed("m-1")
    await lab.seed("m-2")
    async with lab.worker():
        records = [
            await lab.update("m-1", {"notes": "a"}, id="e-1"),
            await lab.update("m-2", {"notes": "a"}, id="e-1"),
            await lab.update("m-1", {"notes": "b"}, id="e-1", source="other"),
            await lab.update("m-1", {"notes": "c"}, id="E-1"),
            # lengths count: not the same text run together
            await lab.update("m-1", {"notes": "d"}, id="1", source="cyclere-"),
            # a bare event is known by its position: sent twice it is two events
            await lab.publish("m-1", {"notes": "e"}),
            await lab.publish("m-1", {"notes": "e"}),
        ]
        verdicts = await lab.verdicts(*records)
    assert verdicts == ["1 notes", "1 notes", "2 notes", "3 notes", "4 notes", "5 notes", "5"]


async def test_identities_longer_than_an_index_takes_are_told_apart(lab: System) -> None:
    await lab.seed("m-1")
    long = "µ" * 10_000
    async with lab.worker():
        records = [
            await lab.update("m-1", {"notes": "a"}, id=long, source=long),
            await lab.update("m-1", {"notes": "a"}, id=long, source=long),
            await lab.update("m-1", {"notes": "b"}, id=long + "b", source=long),
        ]
        assert await lab.verdicts(*records) == ["1 notes", "duplicate", "2 notes"]
        [answer] = await lab.answers_to(records[0])
    assert answer.text("ce_causationid") == answer.text("ce_causationsource") == long


async def test_a_rejected_event_is_not_remembered_and_is_judged_anew(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        records = [
            await lab.update("m-2", {"notes": "a"}, id="e-1"),
            await lab.update("m-1", {"properties": {}}, id="e-2"),
            await lab.update("m-1", {"notes": 1}, id="e-3"),
            await lab.update("m-1", {"notes": "c"}, id="e-4", ce_expectedrevision="1"),
        ]
        assert await lab.verdicts(*records) == [
            "measurement_not_found",
            "properties_not_allowed",
            "invalid_patch",
            "revision_conflict",
        ]
        await lab.seed("m-2")
        await lab.database.execute("UPDATE cell_measurements SET measurement_type = 'properties'")
        again = [
            await lab.update("m-2", {"notes": "a"}, id="e-1"),
            await lab.update("m-1", {"properties": {}}, id="e-2"),
            await lab.update("m-1", {"notes": "b"}, id="e-3"),
            await lab.update("m-1", {"notes": "c"}, id="e-4", ce_expectedrevision="2"),
        ]
        assert await lab.verdicts(*again) == ["1 notes", "1 properties", "2 notes", "3 notes"]


async def test_a_rejected_event_is_not_remembered_within_its_batch_either(lab: System) -> None:
    await lab.seed("m-1")
    records = [
        await lab.update("m-1", {"notes": "a"}, id="e-1", ce_expectedrevision="1"),
        await lab.update("m-1", {"notes": "b"}, id="e-2"),
        await lab.update("m-1", {"notes": "a"}, id="e-1", ce_expectedrevision="1"),
        await lab.update("m-1", {"properties": {}}, id="e-3"),
        await lab.update("m-1", {"notes": "c"}, id="e-3"),
    ]
    async with lab.worker():
        verdicts = await lab.verdicts(*records)
    assert verdicts == ["revision_conflict", "1 notes", "2 notes", "properties_not_allowed", "3 notes"]


async def test_an_identity_counts_for_its_retention_and_no_longer(lab: System) -> None:
    await lab.seed("m-1")
    retention = timedelta(milliseconds=1_500)

    async def until_after(arrival: int) -> None:
        async def is_past() -> bool:  # a record's stamp is the broker's clock
            return int((await lab.publish("clock", b"tick")).timestamp) >= arrival

        await until(is_past, "the broker's clock is past the retention")

    async with lab.worker(worker_identity_retention=retention):
        first = await lab.update("m-1", {"notes": "a"}, id="e-1")
        within = await lab.update("m-1", {"notes": "a"}, id="e-1")
        assert within.timestamp - first.timestamp < 1_500
        assert await lab.verdicts(first, within) == ["1 notes", "duplicate"]
        await until_after(first.timestamp + 1_500)
        # counted from the one that was applied: a duplicate renews nothing
        other = await lab.update("m-1", {"notes": "b"}, id="e-1")
        again = await lab.update("m-1", {"notes": "b"}, id="e-1")
        reused = await lab.update("m-1", {"notes": "a"}, id="e-1")
        assert await lab.verdicts(other, again, reused) == ["2 notes", "duplicate", "event_id_reused"]


async def test_an_event_that_names_an_organization_reaches_its_measurements_only(lab: System) -> None:
    await lab.seed("ours", organization_id="org-1")
    await lab.seed("theirs", organization_id="org-2")
    await lab.seed("nobody's")
    async with lab.worker():
        for id in ("ours", "theirs", "nobody's"):
            await lab.update(id, {"notes": "a"}, id="e-1")
        records = [
            await lab.update("ours", {"notes": "b"}, id="e-2", ce_organizationid="org-1"),
            await lab.update("theirs", {"notes": "b"}, id="e-2", ce_organizationid="org-1"),
            await lab.update("nobody's", {"notes": "b"}, id="e-2", ce_organizationid="org-1"),
            await lab.update("missing", {"notes": "b"}, id="e-2", ce_organizationid="org-1"),
            await lab.update("ours", {"notes": "b"}, id="e-3", ce_organizationid="ORG-1"),
            await lab.structured("theirs", {"notes": "b"}, id="e-2", organizationid="org-1"),
            await lab.structured("ours", {"notes": "c"}, id="e-4", organizationid="org-1"),
            # no organization: not checked
            await lab.update("theirs", {"notes": "d"}, id="e-5"),
            await lab.structured("ours", {"notes": "d"}, id="e-5", organizationid=None),
        ]
        assert await lab.verdicts(*records) == [
            "2 notes",
            *["measurement_not_found"] * 5,
            "3 notes",
            "2 notes",
            "4 notes",
        ]
        theirs, _, missing = await lab.answers_to(*records[1:4])
        assert orjson.dumps(theirs.detail).replace(b"theirs", b"") == orjson.dumps(missing.detail).replace(
            b"missing", b""
        ), "the two can't be told apart"


async def test_nothing_of_another_organizations_identities_shows(lab: System) -> None:
    await lab.seed("theirs", organization_id="org-2")
    async with lab.worker():
        records = [
            await lab.update("theirs", {"notes": "a"}, id="e-1", ce_organizationid="org-2"),
            await lab.update("theirs", {"notes": "a"}, id="e-1", ce_organizationid="org-1"),
            await lab.update("theirs", {"notes": "b"}, id="e-1", ce_organizationid="org-1"),
            await lab.update("theirs", {"notes": "a"}, id="e-1", ce_organizationid="org-2"),
        ]
        verdicts = await lab.verdicts(*records)
    assert verdicts == ["1 notes", "measurement_not_found", "measurement_not_found", "duplicate"]


async def test_an_expected_revision_must_be_the_current_one(lab: System) -> None:
    await lab.seed("m-1")
    await lab.seed("m-2", revision=2**63 - 2)
    async with lab.worker():
        records = [
            await lab.update("m-1", {"notes": "a"}, id="e-1", ce_expectedrevision="0"),
            await lab.update("m-1", {"notes": "b"}, id="e-2", ce_expectedrevision="0"),
            await lab.update("m-1", {}, id="e-3", ce_expectedrevision="2"),
            await lab.update("m-1", {}, id="e-4", ce_expectedrevision="1"),
            await lab.update("m-1", {"notes": "c"}, id="e-5", ce_expectedrevision="0001"),
            await lab.structured("m-1", {"notes": "d"}, id="e-6", expectedrevision=2),
            await lab.structured("m-1", {"notes": "e"}, id="e-7", expectedrevision="3"),
            await lab.update("m-2", {"notes": "a"}, id="e-1", ce_expectedrevision=str(2**63 - 2)),
            await lab.update("m-2", {}, id="e-2", ce_expectedrevision=str(2**63 - 1)),
        ]
        assert await lab.verdicts(*records) == [
            "1 notes",
            "revision_conflict",
            "revision_conflict",
            "1",
            "2 notes",
            "3 notes",
            "4 notes",
            f"{2**63 - 1} notes",
            f"{2**63 - 1}",
        ]
        [conflict] = await lab.answers_to(records[1])
    assert conflict.detail["violations"] == [{"path": "ce_expectedrevision", "expected": "1", "found": 0}]


async def test_a_replay_run_judges_an_event_anew_once(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        records = [
            await lab.update("m-1", {"notes": "a"}, id="e-1"),
            await lab.update("m-1", {"notes": "b"}, id="e-2"),
            await lab.update("m-1", {"notes": "a"}, id="e-1"),
            await lab.update("m-1", {"notes": "a"}, id="e-1", reapply="run-1"),
            await lab.update("m-1", {"notes": "a"}, id="e-1", reapply="run-1"),
            await lab.update("m-1", {"notes": "c"}, id="e-1", reapply="run-1"),
            await lab.update("m-1", {"notes": "a"}, id="e-1", reapply="run-2"),
            await lab.update("m-1", {"notes": "a"}, id="e-1"),
            await lab.update("m-1", {"notes": "d"}, id="e-1"),
        ]
        verdicts = await lab.verdicts(*records)
    assert verdicts == [
        "1 notes",
        "2 notes",
        "duplicate",
        "3 notes",
        "duplicate",
        "event_id_reused",
        "duplicate",
        "duplicate",
        "event_id_reused",
    ]


async def test_the_same_event_through_two_partitions_at_once_is_applied_once(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker(worker_batch_records=5):
        sent = [
            await lab.producer.send(
                lab.updates,
                key=b"m-1",
                value=b'{"notes":"%d"}' % number,
                headers=[*CYCLER, ("ce_id", b"%d" % number)],
                partition=partition,
            )
            for number in range(60)
            for partition in (0, 1)
        ]
        records = await asyncio.gather(*sent)
        verdicts = await lab.verdicts(*records)
    pairs = list(zip(verdicts[::2], verdicts[1::2], strict=True))
    assert all(pair.count("duplicate") == 1 for pair in pairs), pairs
