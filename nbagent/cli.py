"""The command `nbagent`. Importing this imports nothing heavy; each command imports what it needs when it runs."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import sys
from typing import Annotated

import typer

from nbagent import __version__
from nbagent.cli_errors import INTERRUPTED
from nbagent.cli_group import Commands
from nbagent.cli_kernelspec import kernelspec
from nbagent.cli_notebooks import execute, replay
from nbagent.cli_profile import profile
from nbagent.cli_prompt import prompt
from nbagent.cli_runs import report, validate
from nbagent.cli_score import compare, score
from nbagent.terminal import PlainHandler

app = typer.Typer(
    name="nbagent",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    # Tracebacks with local variables would print keys.
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train, score and replay language-model agents that work in Jupyter notebooks on bioinformatics data.\n\n"
    "Begin with [bold]nbagent demo --out runs/demo[/bold]: it trains a small agent on this machine, scores it "
    "before and after, and writes a report. Every command explains itself with --help.",
)
app.command("score")(score)
app.command("profile")(profile)
app.command("compare")(compare)
app.command("replay")(replay)
app.command("prompt")(prompt)
app.command("exec")(execute)
app.command("report")(report)
app.command("validate")(validate)
app.add_typer(kernelspec, name="kernelspec")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"nbagent {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Options of the program itself."""


def main() -> None:
    """The console script."""
    # Warnings quote what servers and agents wrote.
    logging.getLogger().addHandler(PlainHandler(logging.WARNING))
    # A polite kill ends like Ctrl-C: what runs is saved and no process stays behind.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    # The interpreter's last steps give signals their defaults back, but not to one that is ignored: a Ctrl-C in these
    # milliseconds would change the exit status.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            # Tasks that an impatient Ctrl-C kept from ending are no news.
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        raise
    finally:
        # Interrupted again while the interpreter waits for threads, it would print a traceback of its own.
        signal.signal(signal.SIGINT, _end_at_once)


def _end_at_once(number: int, frame: object) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
