"""`watch`: the answers as they come."""

import asyncio
import signal
from contextlib import AbstractAsyncContextManager
from typing import Any

import orjson

from tests.commands import begun
from tests.system import System


def watching(
    lab: System, *options: str, **environment: str
) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    return begun(lab, "watch", *options, **environment)


async def watched(lab: System, *options: str) -> tuple[int, list[str], str]:
    """Exit code, lines of standard output, standard error."""
    async with watching(lab, *options) as process:
        out, errors = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode is not None
        return process.returncode, out.decode().splitlines(), errors.decode()


async def three_answers(lab: System) -> None:
    """m-1 twice, and a rejection of m-2."""
    await lab.seed("m-1")
    async with lab.worker():
        await lab.update("m-1", {"notes": "µ"}, id="e-1")
        await lab.update("m-1", {}, id="e-2")
        await lab.update("m-2", {"notes": "x"}, id="e-3")
        await lab.answers(3)


async def test_lines_say_what_became_of_each(lab: System) -> None:
    await three_answers(lab)
    code, lines, _ = await watched(lab, "--from-beginning", "--count", "3")
    assert code == 0
    first, second, rejected = sorted(lines, key=lambda line: ("e-1" not in line, "e-2" not in line))
    assert first.endswith(" m-1 r1 notes  cycler e-1")
    assert second.endswith(" m-1 r1 nothing changed  cycler e-2")
    assert " m-2 measurement_not_found: " in rejected
    assert not any("\x1b" in line for line in lines)


async def test_json_is_the_whole_event(lab: System) -> None:
    await three_answers(lab)
    code, lines, _ = await watched(lab, "--from-beginning", "--count", "3", "--json")
    assert code == 0
    events: list[dict[str, Any]] = [orjson.loads(line) for line in lines]
    updated = next(event for event in events if event["answer"] == "updated")
    assert updated["measurement"]["notes"] == "µ"
    assert len(updated["measurement"]) == 16
    assert updated["changed"] == ["notes"]
    assert updated["causationid"] == "e-1"
    rejected = next(event for event in events if event["answer"] == "rejected")
    assert rejected["code"] == "measurement_not_found"
    assert rejected["key"] == "m-2"
    assert orjson.loads(rejected["value"]) == {"notes": "x"}
    assert {"name": "ce_id", "value": "e-3"} in rejected["headers"]


async def test_only_what_is_asked_for_is_shown(lab: System) -> None:
    await three_answers(lab)
    filters = {
        ("--measurement", "m-2"): 1,
        ("--rejected-only",): 1,
        ("--updated-only",): 2,
        ("--measurement", "m-1", "--rejected-only"): 0,
    }
    found = await asyncio.gather(
        *(watched(lab, "--from-beginning", "--timeout", "3s", *options) for options in filters)
    )
    assert [len(lines) for _, lines, _ in found] == list(filters.values())
    assert {code for code, _, _ in found} == {0}


async def test_without_from_beginning_only_new_answers_are_shown(lab: System) -> None:
    await three_answers(lab)
    async with watching(lab, "--count", "1", "--timeout", "30s") as process:
        with lab.process():
            number = 0
            while process.returncode is None:  # until it has begun to watch
                number += 1
                await lab.update("m-1", {"notes": f"new {number}"}, id=f"new-{number}")
                await asyncio.wait([asyncio.ensure_future(process.wait())], timeout=1)
        out, _ = await process.communicate()
    assert b"cycler new-" in out
    assert len(out.splitlines()) == 1


async def test_a_count_that_is_not_reached_in_time_is_a_failure(lab: System) -> None:
    code, lines, errors = await watched(lab, "--count", "1", "--timeout", "500ms")
    assert code == 1
    assert lines == []
    assert "expected 1 answers within 500ms, found 0" in " ".join(errors.split())


async def test_a_reader_that_has_enough_ends_it_quietly(lab: System) -> None:
    await three_answers(lab)
    async with watching(lab, "--from-beginning", "--json") as process:
        assert process.stdout is not None
        await process.stdout.readline()
        process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]  # as head does
        await asyncio.wait_for(process.wait(), 20)
        assert process.stderr is not None
        assert await process.stderr.read() == b""
        assert process.returncode == 0


async def test_an_interrupt_is_exit_code_130(lab: System) -> None:
    await three_answers(lab)
    async with watching(lab, "--from-beginning") as process:
        assert process.stdout is not None
        await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 130
    assert errors == b""


async def test_control_characters_of_a_producer_do_not_reach_the_terminal(lab: System) -> None:
    await lab.seed("m-1")
    async with lab.worker():
        await lab.update("m-1", {"notes": "x"}, id="e-\x1b[2J", source="bell\x07")
        await lab.answers(1)
    _, [line], _ = await watched(lab, "--from-beginning", "--count", "1")
    assert line.isprintable()
    assert r"\x1b[2J" in line
