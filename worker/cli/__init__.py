"""The command line. Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 130 interrupted."""

import logging
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from worker.cli import (
    demo,
    doctor,
    history,
    lanes,
    migrate,
    publish,
    rejected,
    replay,
    resend,
    run,
    settings,
    stack,
    status,
    topics,
    verify,
    watch,
)
from worker.cli.terminal import err
from worker.errors import SettingsError
from worker.retry import as_worker_error

app = typer.Typer(
    name="measurement-updates",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Battery cell measurements updated by Kafka messages: validated, applied to Postgres exactly once, answered.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"measurement-updates {version('measurement-updates')}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand != "run":
        # A client's retries are no news; what ends a command, the command says. A worker's log has them.
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


for command in (
    demo.demo,
    stack.stack,
    migrate.migrate,
    topics.topics,
    run.run,
    publish.publish,
    watch.watch,
    verify.verify,
    resend.resend,
    status.status,
    history.history,
    doctor.doctor,
    settings.settings,
):
    app.command()(command)
app.add_typer(lanes.app)
app.add_typer(rejected.app)
app.add_typer(replay.app)


def main() -> None:
    """Every error that is foreseen, ours or that of a server which is away, ends here as one message."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        known = as_worker_error(error)
        if known is None:
            raise
        err.print("[red]error:[/red] ", end="")
        err.print(str(known), markup=False)
        sys.exit(2 if isinstance(known, SettingsError) else 1)
