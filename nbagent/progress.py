"""A progress bar with rate and time left; where there is no terminal, a line at the beginning and one at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

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


class Advance(Protocol):
    """Counts more as done; may be called from any thread."""

    def __call__(self, n: int = 1, note: str = "") -> None:
        """`n` more are done; `note` replaces the words at the end of the bar."""
        ...


@contextmanager
def progress_bar(name: str, total: int | None, done: int = 0, console: Console | None = None) -> Iterator[Advance]:
    """Yields a callable that counts what is done.

    Args:
        name: what is counted.
        total: how many there are in all; None where that is not known.
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
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        disable=not console.is_terminal,
    )
    if not console.is_terminal:
        left = f", {done} done already" if done else ""
        number = f": {total}{left}" if total is not None else ""
        console.print(f"{name}{number} …", highlight=False, markup=False)
    with bar:
        counted = bar.add_task(name, total=total, completed=done, note="")

        def advance(n: int = 1, note: str = "") -> None:
            if note:
                bar.update(counted, note=note)
            bar.advance(counted, n)

        yield advance
    if not console.is_terminal:
        console.print(f"{name}: {time.monotonic() - begin:.1f} s", highlight=False, markup=False)
