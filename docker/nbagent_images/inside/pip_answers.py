"""`python -m pip` in a sandbox: the real pip, and after it an answer to what it could not install.

A sandbox has no network. Real pip, told so by /etc/pip.conf, fails at once, but does not say what to do.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REAL_PIP = "/opt/pip/pip"
ABOUT = Path("/opt/nbagent")
WHEELS = Path("/wheels")
VERBS = {"install", "download", "wheel"}


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
    wanted = [shlex.quote(word) for word in words or [] if word not in VERBS and lacking(word)]
    command = " --with ".join(
        (f"nbagent sandbox build --image {lines('image')[0]}", *lines("with"), *(wanted or ["PACKAGE"]))
    )
    wheels = sorted(path.name for path in WHEELS.glob("*.whl")) if WHEELS.is_dir() else []
    return "\n".join(
        (
            "This sandbox has no network: only what it holds can be used.",
            f"Installed: {', '.join(installed())}, and what they need ('pip list' shows all).",
            f"Wheels in {WHEELS}: {', '.join(wheels) or 'none'}.",
            "To add a package, the owner of this sandbox names a folder of wheels in NBAGENT_WHEELS, which is "
            "mounted there, or builds it into the image: " + command,
        )
    )


def lacking(word: str) -> bool:
    """True for a requirement by name of a package that is not here."""
    if not word[:1].isalnum() or "/" in word:
        return False
    try:
        version(named(word))
    except PackageNotFoundError:
        return True
    return False


def installed() -> Iterator[str]:
    """The packages that the image was asked to have, as `name 1.2`."""
    for name in sorted({named(line) for line in (*lines("requirements.txt"), *lines("with"))} - {"pip"}):
        with suppress(PackageNotFoundError):
            yield f"{name} {version(name)}"


def named(requirement: str) -> str:
    """The name in `name[extra]>=1`."""
    return re.split(r"[^\w.-]", requirement)[0]


def lines(name: str) -> list[str]:
    """What the image knows of itself."""
    return (ABOUT / name).read_text(encoding="utf-8").split("\n")[:-1]


if __name__ == "__main__":
    sys.exit(main())
