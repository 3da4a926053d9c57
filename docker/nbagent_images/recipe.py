"""The images that are built here: what goes into each, and the places inside that others rely on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
RECIPE_FOLDER = HERE / "recipes"
INSIDE_FOLDER = HERE / "inside"

PYTHON = "/opt/venv/bin/python"
"""The interpreter of the kernels."""

KERNEL_FILES = "/nbagent"
"""An empty folder: a backend mounts its fork server here, read-only."""

WHEELS = "/wheels"
"""An empty folder: wheels that are mounted here can be installed inside by pip."""

PYTHON_VERSION = "3.11.2"
"""Debian bookworm's. Wheels are chosen for it: some demand a later 3.11."""

GLIBC_MINOR = 36
"""Debian bookworm has glibc 2.36: wheels for later ones do not load."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What an image is made of.

    Example: `RECIPES["python"].tag == "nbagent-python"`.
    """

    name: str
    """As given to `nbagent sandbox build --image`."""
    about: str
    """One line for people."""
    debian: tuple[str, ...]
    """Lists of Debian packages: names of files in recipes/debian."""
    python: str
    """Python packages: a folder of recipes/python, without its suffixes."""

    @property
    def tag(self) -> str:
        """The name of the image in the engine."""
        return f"nbagent-{self.name}"

    def packages(self) -> list[str]:
        """Debian packages as apt takes them: `name` or `name=1.2*`."""
        lines = [line for name in self.debian for line in _lines(RECIPE_FOLDER / "debian" / f"{name}.txt")]
        return sorted(set(lines))

    @property
    def requirements(self) -> Path:
        """The Python packages that were asked for, each with its version."""
        return RECIPE_FOLDER / "python" / f"{self.python}.txt"

    @property
    def lock(self) -> Path:
        """All Python packages, each with its version and the hash of its wheel."""
        return RECIPE_FOLDER / "python" / f"{self.python}.lock"

    def digest(self) -> str:
        """Twelve hex digits that change with anything that goes into the image, base image and extras aside."""
        seen = hashlib.sha256("\n".join(self.packages()).encode())
        parts = (RECIPE_FOLDER.glob("Dockerfile*"), (RECIPE_FOLDER / "files").iterdir(), INSIDE_FOLDER.glob("*.py"))
        for file in [self.lock, *(file for part in parts for file in sorted(part))]:
            seen.update(file.name.encode() + b"\0" + file.read_bytes())
        return seen.hexdigest()[:12]


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("python", "Python and its scientific stack", ("python",), "python"),
        Recipe("r", "R with IRkernel, small", ("python", "r"), "kernel"),
        Recipe(
            "full",
            "Python, R, Bioconductor and command-line tools",
            ("python", "r", "bioconductor", "tools"),
            "python",
        ),
    )
}
"""The images by name."""


def _lines(file: Path) -> list[str]:
    bare = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in bare if line]
