"""`nbagent sandbox clean`: what killed programs left, listed and removed."""

from __future__ import annotations

from rich.console import Console

from nbagent.errors import UsageError
from nbagent.terminal import plain
from nbagent_images.engine import engine
from nbagent_kernels.engineclient import remove_container
from nbagent_kernels.leftovers import Leftover, containers
from nbagent_kernels.removal import remove_tree
from nbagent_kernels.workspace import orphans

OWNERS = {
    "ended": "its program has ended",
    "alive": "in use by a program that runs",
    "unknown": "started on another machine, in another container or before the last start of this one",
}


def clean(run: str | None, everything: bool, dry_run: bool) -> int:
    """Remove containers whose program has ended, and the folders of such programs; print each.

    Args:
        run: only containers of the run of this name, and no folders.
        everything: with a run: whatever its program does.
        dry_run: only print.

    Returns:
        The exit status: 1 where a container could not be removed.

    Raises:
        UsageError: `everything` without a run.
        EngineMissing, EngineForbidden: there is no engine.
    """
    if everything and run is None:
        raise UsageError("--all would end sandboxes in use, whoever uses them; name one run: --run NAME --all")
    console = Console(highlight=False, soft_wrap=True)
    with engine() as client:
        client.ping()
    listed = containers(run)
    gone = [one for one in listed if everything or one.owner == "ended"]
    folders = orphans() if run is None else []
    kept = 0
    for one in gone:
        done = dry_run or remove_container(one.id)
        kept += not done
        verb = said(dry_run) if done else "could not remove"
        console.print(plain(f"{verb} container {one.id[:12]}{of(one)}, {one.state}: {OWNERS[one.owner]}"))
    for folder in folders:
        if not dry_run:
            remove_tree(folder)
        console.print(plain(f"{said(dry_run)} folder {folder}: {OWNERS['ended']}"))
    for one in (one for one in listed if one not in gone):
        console.print(plain(f"left alone container {one.id[:12]}{of(one)}, {one.state}: {OWNERS[one.owner]}"))
    console.print(f"{len(gone) - kept} containers and {len(folders)} folders {'would be ' if dry_run else ''}removed")
    return int(kept > 0)


def said(dry_run: bool) -> str:
    """What is done to each."""
    return "would remove" if dry_run else "removed"


def of(one: Leftover) -> str:
    """The run it belongs to, and its program."""
    return f" of run {one.run or '(none)'}, process {one.pid}"
