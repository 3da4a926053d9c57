"""Writes a kernelspec that has Jupyter start its kernels through the provisioner here."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager

from nbagent_kernels.errors import KernelStartError
from nbagent_kernels.local import command
from nbagent_kernels.session import BACKENDS
from nbagent_kernels.types import SessionSpec


def kernelspec(backend: str = "fork", kernel: str | None = None, files: str | None = None) -> dict[str, Any]:
    """The content of a kernel.json.

    Args:
        backend: where the kernels run.
        kernel: the installed kernelspec that backend `local` starts; None: this Python.
        files: folder that is copied into the working directory, relative to the one Jupyter names for the kernel.

    Raises:
        KernelStartError: no such backend, no such kernelspec, or a kernelspec named for another backend than `local`.
    """
    if backend not in BACKENDS:
        raise KernelStartError(f"unknown backend {backend!r}; there are: {', '.join(sorted(BACKENDS))}")
    if kernel is not None and backend != "local":
        raise KernelStartError(f"kernelspec {kernel!r} runs in backend local only, not in {backend}")
    argv, _, language, interrupt_mode = command(SessionSpec(kernel=kernel))
    config = {"backend": backend, "kernel": kernel, "files": files}
    provisioner = {"provisioner_name": "nbagent", "config": {k: v for k, v in config.items() if v is not None}}
    return {
        # Never run: Jupyter wants it, and it says what would be started without the provisioner.
        "argv": argv,
        "display_name": f"{'Python 3' if kernel is None else kernel} (nbagent, {backend})",
        "language": language,
        "interrupt_mode": interrupt_mode,
        "metadata": {"kernel_provisioner": provisioner},
    }


def install(content: dict[str, Any], name: str, user: bool = False, prefix: Path | None = None) -> Path:
    """Install a kernelspec; one of the same name is replaced. Returns its folder.

    Args:
        content: of its kernel.json.
        name: the kernel's name.
        user: into the user's folder of kernelspecs.
        prefix: into this environment; None, and not `user`: the running one.

    Raises:
        ValueError: a name that Jupyter does not take.
        OSError: the folder cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.json").write_text(json.dumps(content, indent=1) + "\n")
        place = KernelSpecManager().install_kernel_spec(
            folder, kernel_name=name, user=user, prefix=None if user else str(prefix or sys.prefix)
        )
    return Path(place)
