"""`doctor`: is everything there that a deployment needs?"""

import asyncio
import signal
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated

import orjson
import typer
from rich.padding import Padding
from rich.text import Text

from worker.checks import Check
from worker.cli.terminal import out
from worker.cli.watch import printable
from worker.doctor import examine
from worker.settings import Settings, load_settings

_STYLES = {"ok": "green", "warning": "yellow", "failed": "red"}


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check everything that a deployment needs, and say how to mend it.

    Servers and their versions, topics, replicas, sizes, retention, rights
    (ACLs and grants), schema, triggers, sessions, lanes, clocks. Nothing is
    written and no group is joined; workers may run meanwhile. WORKER_*
    settings and the database's role must be the workers'.

    Exit code 0: all is well, or warnings only; 1: something failed.

    [bold]Examples[/bold]

      measurement-updates doctor
      measurement-updates doctor --json | jq '.checks[] | select(.mend != "")'
    """
    settings = load_settings(with_servers=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    checks = asyncio.run(_examined(settings, json))
    count = {verdict: sum(check.verdict == verdict for check in checks) for verdict in _STYLES}
    if json:
        print(orjson.dumps({"ok": not count["failed"], "checks": [asdict(one) for one in checks]}).decode())
    else:
        out.print()
        out.print(
            f"{count['ok']} ok, {count['warning']} warning{'s' * (count['warning'] != 1)}, {count['failed']} failed"
        )
    if count["failed"]:
        raise typer.Exit(1)


async def _examined(settings: Settings, json: bool) -> list[Check]:
    checks = []
    async with aclosing(examine(settings)) as found:
        async for check in found:
            checks.append(check)
            if not json:
                _show(check)
    return checks


def _show(check: Check) -> None:
    line = Text.assemble((f"{check.verdict:8}", _STYLES[check.verdict]), f"{check.area} {check.name}: ")
    line.append(printable(" ".join(check.said.split())))
    out.print(line, soft_wrap=False)
    if check.mend:
        out.print(Padding(Text(f"→ {check.mend}", style="dim"), (0, 0, 0, 8)), soft_wrap=False)
