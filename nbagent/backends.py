"""Which backend runs whose code, and in which container."""

from __future__ import annotations

import functools
import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from nbagent.errors import UsageError
from nbagent_images import ImageError, ImageMissing, profile, require
from nbagent_images.engine import is_local
from nbagent_kernels import BACKENDS, Limits
from nbagent_kernels.confinement import gaps
from nbagent_kernels.types import ContainerSettings

WHEELS = "NBAGENT_WHEELS"
"""Environment variable: a folder of wheels from which `pip install` in a container takes packages."""
SETTINGS = ("memory", "cpus", "work")
"""What may follow a backend's name; all but the first are a container's."""
LEAST = {"memory": 0.25, "cpus": 0.01, "work": 0.001}
"""Least values, in GiB and processors. Kernels of Python and R start with a memory of 0.25, R's with no half of that.
With 0.01 processors they need 50 s of the 60 that they have. What rounds to 0 would have no bound at all."""
LEAST_LOCAL = 0.75
"""GiB of memory for the backend local, whose new interpreters cannot map all that they load in 0.5."""
MOST = float(1 << 20)
"""GiB, or processors of an engine elsewhere; far more is no number to any engine."""
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


@dataclass(frozen=True, slots=True)
class Place:
    """Where cells run, as `--backend` says it: `docker:IMAGE,memory=8,cpus=2,work=4`, or less; the name is enough."""

    name: str
    """In nbagent_kernels."""
    image: str = ""
    """Of docker; empty: one that fits the language."""
    memory: float | None = None
    """GiB that a session may take; None: the kernels' own limit."""
    cpus: float | None = None
    """Processors of a container; None: the kernels' own limit."""
    work: float | None = None
    """GiB of files in a container's working directory, which count as memory; None: the kernels' own limit."""

    @classmethod
    @functools.cache
    def of(cls, backend: str) -> Place:
        """What a text says. Raises UsageError, also for what no kernel starts with or the engine would refuse."""
        where, *settings = backend.split(",")
        name, colon, image = where.partition(":")
        if name not in BACKENDS or (colon and (name != "docker" or not image)):
            raise UsageError(
                f"--backend {backend}: {name} is no backend; there are: {', '.join(sorted(BACKENDS))}; docker:IMAGE "
                "names an image"
            )
        known = SETTINGS if name == "docker" else SETTINGS[:1]
        numbers: dict[str, float] = {}
        for setting in settings:
            key, _, number = setting.partition("=")
            try:
                numbers[key] = float(number)
            except ValueError:
                numbers[key] = 0.0
            if key not in known or not 0 < numbers[key] < float("inf"):
                raise UsageError(
                    f"--backend {backend}: {setting} says nothing to {name}; it takes numbers for "
                    f"{', '.join(known)}, such as {name},{known[-1]}=2"
                )
            least, most, unit = bounds(name, key)
            if not least <= numbers[key] <= most:
                raise UsageError(f"--backend {backend}: {setting} is not within {least:g} to {most:.7g} {unit}")
        return cls(name, image, **numbers)


def bounds(name: str, setting: str) -> tuple[float, float, str]:
    """Least and largest value of a backend's setting, and their unit in words."""
    if setting != "cpus":
        return LEAST_LOCAL if (name, setting) == ("local", "memory") else LEAST[setting], MOST, "GiB"
    if is_local():
        return LEAST[setting], float(os.cpu_count() or 1), "processors, as many as this machine has"
    return LEAST[setting], MOST, "processors"


def choose_backend(named: str | None, what: str, ours: bool, language: str = "python", used: bool = True) -> str:
    """The backend for some code: the one named; else `docker`, or `fork` for code of a model made here from nothing.

    Args:
        named: by the user; None where nothing was said.
        what: whose code it is, for the message: a model or a notebook.
        ours: True where the code can do nothing that we did not teach it.
        language: of the code.
        used: False where no session will be opened: then nobody is asked for an engine.

    Raises:
        UsageError: a backend that is not there, or docker without an engine or an image.
    """
    chosen = named or ("fork" if ours else "docker")
    Place.of(chosen)
    try:
        if used:
            container_of(chosen, language)
    except UsageError as error:
        others = "" if named else f"; or name --backend fork or local if {what} may run as you on this machine"
        raise UsageError(f"{error}{others}") from None
    return chosen


def kernels_of(backend: str) -> str:
    """The backend's name in nbagent_kernels: without the image and the settings."""
    return Place.of(backend).name


def limits_of(backend: str, limits: Limits | None = None) -> Limits:
    """What a session on a backend may use: these limits, or the kernels' own, with what the backend's text sets."""
    limits, memory = limits or Limits(), Place.of(backend).memory
    return limits if memory is None else replace(limits, memory_bytes=int(memory * (1 << 30)))


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
    place = Place.of(backend)
    if place.name != "docker":
        return None
    names = (place.image,) if place.image else IMAGES.get(language.lower(), ("full",))
    missing: list[ImageError] = []
    for wanted in names:
        try:
            made = ContainerSettings(require(wanted).id, profile(), run=run, wheels=wheels())
        except ImageMissing as error:
            missing.append(error)
        except ImageError as error:
            raise UsageError(f"backend docker: {error}") from None
        else:
            work = made.work_bytes if place.work is None else int(place.work * (1 << 30))
            return replace(made, cpus=place.cpus or made.cpus, work_bytes=work)
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
