"""Images for Docker sandboxes: their recipes as package data, how they are built, found and confined.

Nothing here starts a sandbox. A backend asks `require` for an image and `profile` for the seccomp profile, and
mounts what its kernels need read-only at `KERNEL_FILES`, which is an empty folder in every image.
"""

from __future__ import annotations

from nbagent_images.errors import BuildFailed, EngineForbidden, EngineMissing, ImageError, ImageMissing
from nbagent_images.image import Image, require
from nbagent_images.recipe import KERNEL_FILES, PYTHON, RECIPES, WHEELS, Recipe
from nbagent_images.seccomp import profile

__all__ = [
    "KERNEL_FILES",
    "PYTHON",
    "RECIPES",
    "WHEELS",
    "BuildFailed",
    "EngineForbidden",
    "EngineMissing",
    "Image",
    "ImageError",
    "ImageMissing",
    "Recipe",
    "profile",
    "require",
]
