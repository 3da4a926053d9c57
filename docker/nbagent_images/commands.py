"""`nbagent sandbox build`: the images in which agents' code runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.status import Status

from nbagent_images.base import PUBLIC_BASE
from nbagent_images.errors import ImageError
from nbagent_images.recipe import RECIPES


def build(
    image: Annotated[str, typer.Option(help="python, r, or full (R, Bioconductor and command-line tools).")] = "python",
    base: Annotated[str, typer.Option(help="Debian bookworm image to begin with.")] = PUBLIC_BASE,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no registry: make the base here with mmdebstrap.")
    ] = False,
    extras: Annotated[
        list[str] | None,
        typer.Option("--with", help="Also install this: a Python requirement, a folder of wheels, or apt:PACKAGE."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Build anew all of it, with Debian's newest fixes.")] = False,
) -> None:
    """Build an image from its recipe. Wheels are downloaded by this machine; they are installed without a network."""
    from nbagent_images.engine import engine
    from nbagent_images.image import size
    from nbagent_images.make import make

    if image not in RECIPES:
        raise ImageError(f"--image {image}: there is no such recipe; there are: {', '.join(RECIPES)}")
    if offline and base != PUBLIC_BASE:
        raise ImageError(f"--offline makes its own base, so --base {base} would not be used; leave one of them out")
    wanted = [named(extra) for extra in extras or ()]
    console = Console(highlight=False)
    begun = time.monotonic()
    with engine(timeout_s=600) as client, console.status("asking the engine") as status:
        shown = Steps(console, status)
        made = make(client, RECIPES[image], None if offline else base, wanted, fresh, shown.line)
        shown.done()
    seconds = time.monotonic() - begun
    console.print(f"[bold]{made.name}[/bold]  {size(made.size_bytes)}, {seconds:.0f} s, {made.id[7:19]}")


def named(extra: str) -> str:
    """What --with names: a folder as it is; requirements without spaces, by which an image's label separates them."""
    return extra if Path(extra).is_dir() else extra.replace(" ", "")


class Steps:
    """One line for each step that is over, and the newest line of the one that runs."""

    def __init__(self, console: Console, status: Status) -> None:
        self._console, self._status = console, status
        self._step, self._begun = "", time.monotonic()

    def line(self, step: str, text: str) -> None:
        """Show a line of a step."""
        if step != self._step:
            self.done()
            self._step, self._begun = step, time.monotonic()
        self._status.update(f"{escape(step)}: {escape(text.strip()[:100])}")

    def done(self) -> None:
        """The step is over."""
        if self._step:
            self._console.print(f"{escape(self._step)}: {time.monotonic() - self._begun:.0f} s")
