"""Images built from small recipes, and containers as a sandbox has them."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nbagent_images import RECIPES, Image, Recipe, profile
from nbagent_images.base import PUBLIC_BASE
from nbagent_images.make import make

Run = Callable[..., tuple[int, str]]
BASE = None if shutil.which("mmdebstrap") else PUBLIC_BASE
"""As the machine can: made here, or a public image."""
TMPFS = "rw,exec,nosuid,nodev,size=512m,mode=1777"


@pytest.fixture(scope="session")
def made(client: Any, small: Recipe) -> Callable[..., Image]:
    """Builds the small recipe, with extras."""
    return lambda *extras: make(client, small, BASE, extras, False, print)


@pytest.fixture(scope="session")
def wheel() -> Callable[..., None]:
    """Writes a wheel that holds one module."""

    def write(folder: Path, name: str, code: str) -> None:
        about = f"{name}-1.0.dist-info"
        files = {
            f"{name}.py": code,
            f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
            f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{about}/RECORD": f"{name}.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n",
        }
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as packed:
            for path, text in files.items():
                packed.writestr(path, text)

    return write


@pytest.fixture(scope="session")
def small(client: Any) -> Iterator[Recipe]:
    """A recipe that shares all but its last layer with the image r; what was built from it is removed at the end."""
    recipe = replace(RECIPES["r"], name="test")
    yield recipe
    for tagged in client.images.list(recipe.tag):
        client.images.remove(tagged.id, force=True)


@pytest.fixture
def run(client: Any) -> Run:
    """Runs a command in a container without network, and gives its status and all that it printed."""

    def inside(
        image: str, command: Sequence[str], seccomp: str | None = None, folders: dict[Path, str] | None = None
    ) -> tuple[int, str]:
        container = client.containers.create(
            image,
            list(command),
            network_mode="none",
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true", f"seccomp={seccomp or profile()}"],
            user="200001:200001",
            init=True,
            pids_limit=256,
            mem_limit="2g",
            memswap_limit="2g",
            tmpfs={"/tmp": TMPFS, "/work": TMPFS},
            volumes={str(path): {"bind": at, "mode": "ro"} for path, at in (folders or {}).items()},
            labels={"nbagent.test": "images"},
        )
        try:
            container.start()
            return container.wait(timeout=300)["StatusCode"], container.logs().decode()
        finally:
            container.remove(force=True)

    return inside
