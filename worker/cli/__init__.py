"""The command line. Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 130 interrupted."""

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from worker.cli import demo, lanes, migrate, publish, run, settings, stack, topics, watch
from worker.cli.terminal import err
from worker.errors import SettingsError, WorkerError

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
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for command in (
    demo.demo,
    stack.stack,
    migrate.migrate,
    topics.topics,
    run.run,
    publish.publish,
    watch.watch,
    settings.settings,
):
    app.command()(command)
app.add_typer(lanes.app)


def main() -> None:
    """Every error that this product raises on purpose ends here, as one message."""
    try:
        app()
    except WorkerError as error:
        err.print("[red]error:[/red] ", end="")
        err.print(str(error), markup=False)
        sys.exit(2 if isinstance(error, SettingsError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
