"""A progress bar with rate and time left; where there is no terminal, a line at the beginning and one at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class RateColumn(ProgressColumn):
    """Finished items per second, or per minute where they are slow."""

    def render(self, task: Task) -> Text:
        """The rate; nothing before there is one."""
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        rate = f"{speed:.1f}/s" if speed >= 0.5 else f"{60 * speed:.1f}/min"
        return Text(rate, style="progress.data.speed")


@contextmanager
def progress_bar(name: str, total: int, done: int = 0, console: Console | None = None) -> Iterator[Callable[[], None]]:
    """Yields a callable that counts one more, from any thread.

    Args:
        name: what is counted.
        total: how many there are in all.
        done: how many there are already.
        console: where to print; None: stderr.
    """
    console = console or Console(stderr=True)
    begin = time.monotonic()
    bar = Progress(
        TextColumn("[progress.description]{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    if not console.is_terminal:
        left = f", {done} done already" if done else ""
        console.print(f"{name}: {total}{left} …", highlight=False, markup=False)
    with bar:
        counted = bar.add_task(name, total=total, completed=done)
        yield lambda: bar.advance(counted)
    if not console.is_terminal:
        console.print(f"{name}: {time.monotonic() - begin:.1f} s", highlight=False, markup=False)
