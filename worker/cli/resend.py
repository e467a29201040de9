"""`resend`: stored answers again, into a topic of the operator's."""

import asyncio
import signal
from typing import Annotated

import orjson
import typer

from worker.cli.steps import steps, warn
from worker.cli.terminal import fail, out
from worker.replay.answers import Resent, Wanted
from worker.replay.resend import resend as send_again
from worker.retry import as_worker_error
from worker.settings import load_settings


def resend(
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="TOPIC", help="Of your own, and there; none of the three.", show_default=False
        ),
    ],
    begin: Annotated[
        str | None,
        typer.Option("--from", metavar="TIME|OFFSET", help="Where it begins.", show_default=False),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            "--until", metavar="TIME|OFFSET", help="Before which it ends (default: now).", show_default=False
        ),
    ] = None,
    partition: Annotated[
        int | None,
        typer.Option(
            "--partition", metavar="N", min=0, help="Of the input: only this one.", show_default=False
        ),
    ] = None,
    measurement: Annotated[
        str | None,
        typer.Option(
            "--measurement", metavar="ID", help="All stored answers of this one.", show_default=False
        ),
    ] = None,
    current: Annotated[
        bool, typer.Option("--current", help="Every measurement as it is now, updated or not.")
    ] = False,
    rejected: Annotated[
        bool, typer.Option("--rejected", help="The rejections of the range instead of the updates.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Send stored answers again, into a topic of your own.

    For a pipeline that has lost some, or starts new. Byte for byte: key,
    value, headers and ce_id are those that were sent first; in log order in
    each partition of the input. Times are arrivals of the updates.

    --current sends the full model of every measurement, as it is now, as a
    measurement updated event with an empty ce_changed.

    Nothing is written but to that topic. Run again, it sends all of it again
    (each with the same ce_id).

    [bold]Examples[/bold]

      measurement-updates resend --from 3d --to updated-for-pipeline-7
      measurement-updates resend --measurement m-1 --to m-1-history
      measurement-updates resend --current --to measurements-now
    """
    chosen = [
        option
        for option, given in (
            ("--from", begin is not None or until is not None),
            ("--measurement", measurement is not None),
            ("--current", current),
        )
        if given
    ]
    if len(chosen) != 1:
        found = " and ".join(chosen) or "none"
        fail(f"expected one of --from (and --until), --measurement and --current, found {found}", 2)
    if (partition is not None or rejected) and chosen != ["--from"]:
        fail(f"--partition and --rejected: expected --from or --until beside them, found {chosen[0]}", 2)
    settings = load_settings(with_servers=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    resent = Resent(to)
    wanted = Wanted(begin, until, partition, measurement, current, rejected)
    try:
        with steps() as says:
            asyncio.run(send_again(settings, wanted, to, says, resent, warn))
    except KeyboardInterrupt:
        _say(resent, json)
        fail(f"interrupted after {resent.sent:,} answers; run again, it sends all of them again", 130)
    except Exception as error:
        if as_worker_error(error) is not None and resent.sent:
            _say(resent, json)
        raise
    _say(resent, json)
    if resent.unreadable:
        fail(
            f"{len(resent.unreadable):,} measurements can't be expressed in the response model: mend the rows"
        )


def _say(resent: Resent, json: bool) -> None:
    if json:
        print(orjson.dumps(resent.as_json()).decode())
    else:
        out.print(f"{resent.sent:,} answers sent to {resent.topic}", markup=False)
