"""How commands speak: results on stdout, notes and errors on stderr, colour only on a terminal."""

from typing import NoReturn

import typer
from rich.console import Console


class _Stream(Console):
    """rich would end the process with 1 where who reads our output is gone (head)."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


out = Console(highlight=False, soft_wrap=True)
stream = _Stream(highlight=False, soft_wrap=True)
"""For long output: raises BrokenPipeError."""
err = Console(stderr=True, highlight=False, soft_wrap=True)


def fail(message: str, code: int = 1) -> NoReturn:
    """Say what was expected, what was found and what to do, and exit."""
    err.print("[red]error:[/red] ", end="")
    err.print(message, markup=False)
    raise typer.Exit(code)
