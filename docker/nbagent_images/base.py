"""The layer of Debian packages below an image: from a public base image, or made here without any registry."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbagent_images.build import DEBIAN_LAYER, build
from nbagent_images.errors import BuildFailed
from nbagent_images.image import BASE_LABEL, Image, find
from nbagent_images.progress import Progress, follow
from nbagent_images.recipe import RECIPE_FOLDER

PUBLIC_BASE = "debian:bookworm-20250520-slim"
"""Debian's own image on Docker Hub, by date."""

DOCKERFILE = RECIPE_FOLDER / "Dockerfile.debian"
LEFT_OUT = ("man/*/*", "locale/*", "doc/*")
"""Files below /usr/share. Folders of man pages stay, because Java's package links into them."""


def debian(client: Any, packages: Sequence[str], base: str | None, fresh: bool, progress: Progress) -> Image:
    """The image with these packages; made only if it is not there.

    Args:
        client: a docker.DockerClient.
        packages: as apt takes them.
        base: a Debian bookworm image that apt can add them to over the network; None makes one with mmdebstrap.
        fresh: make it anew, with Debian's newest fixes.

    Raises:
        BuildFailed: a package is missing, or there is no mmdebstrap.
    """
    origin = base or "mmdebstrap"
    parts = (origin, *packages, *LEFT_OUT, DOCKERFILE.read_text(encoding="utf-8"))
    tag = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    name = f"{DEBIAN_LAYER}:{tag}"
    found = None if fresh else find(client, name)
    if found is not None:
        progress("Debian packages", f"{name} is there")
        return found
    if base is None:
        _bootstrap(client, packages, tag, progress)
    else:
        with tempfile.TemporaryDirectory(prefix="nbagent-build-") as scratch:
            shutil.copy2(DOCKERFILE, Path(scratch, "Dockerfile"))
            arguments = {"BASE": base, "PACKAGES": " ".join(packages)}
            build(client, Path(scratch), name, arguments, {BASE_LABEL: origin}, None, "Debian packages", progress)
    made = find(client, name)
    assert made is not None
    return made


def _bootstrap(client: Any, packages: Sequence[str], tag: str, progress: Progress) -> None:
    if shutil.which("mmdebstrap") is None:
        raise BuildFailed(
            "--offline needs mmdebstrap, which makes a Debian system from packages (apt install mmdebstrap); "
            "without --offline a public base image is used"
        )
    with tempfile.TemporaryDirectory(prefix="nbagent-build-") as scratch:
        tar = Path(scratch, "base.tar")
        command = ["mmdebstrap", "--variant=apt", "--include", ",".join(packages)]
        command += [f"--dpkgopt=path-exclude=/usr/share/{names}" for names in LEFT_OUT]
        command += ['--aptopt=APT::Install-Recommends "false"', "bookworm", str(tar)]
        follow([*command, str(RECIPE_FOLDER / "debian.sources")], "Debian packages", progress)
        progress("Debian packages", "handing them to the engine")
        changes = ["ENV LANG=C.UTF-8", f"LABEL {BASE_LABEL}=mmdebstrap"]
        client.api.import_image_from_file(str(tar), repository=DEBIAN_LAYER, tag=tag, changes=changes)
