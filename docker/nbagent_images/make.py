"""`make`: an image from its recipe, every step of it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbagent_images.base import debian
from nbagent_images.build import build, building, fill, prune
from nbagent_images.errors import BuildFailed
from nbagent_images.image import BASE_LABEL, EXTRAS_LABEL, IMAGE_LABEL, RECIPE_LABEL, Image, find
from nbagent_images.packages import python
from nbagent_images.progress import Progress
from nbagent_images.recipe import Recipe
from nbagent_images.wheels import collect

MACHINES = ("x86_64", "amd64")
APT = "apt:"


def make(
    client: Any, recipe: Recipe, base: str | None, extras: Sequence[str], fresh: bool, progress: Progress
) -> Image:
    """Build the image of a recipe, or find it built already.

    Args:
        client: a docker.DockerClient.
        base: a Debian bookworm image; None makes one with mmdebstrap, so that no registry is asked.
        extras: Python requirements, folders of wheels, and Debian packages as `apt:NAME`.
        fresh: build from the ground up even if all of it is there.

    Raises:
        BuildFailed: a step failed; says which and why.
    """
    machine = client.info()["Architecture"]
    if machine not in MACHINES:
        raise BuildFailed(f"images are for x86_64 only, and this engine's machine is {machine}")
    packages = recipe.packages() + sorted(extra.removeprefix(APT) for extra in extras if extra.startswith(APT))
    with building() as alone:
        try:
            below = debian(client, packages, base, fresh, progress)
            stack = python(client, recipe, below, fresh, progress)
            with tempfile.TemporaryDirectory(prefix="nbagent-build-") as scratch:
                context = Path(scratch)
                (context / "extras").mkdir()
                wanted = [extra for extra in extras if not extra.startswith(APT)]
                requirements = collect(recipe, wanted, context / "extras", progress)
                given = [*requirements, *(extra for extra in extras if extra.startswith(APT))]
                fill(context, recipe, requirements, given)
                labels = {
                    IMAGE_LABEL: recipe.name,
                    RECIPE_LABEL: recipe.digest(),
                    BASE_LABEL: below.labels.get(BASE_LABEL, ""),
                    EXTRAS_LABEL: " ".join(given),
                }
                build(client, context, recipe.tag, {"BASE": stack.id}, labels, "none", "image", progress)
        finally:
            if alone():
                prune(client)
    made = find(client, recipe.tag)
    assert made is not None
    return made
