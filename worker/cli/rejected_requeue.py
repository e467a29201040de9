"""`rejected requeue`: rejected records sent again, as they were or repaired, and followed until they are answered."""

import asyncio
from collections.abc import Sequence
from typing import Annotated

import typer
from aiokafka.errors import KafkaError
from rich.text import Text

from worker.case_acts import Actor
from worker.case_list import CaseFilter, newest_records, rejected_record
from worker.cli.clients import update_producer
from worker.cli.rejected_body import edit_body, read_body, say_violations
from worker.cli.rejected_options import (
    By,
    Codes,
    Measurement,
    Organization,
    Since,
    Source,
    States,
    Until,
    check_choice,
    chosen,
    connected,
    read_filter,
    short_id,
    who,
)
from worker.cli.rejected_summary import LISTED, Summary, places_of
from worker.cli.sending import progress
from worker.cli.terminal import err, fail, out
from worker.cli.watch import printable
from worker.database import POSTGRES_ERRORS, Connection, close
from worker.errors import WorkerError, with_what_to_do
from worker.repair import CantRequeue, WrongBody, body_of, check_body, foreseen
from worker.requeue import Prepared, Requeued, Requeuing, follow, in_pieces
from worker.retry import as_worker_error
from worker.settings import Settings, load_settings

_SAY_AFTER = 5.0
"""Seconds without an answer after which it is said what is waited for."""


def requeue(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="As `rejected list --each` shows them.")
    ] = None,
    codes: Codes = None,
    measurement: Measurement = None,
    organization: Organization = None,
    source: Source = None,
    since: Since = None,
    until: Until = None,
    states: States = None,
    all_open: Annotated[bool, typer.Option("--all", help="Every open case.")] = False,
    patch: Annotated[
        str | None,
        typer.Option(
            "--patch",
            metavar="FILE",
            help="Send this PATCH body instead (JSON; - reads standard input). One ID.",
            show_default=False,
        ),
    ] = None,
    edit: Annotated[bool, typer.Option("--edit", help="Repair the body in $EDITOR first. One ID.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Also what is requeued, resolved or discarded.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Send nothing, say what would be.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Don't follow what becomes of them.")] = False,
    why: Annotated[
        str | None, typer.Option("--why", help="The reason, kept with your name.", show_default=False)
    ] = None,
    by: By = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Send rejected updates again, as they were or repaired.

    By ids, or by the filters of `rejected list`: what that shows is what this
    sends, in the order of first arrival. Each goes with requeued-from, so a
    worker judges it as the late event that it is: newer values stay. Then it
    is followed until it is answered: applied or a duplicate, the case is
    resolved; rejected, it is open again with one more attempt.

    A repaired body is checked before anything is sent; of a structured event
    it replaces data, of any other the value. Each case is marked before it
    is sent: if this is interrupted, run it again with --again. An event that
    was applied meanwhile is a duplicate then, so nothing happens twice.

    Exit code 1: something was rejected again, or couldn't be sent.

    [bold]Examples[/bold]

      measurement-updates rejected requeue 0/17
      measurement-updates rejected requeue 0/17 --edit
      echo '{"notes":"vented"}' | \\
        measurement-updates rejected requeue 0/17 --patch -
      measurement-updates rejected requeue --code measurement_not_found \\
        --since 2d --why "measurements were created late" --dry-run
    """
    settings = load_settings(with_servers=True)
    wanted = read_filter(codes, measurement, organization, source, since, until, states)
    check_choice("requeue", ids or (), wanted, states, all_open)
    if (patch is not None or edit) and len(ids or ()) != 1:
        fail("--patch and --edit: expected one ID, whose body is replaced", 2)
    if patch is not None and edit:
        fail("expected one of --patch and --edit, found both", 2)
    command = _Command(settings, Actor(who(by), why), again, dry_run, no_wait, json, edit)
    body = None if patch is None else read_body(patch)
    failure: BaseException | None = None
    try:
        asyncio.run(command.run(ids or (), wanted, body))
    except (WorkerError, KafkaError, OSError, *POSTGRES_ERRORS, KeyboardInterrupt) as error:
        if not command.summary.items:
            raise
        failure = error
    except WrongBody as wrong:
        say_violations(wrong)
        fail("the body is wrong: nothing was sent")
    if json:
        command.summary.print_json()
    else:
        command.summary.say()
    if isinstance(failure, KeyboardInterrupt):
        raise typer.Exit(130)
    if failure is not None:
        known = as_worker_error(failure)
        assert known is not None, "only what is known is caught"
        fail(with_what_to_do(known))
    if not command.summary.well:
        raise typer.Exit(1)


class _Command:
    """One run."""

    def __init__(
        self,
        settings: Settings,
        actor: Actor,
        again: bool,
        dry_run: bool,
        no_wait: bool,
        json: bool,
        edit: bool,
    ) -> None:
        self.summary = Summary(settings, dry_run)
        self._settings = settings
        self._actor = actor
        self._again = again
        self._dry_run = dry_run
        self._no_wait = no_wait
        self._json = json
        self._edit = edit

    async def run(self, ids: Sequence[str], wanted: CaseFilter, body: bytes | None) -> None:
        settings = self._settings
        connection = await connected(settings)
        try:
            items = [Requeued(case) for case in await chosen(connection, settings, ids, wanted)]
            requeuing = Requeuing(connection, settings, self._actor, self._again, body)
            if body is not None:
                check_body(body, requeuing.limits)
            if self._edit and (items[0].case.state == "open" or self._again):
                requeuing = await self._edited(requeuing, items[0])
            self.summary.items = items
            if self._dry_run:
                await self._rehearse(requeuing)
                return
            async with update_producer(settings) as producer:
                with progress("requeueing", len(items)) as advance:
                    for piece in in_pieces(items):
                        await requeuing.send(producer, await requeuing.prepare(piece), advance)
            if not self._no_wait:
                await self._follow(connection)
        finally:
            await close(connection)

    async def _edited(self, requeuing: Requeuing, item: Requeued) -> Requeuing:
        rows = await newest_records(requeuing.connection, [item.case])
        row = rows.get((item.case.lane, item.case.offset))
        if row is None:
            fail(f"{short_id(item.case, self._settings)}: retention has just removed it")
        record = rejected_record(row)
        try:
            if record.truncated is not None:
                record = await requeuing.whole(record, row)
        except CantRequeue as why:
            fail(f"{short_id(item.case, self._settings)}: {why}")
        notes = [record.message, *(f"{one.path}: expected {one.expected}" for one in record.violations)]
        edited = edit_body(body_of(record), notes, requeuing.limits)
        return Requeuing(requeuing.connection, self._settings, self._actor, self._again, edited)

    async def _rehearse(self, requeuing: Requeuing) -> None:
        shown = 0
        for piece in in_pieces(self.summary.items):
            for one in await requeuing.prepare(piece):
                code = foreseen(one.record, requeuing.limits)
                if code is not None:
                    self.summary.foreseen[code] += 1
                if not self._json and shown < LISTED:
                    self._say_what_goes(one, code)
                    shown += 1

    def _say_what_goes(self, one: Prepared, code: str | None) -> None:
        case = one.item.case
        line = Text.assemble(
            (short_id(case, self._settings), "bold"), f"  {printable(case.attributes.measurement or '(no key)')}  ",
            (case.code, "red"),
        )  # fmt: skip
        if code is not None:
            line.append(f"  would be rejected again: {code}", "yellow")
        out.print(line)
        if len(self.summary.items) == 1:
            for name, content in one.record.headers:
                value = "null" if content is None else content.decode("utf-8", "backslashreplace")
                out.print(f"    {printable(name)}: {printable(value)}", markup=False)
            out.print(
                f"    {printable((one.record.value or b'').decode('utf-8', 'backslashreplace'))}",
                markup=False,
            )

    async def _follow(self, connection: Connection) -> None:
        sent = self.summary.sent
        answered = 0
        with progress("answered", len(sent)) as advance:

            def decided(_: Requeued) -> None:
                nonlocal answered
                answered += 1
                advance()

            following = asyncio.ensure_future(follow(connection, sent, decided))
            try:
                while not (await asyncio.wait([following], timeout=_SAY_AFTER))[0]:
                    if answered == 0:
                        err.print(
                            f"waiting for a worker to decide {places_of(sent)}: does one run? They are sent; Ctrl-C only"
                            " ends the waiting",
                            style="dim",
                            markup=False,
                        )
                        await asyncio.wait([following])
                following.result()
            finally:
                following.cancel()
                await asyncio.wait([following])
