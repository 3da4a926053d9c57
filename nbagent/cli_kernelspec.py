"""`nbagent kernelspec`: kernels for Jupyter's own programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

kernelspec = typer.Typer(
    no_args_is_help=True, help="Let Jupyter's own programs run notebooks in kernel sessions of nbagent."
)


@kernelspec.callback()
def _group() -> None:
    """Let Jupyter's own programs run notebooks in kernel sessions of nbagent."""


@kernelspec.command()
def install(
    name: Annotated[str, typer.Option(help="Name of the kernel, as Jupyter shows it.")] = "nbagent",
    backend: Annotated[
        str, typer.Option(help="Where cells run: fork (Python, quick) or local (any installed kernel).")
    ] = "fork",
    kernel: Annotated[
        str | None, typer.Option(help="Installed kernelspec that backend local starts, such as ir; none: this Python.")
    ] = None,
    files: Annotated[
        str | None, typer.Option(help="Folder copied into the kernel's working folder, relative to the notebook's.")
    ] = None,
    user: Annotated[bool, typer.Option("--user", help="Install for this user.")] = False,
    prefix: Annotated[Path | None, typer.Option(help="Install into this environment.")] = None,
    sys_prefix: Annotated[
        bool, typer.Option("--sys-prefix", help="Install into the environment that runs this; the default.")
    ] = False,
) -> None:
    """Write a kernelspec, so that nbclient, papermill, nbconvert and jupyter run notebooks in these kernels.

    Each kernel has a private working folder that is removed when it ends, an environment without keys, and limits.

    Examples:

    [bold]nbagent kernelspec install[/bold]

    [bold]papermill -k nbagent in.ipynb out.ipynb[/bold]

    [bold]nbagent kernelspec install --name nbagent-r --backend local --kernel ir --user[/bold]
    """
    from nbagent.errors import UsageError
    from nbagent_kernels.kernelspec import install as install_content
    from nbagent_kernels.kernelspec import kernelspec as content

    if backend not in ("fork", "local"):
        raise UsageError(f"--backend {backend}: kernels under Jupyter's own programs run on fork or local")
    if user + sys_prefix + (prefix is not None) > 1:
        raise UsageError("--user, --prefix and --sys-prefix: name one of them")
    try:
        print(install_content(content(backend, kernel, files), name, user, prefix))
    except ValueError as error:
        raise UsageError(f"--name {name}: {error}") from error
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}; name another place with --user or --prefix") from error
