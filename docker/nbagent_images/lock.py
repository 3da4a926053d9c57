"""Writes recipes/python/*.lock anew from the versions asked for: `python -m nbagent_images.lock`.

Run it after changing a version in recipes/python/*.txt, and read the difference before committing it.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from nbagent_images.recipe import RECIPE_FOLDER
from nbagent_images.wheels import PIP, TARGET

HEAD = "# Made by `python -m nbagent_images.lock`; the versions asked for are in {}.\n"


def resolve(requirements: Path) -> str:
    """The text of a lock file: every package with its version and the hash of its wheel, as pip finds them now."""
    words = ("install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-")
    with tempfile.TemporaryDirectory() as nowhere:
        report = subprocess.run(
            [*PIP, *words, "--target", nowhere, *TARGET, "-r", str(requirements)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    found = sorted(json.loads(report)["install"], key=lambda each: str(each["metadata"]["name"]).lower())
    lines = [
        f"{each['metadata']['name'].lower()}=={each['metadata']['version']} "
        f"--hash=sha256:{each['download_info']['archive_info']['hashes']['sha256']}"
        for each in found
    ]
    return HEAD.format(requirements.name) + "\n".join(lines) + "\n"


def main() -> None:
    """Write every lock file."""
    for requirements in sorted((RECIPE_FOLDER / "python").glob("*.txt")):
        requirements.with_suffix(".lock").write_text(resolve(requirements), encoding="utf-8")


if __name__ == "__main__":
    main()
