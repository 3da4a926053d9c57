"""Wheels for an image's Python, downloaded by this machine's pip, so that its own indexes and certificates count."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nbagent_images.errors import BuildFailed
from nbagent_images.progress import Progress, follow
from nbagent_images.recipe import GLIBC_MINOR, PYTHON_VERSION, Recipe

TARGET = (
    *("--only-binary", ":all:", "--python-version", PYTHON_VERSION, "--implementation", "cp"),
    *(word for abi in ("cp311", "abi3", "none") for word in ("--abi", abi)),
    *(word for minor in range(GLIBC_MINOR, 16, -1) for word in ("--platform", f"manylinux_2_{minor}_x86_64")),
    *("--platform", "manylinux2014_x86_64", "--platform", "any"),
)
"""pip's words for the image's Python, whatever Python runs this."""

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def collect(recipe: Recipe, extras: Sequence[str], folder: Path, progress: Progress) -> list[str]:
    """Put the wheels of the extras, and of what they need beyond the recipe's packages, into `folder`.

    Args:
        extras: requirements as pip takes them, and folders of wheels: all wheels of a folder are wanted.
        folder: an empty folder.

    Returns:
        The extras as requirements, one for each.

    Raises:
        BuildFailed: a package, or a version of it that goes with the recipe's, was not found.
    """
    folders = [Path(extra) for extra in extras if Path(extra).is_dir()]
    for given in folders:
        if not any(given.glob("*.whl")):
            raise BuildFailed(f"--with {given}: there are no wheels in this folder")
    wheels = [wheel for given in folders for wheel in sorted(given.glob("*.whl"))]
    wanted = [*(extra for extra in extras if not Path(extra).is_dir()), *(requirement(wheel) for wheel in wheels)]
    if wanted:
        constraints = folder / "constraints.txt"
        constraints.write_text("".join(f"{pin}\n" for pin in pins(recipe.lock)), encoding="utf-8")
        places = [word for given in folders for word in ("--find-links", str(given.resolve()))]
        download([*places, "-c", str(constraints), *wanted], folder, progress)
        there = {pin.replace("_", "-") for pin in pins(recipe.lock)}
        for wheel in folder.glob("*.whl"):
            if requirement(wheel).lower().replace("_", "-") in there:
                wheel.unlink()
    return wanted


def download(words: Sequence[str], folder: Path, progress: Progress) -> None:
    """Run `pip download` for the image's Python."""
    if subprocess.run([*PIP, "--version"], capture_output=True, check=False).returncode:
        raise BuildFailed(f"{sys.executable} has no pip to download wheels with; python -m ensurepip adds it")
    follow([*PIP, "download", "--progress-bar", "off", *TARGET, "-d", str(folder), *words], "wheels", progress)


def pins(lock: Path) -> list[str]:
    """`name==version` of every package of a lock file."""
    return re.findall(r"^(\S+==[^\s\\]+)", lock.read_text(encoding="utf-8"), re.M)


def requirement(wheel: Path) -> str:
    """`name==version` of a wheel file."""
    name, version, *_ = wheel.name.split("-")
    return f"{name}=={version}"
