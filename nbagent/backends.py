"""Which backend runs whose code, and in which container."""

from __future__ import annotations

import functools
import os
import stat
from pathlib import Path

from nbagent.errors import UsageError
from nbagent_images import ImageError, ImageMissing, profile, require
from nbagent_kernels import BACKENDS
from nbagent_kernels.confinement import gaps
from nbagent_kernels.types import ContainerSettings

WHEELS = "NBAGENT_WHEELS"
"""Environment variable: a folder of wheels from which `pip install` in a container takes packages."""
IMAGES = {"python": ("python", "full"), "r": ("full", "r")}
"""Language -> images that have its kernel, the first one there is taken."""


def not_covered(backend: str) -> str:
    """What a backend leaves open on this machine, in one line for the user."""
    if kernels_of(backend) == "docker":
        return (
            "note: cells run in containers without a network, which share this system's kernel and processor: a flaw "
            "in it, or what can be told from timing, is open to their code"
        )
    missing = "".join(f"; {gap}" for gap in gaps())
    return (
        "note: the backends fork and local keep a kernel to its own files and network, limit memory, files and time "
        "and give it no keys, but they are no sandbox: its code runs as you on your system, sees what is installed "
        f"and what runs, and reaches local services by their sockets{missing}"
    )


def choose_backend(named: str | None, what: str, ours: bool, language: str = "python") -> str:
    """The backend for some code: the one named; else `docker`, or `fork` for code of a model made here from nothing.

    Args:
        named: by the user; None where nothing was said.
        what: whose code it is, for the message: a model or a notebook.
        ours: True where the code can do nothing that we did not teach it.
        language: of the code.

    Raises:
        UsageError: a backend that is not there, or docker without an engine or an image.
    """
    chosen = named or ("fork" if ours else "docker")
    name, colon, image = chosen.partition(":")
    if name not in BACKENDS or (colon and (name != "docker" or not image)):
        raise UsageError(
            f"--backend {chosen}: {name} is no backend; there are: {', '.join(sorted(BACKENDS))}; docker:IMAGE "
            "names an image"
        )
    try:
        container_of(chosen, language)
    except UsageError as error:
        others = "" if named else f"; or name --backend fork or local if {what} may run as you on this machine"
        raise UsageError(f"{error}{others}") from None
    return chosen


def kernels_of(backend: str) -> str:
    """The backend's name in nbagent_kernels: without the image."""
    return backend.partition(":")[0]


@functools.cache
def container_of(backend: str, language: str = "python", run: str = "") -> ContainerSettings | None:
    """The container of sessions on a backend; None for one without containers.

    Args:
        backend: `docker:IMAGE` names the image; plain `docker` takes one that fits the language.
        language: of the kernel.
        run: the run's name, as a label.

    Raises:
        UsageError: no engine, or no image; says how to get it. Or NBAGENT_WHEELS is no folder that anybody may read.
    """
    name, _, image = backend.partition(":")
    if name != "docker":
        return None
    names = (image,) if image else IMAGES.get(language.lower(), ("full",))
    missing: list[ImageError] = []
    for wanted in names:
        try:
            return ContainerSettings(require(wanted).id, profile(), run=run, wheels=wheels())
        except ImageMissing as error:
            missing.append(error)
        except ImageError as error:
            raise UsageError(f"backend docker: {error}") from None
    raise UsageError(f"backend docker: {missing[0]}")


def wheels() -> Path | None:
    """The folder that NBAGENT_WHEELS names; None where it names none.

    Raises:
        UsageError: it is no folder, or not open to the sandboxes' users, which are no users of this machine.
    """
    named = os.environ.get(WHEELS)
    if not named:
        return None
    folder = Path(named).absolute()
    if not folder.is_dir():
        raise UsageError(f"{WHEELS}={named}: no such folder; name one with wheels (.whl), or unset it")
    needed = [(folder, stat.S_IROTH | stat.S_IXOTH), *((wheel, stat.S_IROTH) for wheel in folder.glob("*.whl"))]
    if any(place.stat().st_mode & bits != bits for place, bits in needed):
        raise UsageError(f"{WHEELS}={named}: sandboxes may not read it, since not everybody may: chmod -R o+rX {named}")
    return folder
