"""Bars for long work: one for each step, with rate and time left; on stderr, and only where that is a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from worker.cli.terminal import err


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "", style="dim")


@contextmanager
def steps() -> Iterator[Callable[[str, int, int], None]]:
    """Yields what hears of each step how much of it is done, and how much there is."""
    if not err.is_terminal:
        yield lambda what, done, total: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.completed:,}/{task.total:,}"),
        _Rate(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=err, transient=True, expand=True) as bars:
        tasks: dict[str, TaskID] = {}

        def says(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield says


def warn(message: str) -> None:
    """Loudly, beside a bar too."""
    err.print("[yellow]warning:[/yellow] ", end="")
    err.print(message, markup=False)
