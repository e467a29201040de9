"""What a worker answers by HTTP where all is well. (Dependencies taken away: tests/faults/test_health.py)"""

import asyncio
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.asking import ANY_PORT, address_of, answers, ask, health
from tests.faults.states import Log, exit_code
from tests.system import System, until


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with Log(tmp_path / "log") as opened:
        yield opened


async def test_ready_once_all_partitions_are_taken_over_with_each_lanes_state(lab: System, log: Log) -> None:
    await lab.seed("m-1")
    with lab.process(log.file, WORKER_HTTP=ANY_PORT) as worker:
        address = await address_of(log)
        assert await health(address, "/health/live") == (200, {"live": True, "reasons": []})
        found = await answers(address, "/health/ready", 200)
        assert (found["ready"], found["phase"], found["reasons"]) == (True, "working", [])
        assert [(lane["topic"], lane["partition"], lane["state"]) for lane in found["lanes"]] == [
            (lab.updates, 0, "running"),
            (lab.updates, 1, "running"),
        ]
        worker.send_signal(signal.SIGTERM)
        assert await exit_code(worker) == 0
    assert log.said("uvicorn") == 0


async def test_the_asyncapi_document_has_this_workers_topics(lab: System, log: Log) -> None:
    with lab.process(log.file, WORKER_HTTP=ANY_PORT):
        address = await address_of(log)
        status, body = await ask(address, "/asyncapi")
        assert status == 200
        document = json.loads(body)
        assert {name: channel["address"] for name, channel in document["channels"].items()} == {
            "updates": lab.updates,
            "updated": lab.settings.worker_updated_topic,
            "rejected": lab.settings.worker_rejected_topic,
        }
        assert "default names" not in document["info"]["description"]
        assert (await ask(address, "/"))[1].decode().split() == [
            "/health/live",
            "/health/ready",
            "/metrics",
            "/asyncapi",
        ]
        assert (await ask(address, "/else"))[0] == 404


async def test_a_port_that_is_in_use_ends_the_worker_with_what_to_do(lab: System, log: Log) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with lab.process(log.file, WORKER_HTTP=f"127.0.0.1:{port}") as worker:
            assert await exit_code(worker) == 1
    [event] = log.events()
    assert (event["event"], event["level"]) == ("worker fails", "error")
    assert f"found 127.0.0.1:{port}: Address already in use. Choose another port" in event["why"]


async def test_without_the_setting_nothing_is_served(lab: System, log: Log) -> None:
    with lab.process(log.file) as worker:
        await log.says("lane running")
        assert not listening_ports(worker.pid)


def listening_ports(pid: int) -> list[str]:
    """Of one process, as Linux has it."""
    inodes = {
        link.readlink().name.removeprefix("socket:[").removesuffix("]")
        for link in Path(f"/proc/{pid}/fd").iterdir()
        if "socket:" in str(link.readlink())
    }
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[1] for row in rows if row[3] == "0A" and row[9] in inodes]


async def test_a_spare_worker_is_ready_to_take_over(lab: System, tmp_path: Path) -> None:
    """Three workers for two partitions."""
    with Log(tmp_path / "1") as one, Log(tmp_path / "2") as two, Log(tmp_path / "3") as three:
        logs = (one, two, three)
        with (
            lab.process(one.file, WORKER_HTTP=ANY_PORT),
            lab.process(two.file, WORKER_HTTP=ANY_PORT),
            lab.process(three.file, WORKER_HTTP=ANY_PORT),
        ):
            addresses = [await address_of(log) for log in logs]
            counts: list[int] = []

            async def shared() -> bool:
                found = [await health(address, "/health/ready") for address in addresses]
                counts[:] = sorted(len(body["lanes"]) for _, body in found)
                return counts == [0, 1, 1] and all(status == 200 for status, _ in found)

            await until(shared, lambda: f"two have a lane, one has none, all are ready: {counts}", 60)


async def test_it_is_served_to_the_end_and_who_keeps_a_connection_does_not_hold_it_up(
    lab: System, log: Log
) -> None:
    await lab.seed("m-1")
    with lab.process(log.file, WORKER_HTTP=ANY_PORT) as worker:
        address = await address_of(log)
        await answers(address, "/health/ready", 200)
        host, _, port = address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            worker.send_signal(signal.SIGTERM)
            assert await exit_code(worker) == 0
        finally:
            writer.close()
    events = [event["event"] for event in log.events()]
    assert events[0] == "worker serves HTTP"
    assert events[-1] == "worker stopped"
