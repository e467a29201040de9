"""The command line. Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 130 interrupted."""

import logging
import sys
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from worker.cli.terminal import err
from worker.errors import SettingsError, with_what_to_do
from worker.retry import as_worker_error

_COMMANDS = (
    "demo", "stack", "migrate", "topics", "run", "publish", "watch", "verify", "resend", "status", "history", "doctor",
    "settings", "lanes", "rejected", "replay",
)  # fmt: skip
"""Each is a module of this package: it has a group `app`, or a function of its own name."""


class _Commands(TyperGroup):
    """A command's module is imported when it is asked for: all of them take many times what one takes to start."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.commands: dict[str, Any] = dict.fromkeys(_COMMANDS)  # "Did you mean …?" looks at these names

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"worker.cli.{cmd_name}")
        group = getattr(module, "app", None)
        if group is None:
            group = typer.Typer(add_completion=False, rich_markup_mode="rich")
            group.command(cmd_name)(getattr(module, cmd_name))
        return typer.main.get_command(group)


app = typer.Typer(
    name="measurement-updates",
    cls=_Commands,
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
        err.print(with_what_to_do(known), markup=False)
        sys.exit(2 if isinstance(known, SettingsError) else 1)
