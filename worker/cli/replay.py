"""`replay`: records of the input are published again, and the ordinary path judges them."""

import asyncio
import getpass
import logging
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, cast

import orjson
import typer

from worker.cli.replay_screen import show_forecast, show_run, show_runs
from worker.cli.steps import steps, warn
from worker.cli.terminal import err, fail, out
from worker.database import close, connect
from worker.errors import Superseded, with_what_to_do
from worker.replay import replay as replaying
from worker.replay import runs
from worker.replay.dry_run import dry_run as foresee
from worker.replay.forecast import Forecast
from worker.replay.ground import Ground, Says, expect_schema, look_around
from worker.replay.runs import Run
from worker.replay.selection import Selection
from worker.retry import as_worker_error
from worker.settings import Settings, load_settings

app = typer.Typer(name="replay", invoke_without_command=True, add_completion=False)


class Only(StrEnum):
    all = "all"
    rejected = "rejected"


Id = Annotated[str, typer.Argument(metavar="ID", help="The replay's id.")]
Why = Annotated[
    str | None, typer.Option("--why", help="The reason, kept with your name.", show_default=False)
]
By = Annotated[
    str | None, typer.Option("--by", help="Who does it (default: the present user).", show_default=False)
]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Until the workers have decided it all.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


@app.callback()
def replay(
    context: typer.Context,
    begin: Annotated[
        str | None, typer.Option("--from", metavar="TIME|OFFSET", help="Where it begins.", show_default=False)
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            "--until", metavar="TIME|OFFSET", help="Before which it ends (default: now).", show_default=False
        ),
    ] = None,
    partition: Annotated[
        int | None, typer.Option("--partition", metavar="N", min=0, help="Only this one.", show_default=False)
    ] = None,
    measurement: Annotated[
        str | None, typer.Option("--measurement", metavar="ID", help="Only this one's.", show_default=False)
    ] = None,
    organization: Annotated[
        str | None,
        typer.Option("--organization", metavar="ID", help="Only what names it.", show_default=False),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--source", metavar="S", help="Only this CloudEvents source's.", show_default=False),
    ] = None,
    only: Annotated[Only, typer.Option("--only", help="rejected: whose rejection is still open.")] = Only.all,
    reapply: Annotated[
        bool, typer.Option("--reapply", help="Apply again what was applied: after a defect in a worker.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Publish nothing, say what would happen.")
    ] = False,
    examples: Annotated[int, typer.Option("--examples", min=0, help="So many of each, of --dry-run.")] = 5,
    why: Why = None,
    by: By = None,
    wait: Wait = True,
    json: Json = False,
) -> None:
    """Publish records of the input again, for the workers to judge.

    The records of a range are published again at the log's end, each with
    its first position (requeued-from), while the workers run: what was
    applied is a duplicate, what was rejected is judged anew, and a late one
    leaves alone what something newer has written. With --reapply what was
    applied is applied again, and answered where that changes something.

    Exactly once: killed and gone on with (replay resume ID), each record of
    the range is published once.

    TIME: 2026-01-31T12:00Z, how long ago (90m, 3d), now, earliest.
    OFFSET: a number, with --partition.

    Exit code 1: records that couldn't be published again.

    [bold]Examples[/bold]

      measurement-updates replay --from 3d --only rejected --dry-run
      measurement-updates replay --from 3d --only rejected --why "mended #17"
      measurement-updates replay --from 2026-01-31T12:00Z --until 90m \\
          --reapply --why "protocol was dropped by 0.1.0"
      measurement-updates replay status
    """
    if context.invoked_subcommand is not None:
        return
    if begin is None:
        fail("--from: expected a time or an offset: 3d, 2026-01-31T12:00Z, earliest; found nothing", 2)
    settings = load_settings(with_servers=True)
    selection = Selection(begin, until, partition, measurement, organization, source, cast(Any, only.value))
    if dry_run:
        _foresee(settings, selection, reapply, examples, json)
        return
    if not why:
        fail("--why: expected the reason, it is kept with your name; found nothing", 2)

    async def act(ground: Ground, says: Says, held: _Held) -> Run:
        run = await replaying.begin(ground, selection, reapply, by or getpass.getuser(), why)
        held.id = run.id
        err.print(f"replay {run.id} begins{_how_to_go_on(held, 'if it is interrupted')}", markup=False)
        return await _go_on(ground, run.id, wait, says)

    _carry_out(settings, act, json)


@app.command()
def resume(id: Id, wait: Wait = True, json: Json = False) -> None:
    """Go on with a replay, from where it is. Another process that is at it is stopped."""

    async def act(ground: Ground, says: Says, held: "_Held") -> Run:
        await runs.find(ground.connection, id)
        held.id = id
        return await _go_on(ground, id, wait, says)

    _carry_out(load_settings(with_servers=True), act, json)


@app.command()
def cancel(id: Id, by: By = None, json: Json = False) -> None:
    """Give a replay up: nothing more is published. What was published stays, and is judged."""

    async def act(ground: Ground, says: Says, held: "_Held") -> Run:
        return await replaying.cancel(ground, id, by or getpass.getuser())

    _carry_out(load_settings(with_servers=True), act, json)


@app.command()
def status(
    id: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="One replay; without it the last 20.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Show how far a replay is, and what became of its records; or list the last replays."""
    settings = load_settings()
    found = asyncio.run(_status(settings, id))
    if json:
        shown = [run.as_json() for run in found]
        print(orjson.dumps(shown[0] if id is not None else {"replays": shown}).decode())
    elif id is not None:
        show_run(found[0])
    elif found:
        show_runs(found)
    else:
        out.print(f"no replay of {settings.worker_updates_topic} yet")


@dataclass(slots=True)
class _Held:
    """The replay that an interrupted command has begun, or goes on with."""

    id: str | None = None


_Act = Callable[[Ground, Says, _Held], Coroutine[Any, Any, Run]]


async def _go_on(ground: Ground, id: str, wait: bool, says: Says) -> Run:
    run = await replaying.publish(ground, id, says, warn)
    return await replaying.wait_until_decided(ground, run, says, warn) if wait else run


def _carry_out(settings: Settings, act: _Act, json: bool) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # a producer that has failed is thrown away with what it had in flight: the error that is told says why
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    held = _Held()
    go_on = ""
    try:
        with steps() as says:
            run = asyncio.run(_connected(settings, act, says, held))
    except KeyboardInterrupt:
        fail(f"interrupted{_how_to_go_on(held)}", 130)
    except Exception as error:
        known = as_worker_error(error)
        if known is None or held.id is None:
            raise
        go_on = f"\nmeasurement-updates replay status {held.id}" if isinstance(known, Superseded) else ""
        fail(f"{with_what_to_do(known)}{go_on or _how_to_go_on(held)}")
    if json:
        print(orjson.dumps(run.as_json()).decode())
    else:
        show_run(run)
    if not run.counts.complete:
        raise typer.Exit(1)


def _how_to_go_on(held: _Held, when: str = "it isn't finished") -> str:
    if held.id is None:
        return ": nothing was published"
    return (
        f"; {when}\ngo on with it: measurement-updates replay resume {held.id}\n"
        f"or give it up: measurement-updates replay cancel {held.id}"
    )


async def _connected(settings: Settings, act: _Act, says: Says, held: _Held) -> Run:
    connection = await connect(settings.dsn, application="measurement-updates replay")
    try:
        ground = await look_around(settings, connection)
        return await _outcome(ground.connection, await act(ground, says, held))
    finally:
        await close(connection)


async def _outcome(connection: Any, run: Run) -> Run:
    """Of one whose records aren't all decided: what became of them so far."""
    if run.state != "done":
        progress = await runs.progress(connection, run)
        run.outcome = await runs.outcome(connection, run, progress.pending)
    return run


async def _status(settings: Settings, id: str | None) -> list[Run]:
    connection = await connect(settings.dsn, application="measurement-updates replay")
    try:
        await expect_schema(connection)
        if id is not None:
            return [await _outcome(connection, await runs.find(connection, id))]
        return await runs.latest(connection, settings.worker_updates_topic)
    finally:
        await close(connection)


def _foresee(settings: Settings, selection: Selection, reapply: bool, examples: int, json: bool) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)

    async def look(says: Says) -> Forecast:
        connection = await connect(settings.dsn, application="measurement-updates replay")
        try:
            ground = await look_around(settings, connection)
            return await foresee(ground, selection, reapply, says, warn, examples)
        finally:
            await close(connection)

    with steps() as says:
        forecast = asyncio.run(look(says))
    if json:
        print(orjson.dumps(forecast.as_json()).decode())
    else:
        show_forecast(forecast)
    if forecast.stopped or forecast.unpublishable:
        raise typer.Exit(1)
