"""The layer of Python packages below an image: installed from wheels with the hashes of the recipe's lock file."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from nbagent_images.build import PYTHON_LAYER, build
from nbagent_images.image import Image, find
from nbagent_images.progress import Progress
from nbagent_images.recipe import RECIPE_FOLDER, Recipe
from nbagent_images.wheels import download

DOCKERFILE = RECIPE_FOLDER / "Dockerfile.python"


def python(client: Any, recipe: Recipe, below: Image, fresh: bool, progress: Progress) -> Image:
    """The image with the recipe's Python packages; made only if it is not there.

    Args:
        client: a docker.DockerClient.
        below: the image with Debian's packages.
        fresh: make it anew.

    Raises:
        BuildFailed: a wheel is missing, or is not the one that the lock file means.
    """
    key = hashlib.sha256(below.id.encode() + recipe.lock.read_bytes() + DOCKERFILE.read_bytes()).hexdigest()[:12]
    name = f"{PYTHON_LAYER}:{key}"
    found = None if fresh else find(client, name)
    if found is not None:
        progress("Python packages", f"{name} is there")
        return found
    with tempfile.TemporaryDirectory(prefix="nbagent-build-") as scratch:
        context = Path(scratch)
        (context / "wheels").mkdir()
        download(["--require-hashes", "--no-deps", "-r", str(recipe.lock)], context / "wheels", progress)
        shutil.copy2(DOCKERFILE, context / "Dockerfile")
        shutil.copy2(recipe.lock, context / "requirements.lock")
        build(client, context, name, {"BASE": below.id}, {}, "none", "Python packages", progress)
    made = find(client, name)
    assert made is not None
    return made
