"""`status`: what each partition does, and whether something needs attention."""

import asyncio
import os
import signal
from typing import Any

import orjson
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from tests.commands import Ran, begun, run
from tests.faults.states import administering, exit_code, stops
from tests.system import COMMAND, System, until


async def status(lab: System, *arguments: str, **environment: str) -> Ran:
    return await run(lab, "status", *arguments, **environment)


async def comes_to(lab: System, partition: int, state: str, code: int) -> dict[str, Any]:
    """The whole status, once that partition is in this state."""
    seen: list[Ran] = []

    async def is_there() -> bool:
        seen.append(await status(lab, "--json"))
        return bool(seen[-1].json["partitions"][partition]["state"] == state)

    await until(is_there, lambda: f"partition {partition} is {state}: {seen[-1]}", timeout=60)
    assert seen[-1].code == code, seen[-1].out
    return dict(seen[-1].json)


async def publish(lab: System, partition: int, count: int) -> None:
    for number in range(count):
        await lab.publish(f"m-{partition}", {"notes": f"{number}"}, partition=partition)


async def test_partitions_at_work_are_well(lab: System) -> None:
    await lab.seed("m-0")
    with lab.process() as worker:
        await publish(lab, 0, 5)
        await lab.publish("m-9", {"notes": "x"}, partition=1)
        await lab.settled()
        found = await comes_to(lab, 0, "running", 0)
        shown = await status(lab)
        await stops(worker)
    assert (found["ok"], found["attention"], found["open_rejections"], found["replays"]) == (True, [], 1, [])
    first, second = found["partitions"]
    assert first["owner"].endswith(f":{worker.pid}")
    assert (first["applied"], first["lag"], first["lag_seconds"], first["rate"]) == (5, 0, 0.0, 0.0)
    assert (second["applied"], second["state"], second["waits_for"]) == (1, "running", None)
    assert found["kafka"]["brokers"] == 1
    assert list(found["kafka"]["topics"].values()) == [2, 2, 2]
    assert found["kafka"]["group"] == {"state": "Stable", "members": 1}
    assert found["database"]["schema_is_current"] is True
    assert found["database"]["latency_ms"] >= 0
    assert shown.code == 0
    for words in ("all is well", "open rejections: 1", "running replays: none", "0 running"):
        assert words in shown.words
    assert max(len(line) for line in shown.out.splitlines()) <= 80
    assert "\x1b" not in shown.out


async def test_partitions_without_a_worker_are_said_and_need_one_once_records_wait(lab: System) -> None:
    idle = await status(lab, "--json")
    assert [partition["state"] for partition in idle.json["partitions"]] == ["unowned", "unowned"]
    assert idle.code == 0
    await publish(lab, 1, 3)
    waiting = await status(lab, "--json")
    assert waiting.code == 1
    assert waiting.json["attention"] == [
        "partition 1 has no worker, and 3 records wait: start one (measurement-updates run)"
    ]
    assert waiting.json["partitions"][1]["lag"] == 3
    assert waiting.json["partitions"][1]["lag_seconds"] > 0
    shown = await status(lab)
    assert (shown.code, "unowned" in shown.out, "needs attention:" in shown.out) == (1, True, True)


async def test_a_worker_that_was_killed_leaves_nobody_behind(lab: System) -> None:
    await lab.seed("m-0")
    with lab.process(WORKER_SESSION_TIMEOUT_MS="1500") as worker:
        await publish(lab, 0, 2)
        await lab.settled()
        await comes_to(lab, 0, "running", 0)
        worker.send_signal(signal.SIGKILL)
        await exit_code(worker)
        await publish(lab, 0, 4)
        said = await lab.database.fetchval(
            "SELECT state FROM measurement_updates.lanes WHERE partition = 0 AND topic = $1", lab.updates
        )
        assert said == "running", "that is what it left behind"
        found = await comes_to(lab, 0, "unowned", 1)
    assert found["partitions"][0]["owner"] is None
    assert found["partitions"][0]["lag"] == 4
    assert found["partitions"][0]["applied"] == 2


async def test_a_worker_that_has_ended_says_so(lab: System) -> None:
    await lab.seed("m-0")
    with lab.process() as worker:
        await publish(lab, 0, 1)
        await lab.settled()
        await comes_to(lab, 0, "running", 0)
        await stops(worker)
    states = await lab.database.fetch("SELECT state FROM measurement_updates.lanes")
    assert [row["state"] for row in states] == ["given_up", "given_up"]
    await comes_to(lab, 0, "unowned", 0)


async def test_a_lane_that_has_stopped_says_why_until_somebody_decides(lab: System) -> None:
    await lab.seed("m-0")
    await publish(lab, 0, 2)
    with lab.process() as worker:
        await lab.settled()
        await stops(worker)
    await publish(lab, 0, 6)
    async with administering(lab) as admin:
        await admin.delete_records({TopicPartition(lab.updates, 0): RecordsToDelete(5)})
    with lab.process() as worker:
        found = await comes_to(lab, 0, "stopped", 1)
        shown = await status(lab)
        decided = await run(lab, "lanes", "skip", f"{lab.updates}/0", "--why", "test")
        assert decided.code == 0
        after = await comes_to(lab, 0, "running", 0)
        await stops(worker)
    why = "retention has taken the records 2 to 4"
    assert why in found["partitions"][0]["waits_for"]
    assert found["partitions"][0]["owner"].endswith(f":{worker.pid}")
    assert found["partitions"][0]["since"] == found["partitions"][0]["last_error_at"]
    [attention] = found["attention"]
    assert attention.startswith("partition 0 has stopped: ")
    assert why in attention
    assert f"measurement-updates lanes skip {lab.updates}/0 --why" in shown.words
    assert after["partitions"][0]["waits_for"] is None
    assert why in after["partitions"][0]["last_error"]
    assert after["partitions"][0]["applied"] == 8


async def test_what_a_lane_waits_for_is_said_and_needs_attention_after_a_minute(lab: System) -> None:
    await publish(lab, 0, 1)
    with lab.process() as worker:  # and cell_measurements is empty
        found = await comes_to(lab, 0, "waiting", 0)
        assert "cell_measurements is empty" in found["partitions"][0]["waits_for"]

        async def it_is_late() -> bool:
            await lab.database.execute(
                "UPDATE measurement_updates.lanes SET state_since = state_since - interval '2 minutes' WHERE partition = 0"
            )
            late = await status(lab, "--json")
            return late.code == 1 and "partition 0 has waited for" in late.json["attention"][0]

        await until(it_is_late, "it needs attention", timeout=60)
        await lab.seed("m-0")
        await lab.settled()
        await comes_to(lab, 0, "running", 0)
        await stops(worker)


async def test_a_server_that_is_away_is_said_and_the_other_one_looked_at(lab: System) -> None:
    for name, away, reachable in (
        ("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1", ("kafka", "database")),
        ("DATABASE_URL", "postgresql://a@127.0.0.1:1/b", ("database", "kafka")),
    ):
        ran = await status(lab, "--json", **{name: away})
        assert ran.code == 1
        assert ran.json[reachable[0]]["reachable"] is False
        assert ran.json[reachable[1]]["reachable"] is True
        shown = await status(lab, **{name: away})
        assert (shown.code, shown.errors) == (1, "")
        assert "is away" in shown.out


async def test_what_is_missing_or_another_ones_is_said(lab: System) -> None:
    ran = await status(lab, "--json", WORKER_REJECTED_TOPIC=f"{lab.updates}-nowhere")
    assert ran.code == 1
    assert ran.json["attention"] == [
        f"topic {lab.updates}-nowhere doesn't exist: create it with `measurement-updates topics`"
    ]
    await lab.seed("m-0")
    async with lab.worker():
        await publish(lab, 0, 1)
        await lab.settled()
    ran = await status(lab, "--json", WORKER_GROUP="another")
    assert ran.code == 1
    assert f"in group {lab.settings.worker_group}: expected" in ran.json["attention"][0]
    await lab.database.execute("UPDATE measurement_updates.migrations SET version = -version")
    ran = await status(lab, "--json")
    assert "run `measurement-updates migrate`" in ran.json["attention"][0]
    assert [partition["state"] for partition in ran.json["partitions"]] == ["unowned", "unowned"]


async def test_it_is_watched_until_an_interrupt(lab: System) -> None:
    async with begun(lab, "status", "--watch", "--every", "200ms", "--json") as process:
        assert process.stdout is not None
        seen = [orjson.loads(await asyncio.wait_for(process.stdout.readline(), 60)) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        _, errors = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 130
    assert errors == b""
    assert [len(status["partitions"]) for status in seen] == [2, 2, 2]
    wrong = await status(lab, "--watch", "--every", "often")
    assert (wrong.code, "expected seconds" in wrong.errors) == (2, True)


async def test_on_a_terminal_it_is_shown_again_and_again(lab: System) -> None:
    terminal, other = os.openpty()
    shown = bytearray()
    process = await asyncio.create_subprocess_exec(
        COMMAND, "status", "--watch", "--every", "200ms",
        env={**lab.environment, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
        stdin=other, stdout=other, stderr=other,
    )  # fmt: skip
    loop = asyncio.get_running_loop()
    loop.add_reader(terminal, lambda: shown.extend(os.read(terminal, 65_536)))
    try:

        async def is_refreshed() -> bool:
            return shown.count(b"nothing needs attention") >= 2

        await until(is_refreshed, lambda: f"two screens are shown: {bytes(shown)!r}", timeout=60)
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 30) == 130
    finally:
        loop.remove_reader(terminal)
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(other)
        os.close(terminal)
    assert b"Traceback" not in shown
    assert b"\x1b[?1049h" in shown, "on a screen of its own, so that what was there comes back"
    assert f"{lab.settings.worker_rejected_topic} (2)".encode() in shown.replace(b"\r\n", b" "), (
        "long lines go on"
    )
