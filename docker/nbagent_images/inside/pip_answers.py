"""`python -m pip` in a sandbox: the real pip, and after it an answer to what it could not install.

A sandbox has no network. Real pip, told so by /etc/pip.conf, fails at once, but does not say what to do. Words and
requirement files are read as it reads them: by its own parsers, of the version that the image's lock file names.
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

REAL_PIP = "/opt/pip/pip"
ABOUT = Path("/opt/nbagent")
WHEELS = Path("/wheels")
VERBS = {"install", "download", "wheel"}
APT = "apt:"
ARCHIVES = (".whl", ".zip", ".tar.gz", ".tgz", ".tar.bz2")
"""Ends of words that pip takes for files, though they could be names."""


def main() -> int:
    """Run the real pip with the same words; its exit status."""
    words = sys.argv[1:]
    if words == ["--say-how-to-add"]:
        print(how_to_add(), flush=True)
        return 1
    status = subprocess.run([sys.executable, REAL_PIP, *words], check=False).returncode
    if status and VERBS & set(words):
        print(how_to_add(words), file=sys.stderr, flush=True)
    return status


def how_to_add(words: list[str] | None = None) -> str:
    """What is there, and how whoever owns the sandbox adds more."""
    asked = Asked()
    if words:
        asked.read(words)
    wheels = sorted(path.name for path in WHEELS.glob("*.whl")) if WHEELS.is_dir() else []
    said = [
        "This sandbox has no network: only what it holds can be used.",
        *asked.remarks,
        f"Installed: {', '.join(installed())}, and what they need ('pip list' shows all).",
        f"Wheels in {WHEELS}: {', '.join(wheels) or 'none'}.",
    ]
    if asked.lacking or asked.unclear or not asked.remarks:
        names = {named(requirement) for requirement in asked.lacking}
        kept = (line for line in lines("with") if line.startswith(APT) or named(line) not in names)
        extras = [shlex.quote(extra) for extra in (*kept, *asked.lacking)] + ([] if asked.lacking else ["PACKAGE"])
        said.append(
            "To add a package, the owner of this sandbox names a folder of wheels in NBAGENT_WHEELS, which is mounted "
            f"there, or builds it into the image: nbagent sandbox build --image {lines('image')[0]}"
            + "".join(f" --with {extra}" for extra in extras)
        )
    return "\n".join(said)


class Asked:
    """What was asked of pip, against what is here.

    Attributes:
        lacking: requirements that are not met, as `--with` takes them.
        remarks: a sentence on each of the others, and on each file that cannot be read.
        unclear: whether there was more than can be told by a package's name.
    """

    def __init__(self) -> None:
        self.lacking: list[str] = []
        self.remarks: list[str] = []
        self.unclear = False
        self._requirements = real("_vendor.packaging.requirements")

    def read(self, words: list[str]) -> None:
        """Take in the words that pip was given. Those that pip itself could not read say nothing."""
        words = list(words)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), suppress(SystemExit):
            verb = real("_internal.cli.main_parser").create_main_parser().parse_args(list(words))[1][0]
            words.remove(verb)
            if verb not in VERBS:
                return
            options, given = real("_internal.commands").create_command(verb).parse_args(words)
            for requirement in given:
                self._take(requirement)
            chosen = vars(options)  # not every verb has every option
            for file in chosen.get("requirements", ()):
                self._read_file(file)
            self.unclear = self.unclear or bool(chosen.get("editables"))

    def _read_file(self, file: str) -> None:
        try:
            for line in real("_internal.req.req_file").parse_requirements(file, Offline()):
                if line.is_editable:
                    self.unclear = True
                elif not line.constraint:
                    self._take(line.requirement)
        except (real("_internal.exceptions").PipError, OSError, UnicodeError) as error:
            self.unclear = True
            self.remarks.append(f"The requirements in {file} could not be read: {error}.")

    def _take(self, text: str) -> None:
        try:
            requirement = self._requirements.Requirement(text)
        except self._requirements.InvalidRequirement:
            self.unclear = True
            return
        if requirement.name.lower().endswith(ARCHIVES):
            self.unclear = True
        elif requirement.marker is None or requirement.marker.evaluate():
            lacking, remark = self._judged(requirement)
            self.lacking += [lacking] if lacking and lacking not in self.lacking else []
            self.remarks += [remark] if remark and remark not in self.remarks else []

    def _judged(self, requirement: Any) -> tuple[str, str]:
        """What `--with` needs to name, and what is to be said; either may be ''."""
        extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        needed = f"{requirement.name}{extras}{requirement.specifier}"
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError:
            return needed, ""
        here = f"{requirement.name} {found.version} is installed"
        if not requirement.specifier.contains(found.version, prereleases=True):
            if Path(str(found.locate_file(""))).is_relative_to(sys.prefix):
                return "", (
                    f"{here}, not {requirement.specifier}. The image's recipe pins it, and --with takes no other "
                    "version: use the one that is installed."
                )
            return needed, f"{here}, not {requirement.specifier}."
        if any(self._judged(more)[0] for more in self._of_extras(found, requirement.extras)):
            return needed, f"{here}, without all that {requirement.name}{extras} needs."
        return "", f"{here}."

    def _of_extras(self, found: Any, extras: set[str]) -> Iterator[Any]:
        for more in map(self._requirements.Requirement, found.requires or ()):
            if more.marker is not None and any(more.marker.evaluate({"extra": extra}) for extra in extras):
                yield more


class Offline:
    """Stands where pip's parser takes a connection, for requirements at an address."""

    def get(self, url: str) -> Any:
        """Raises OSError."""
        raise OSError("there is no network")


def real(module: str) -> Any:
    """A module of the real pip, which this file's package hides."""
    place = str(Path(REAL_PIP).parent)
    if place not in sys.path:
        sys.path.insert(0, place)
        sys.modules.pop("pip", None)
    return import_module(f"pip.{module}")


def installed() -> Iterator[str]:
    """The packages that the image was asked to have, as `name 1.2`."""
    for name in sorted({named(line) for line in (*lines("requirements.txt"), *lines("with"))} - {"pip"}):
        with suppress(PackageNotFoundError):
            yield f"{name} {version(name)}"


def named(requirement: str) -> str:
    """The name in `name[extra]>=1`, as packages are compared."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


def lines(name: str) -> list[str]:
    """What the image knows of itself."""
    return (ABOUT / name).read_text(encoding="utf-8").split("\n")[:-1]


if __name__ == "__main__":
    sys.exit(main())
