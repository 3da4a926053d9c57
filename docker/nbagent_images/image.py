"""Images in the engine: found by name, never pulled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nbagent_images.engine import engine
from nbagent_images.errors import ImageMissing
from nbagent_images.recipe import RECIPES, Recipe

IMAGE_LABEL = "nbagent.image"
RECIPE_LABEL = "nbagent.recipe"
BASE_LABEL = "nbagent.base"
EXTRAS_LABEL = "nbagent.with"


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is in the engine.

    Example: `Image("nbagent-python:latest", "sha256:1f…", 1_034_000_000, {"nbagent.image": "python"})`.
    """

    name: str
    """Its name in the engine."""
    id: str
    """What it is, whatever its name comes to mean: start containers by it."""
    size_bytes: int
    """On the engine's disk, layers that it shares included."""
    labels: Mapping[str, str]
    """Its labels; `nbagent.image`, `nbagent.recipe`, `nbagent.base` and `nbagent.with` for those built here."""


def require(name: str, client: Any = None) -> Image:
    """The image of a recipe (`python`, `r`, `full`), or any other image of the engine by its name.

    Args:
        name: of a recipe, or of an image.
        client: a docker.DockerClient; a connection of its own if left out.

    Raises:
        ImageMissing: it is not there, or was built from an older recipe; says the command that builds it.
        EngineMissing, EngineForbidden: there is no engine to ask.
    """
    if client is None:
        with engine() as own:
            return require(name, own)
    recipe = RECIPES.get(name.removeprefix("nbagent-").removesuffix(":latest"))
    found = find(client, recipe.tag if recipe else name)
    if found is None and recipe:
        raise ImageMissing(f"there is no image {recipe.tag} in this engine; build it: {command(recipe)}")
    if found is None and not name.strip():
        raise ImageMissing(f"an image has a name: {', '.join(RECIPES)}, or that of an image in the engine")
    if found is None:
        raise ImageMissing(
            f"there is no image {name} in this engine, and none is pulled unasked: docker pull {name}, or build one: "
            f"nbagent sandbox build --image {'|'.join(RECIPES)}"
        )
    if recipe and found.labels.get(RECIPE_LABEL) != recipe.digest():
        raise ImageMissing(
            f"the image {recipe.tag} is not from this version's recipe; build it again: "
            f"{command(recipe, found.labels.get(EXTRAS_LABEL, ''))}"
        )
    return found


def find(client: Any, name: str) -> Image | None:
    """The image of this name, or None."""
    from docker.errors import APIError, ImageNotFound

    if not name.strip():
        return None  # the SDK would ask the engine for nothing
    try:
        there = client.images.get(name)
    except ImageNotFound:
        return None
    except APIError as error:
        if error.is_client_error():  # no image could have such a name
            return None
        raise
    labels = there.attrs.get("Config", {}).get("Labels") or {}
    return Image(name, there.id, there.attrs["Size"], labels)


def command(recipe: Recipe, extras: str = "") -> str:
    """The command that builds an image; `extras` are separated by spaces."""
    return " ".join(["nbagent sandbox build --image", recipe.name, *(f"--with {extra}" for extra in extras.split())])


def size(n_bytes: int) -> str:
    """Bytes for people, in powers of ten as the engine counts: `1.03 GB`."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"
