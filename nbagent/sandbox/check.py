"""`nbagent sandbox check`: the battery as a table that grows while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from nbagent.sandbox.attacks import ATTACKS
from nbagent.sandbox.battery import Observed, battery, spec_of
from nbagent.terminal import foreign, plain
from nbagent_images import Image

NAME_WIDTH = max(len(attack.name) for attack in ATTACKS)
EXPECTED_WIDTH = max(len(attack.expected) for attack in ATTACKS)


async def report(image: Image, runtime: str | None = None) -> int:
    """Attack a sandbox of this image and print what came of it; returns the exit status, 1 if anything got through.

    Raises:
        KernelError: no sandbox came up.
    """
    console = Console(highlight=False)
    console.print(
        f"{len(ATTACKS)} attacks on sandboxes of {plain(image.name)}, runtime {plain(runtime or 'default')}\n"
    )
    console.print(f"     {'attack':{NAME_WIDTH}}  {'expected':{EXPECTED_WIDTH}}  observed", style="bold")
    spec = spec_of(image, "check")
    assert spec.container is not None
    spec = replace(spec, container=replace(spec.container, runtime=runtime))
    done: list[Observed] = []
    with console.status(ATTACKS[0].name) as status:

        def told(one: Observed) -> None:
            """Print an attack that is over, show the next."""
            done.append(one)
            console.print(line(one), soft_wrap=not console.is_terminal, style="bold red" if one.open else "")
            if len(done) < len(ATTACKS):
                attack = ATTACKS[len(done)]
                status.update(f"{len(done) + 1}/{len(ATTACKS)} {attack.name}: {attack.tries}")

        observed = await battery(spec, told=told)
    failed, words = verdict(observed)
    console.print(f"\n{words}", style="bold red" if failed else "bold green", soft_wrap=True)
    return failed


def verdict(observed: Sequence[Observed]) -> tuple[int, str]:
    """The exit status, 1 if anything got through in a way that is not known, and the last line."""
    through = [one.attack.name for one in observed if one.open]
    known = [one.attack.name for one in observed if one.known]
    words = f"{len(through)} got through: {', '.join(through)}" if through else "every attack was held"
    words += f", but for the notes: {', '.join(known)}" if known else ""
    seconds = sum(one.seconds for one in observed)
    return int(bool(through)), f"{words} ({len(observed)} attacks, {seconds:.0f} s)"


def line(one: Observed) -> str:
    """A row of the table."""
    mark = "held" if one.held else "OPEN" if one.open else "note"
    known = f" ({one.known})" if mark == "note" else ""
    text = foreign(one.text).plain
    return f"{mark} {one.attack.name:{NAME_WIDTH}}  {one.attack.expected:{EXPECTED_WIDTH}}  {text}{known}"
