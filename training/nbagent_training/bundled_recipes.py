"""The recipes that come with the program, by name."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def bundled_recipes() -> dict[str, Path]:
    """Their files by name, sorted; the first line of each says what it is."""
    folder = Path(str(files("nbagent_training") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def recipe_path(named: str) -> Path:
    """The file of a recipe that is named by its path, or by the name of a bundled one; a file goes first."""
    path = Path(named)
    return path if path.exists() else bundled_recipes().get(named, path)
