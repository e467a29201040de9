"""`lanes`: what an operator sees and decides. (`skip` and `restart` at work: tests/faults/test_stopped_lanes.py)"""

import asyncio

import orjson

from tests.system import COMMAND, System


async def lanes(lab: System, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        COMMAND, "lanes", *arguments, env={**lab.environment, **environment},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), errors.decode()


async def test_lanes_are_listed_and_decisions_are_kept_with_who_and_why(lab: System) -> None:
    code, out, _ = await lanes(lab, "list")
    assert (code, out) == (0, "no lane yet: no worker has taken a partition over in this database\n")

    await lab.seed("m-1")
    async with lab.worker():
        sent = await lab.publish("m-1", {"notes": "x"}, partition=0)
        await lab.publish("m-1", {"notes": "y"}, partition=0)
        await lab.settled()
    code, out, _ = await lanes(lab, "list", "--json")
    assert code == 0
    first, second = orjson.loads(out)["lanes"]
    assert (first["partition"], first["next_to_apply"], first["next_to_answer"]) == (0, 2, 2)
    assert (second["partition"], second["next_to_apply"]) == (1, 0)

    name = f"{lab.updates}/0"
    code, out, _ = await lanes(lab, "accept", name, "--why", "the broker's clock was wrong", "--by", "anna")
    assert code == 0
    assert "are accepted though the database's clock isn't there yet" in out
    row = await lab.database.fetchrow("SELECT * FROM measurement_updates.lanes WHERE partition = 0")
    assert row["accepted_until"] >= sent.timestamp
    decision = await lab.database.fetchrow("SELECT * FROM measurement_updates.lane_decisions")
    assert (decision["decision"], decision["decided_by"]) == ("accept", "anna")
    assert decision["why"] == "the broker's clock was wrong"


async def test_a_decision_that_does_not_fit_is_refused_with_what_was_expected(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        await lab.publish("m-1", {"notes": "x"}, partition=0)
        await lab.settled()
    for arguments, code, words in (
        (("skip", f"{lab.updates}/0", "--why", "w"), 1, "misses nothing: it is applied up to 1"),
        (("skip", f"{lab.updates}/9", "--why", "w"), 1, "expected one of its partitions, 0 to 1"),
        (("skip", "nonsense", "--why", "w"), 2, "expected TOPIC/PARTITION"),
        (("skip", f"{lab.updates}/0"), 2, "--why"),
    ):
        found, _, errors = await lanes(lab, *arguments)
        assert found == code, errors
        assert words in errors
    assert await lab.database.fetchval("SELECT count(*) FROM measurement_updates.lane_decisions") == 0


async def test_a_server_that_is_away_is_one_message(lab: System) -> None:
    for name, away, words in (
        ("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1", "Kafka can't be reached at 127.0.0.1:1"),
        ("DATABASE_URL", "postgresql://a@127.0.0.1:1/b", "Postgres can't be reached"),
    ):
        code, out, errors = await lanes(lab, "skip", f"{lab.updates}/0", "--why", "w", **{name: away})
        assert (code, out) == (1, "")
        assert errors.startswith("error: ")
        assert words in errors
        assert "Traceback" not in errors
