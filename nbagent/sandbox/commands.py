"""`nbagent sandbox`: build the images of sandboxes, attack them, clear up after them, measure them."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from nbagent_images.commands import build

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Build, attack and clear up the sandboxes in which agents' code runs.",
)

ImageName = Annotated[str, typer.Option("--image", help="python, r, full, or any image of the engine.")]
Runtime = Annotated[
    str | None, typer.Option(help="The engine's runtime, such as runsc (gVisor); default: the engine's own.")
]


@app.callback()
def sandbox() -> None:
    """Build, attack and clear up the sandboxes in which agents' code runs."""


app.command()(build)


@app.command()
def check(image: ImageName = "python", runtime: Runtime = None) -> None:
    """Attack a sandbox in your engine. Status 1 if anything gets through, 2 where there is no engine or no image.

    The attacks run in containers as any run has them, and are harmless where they are held: they reach for the network,
    the host, other sandboxes and the system's kernel, use up what they can, and forge what they are asked.
    """
    from nbagent.sandbox.check import report
    from nbagent_images import require

    raise typer.Exit(asyncio.run(report(require(image), runtime)))


@app.command()
def clean(
    run: Annotated[
        str | None, typer.Option(help="Only what belongs to this run: the name of its folder, or of a notebook.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="With --run: also what its program, if it still runs, is using.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove the containers and folders that killed programs left. Nothing else is touched.

    The next program that opens a sandbox does so too. What is ours is known by its labels, what is left by its owner:
    a process of this machine that has ended. What another machine or a container started is only removed by --run NAME
    --all. Status 1 where a container could not be removed.
    """
    from nbagent.sandbox.clean import clean as clear

    raise typer.Exit(clear(run, everything, dry_run))


@app.command()
def bench(
    image: ImageName = "python",
    runtime: Runtime = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Times that each is measured.")] = 7,
) -> None:
    """Measure a sandbox on this machine: opened cold, taken from a warm pool, a cell, a branch."""
    from nbagent.sandbox.bench import report
    from nbagent_images import require

    asyncio.run(report(require(image), runtime, n))
