"""Errors of images; each is also the builtin that fits, and all of them pickle.

ImageError
├── EngineMissing (also ConnectionError)     no Docker engine answers; says where it was looked for
├── EngineForbidden (also PermissionError)   an engine is there, and this user may not use it
├── ImageMissing (also LookupError)          an image is not there, or from an older recipe; says how to build it
└── BuildFailed (also RuntimeError)          a step of a build failed; says which, and its last lines
"""

from __future__ import annotations


class ImageError(Exception):
    """Root of this package's errors."""


class EngineMissing(ImageError, ConnectionError):
    """No Docker engine answers."""


class EngineForbidden(ImageError, PermissionError):
    """This user may not use the engine."""


class ImageMissing(ImageError, LookupError):
    """An image is not in the engine. Nothing is ever pulled because a name was not found."""


class BuildFailed(ImageError, RuntimeError):
    """A step of a build failed."""
