"""`topics`: the three topics."""

import asyncio
from dataclasses import asdict
from typing import Annotated

import orjson
import typer

from worker.cli.terminal import err, out
from worker.settings import load_settings
from worker.topics import check_topics, create_topics, differing_partitions


def topics(
    check: Annotated[bool, typer.Option("--check", help="Create nothing, only check.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Create the three topics where they are missing, and check their settings.

    Exits 1 where a topic is there with settings under which the worker refuses to start.
    """
    settings = load_settings()
    states = asyncio.run(check_topics(settings))[1] if check else asyncio.run(create_topics(settings))
    differing_partitions(states, settings)
    if json:
        print(orjson.dumps({"topics": [asdict(state) for state in states]}).decode())
    else:
        for state in states:
            done = "created" if state.created else "is there" if state.partitions else "missing"
            facts = f", {state.partitions} partitions, {state.max_message_bytes} bytes a record"
            out.print(f"{state.name}: {done}{facts if state.partitions else ''}")
            for fault in state.faults:
                err.print(f"[red]error:[/red] {state.name}: {fault}")
            for warning in state.warnings:
                err.print(f"[yellow]warning:[/yellow] {state.name}: {warning}")
    if any(state.faults for state in states):
        raise typer.Exit(1)
