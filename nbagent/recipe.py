"""Recipes: settings in TOML, validated; a mistake is one line saying where it is and what would be right."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from nbagent.errors import RecipeError

RecipeT = TypeVar("RecipeT", bound="Recipe")


class Recipe(BaseModel):
    """A table of settings. Unknown keys are errors, and nothing changes after loading.

    The string under each field says its unit and the reason for its default; it becomes the description.

    Example:
        >>> class Sampling(Recipe):
        ...     temperature: float = 1.0
        >>> Sampling(temperature=0.5).temperature
        0.5
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def load_recipe(path: Path, cls: type[RecipeT]) -> RecipeT:
    """Read a TOML recipe.

    Raises:
        RecipeError: the file is not there, is not TOML, or has a key or value that is not allowed. One line
            that names the file, the line, the key, and the nearest known key or the values allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; give the path of a TOML file") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: is a folder; give the path of a TOML file") from None
    except PermissionError:
        raise RecipeError(f"{path}: may not be read; check its permissions") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: is not UTF-8 text; a recipe is a TOML file") from None
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(_toml_message(path, text, str(error))) from None
    try:
        return cls.model_validate(table)
    except ValidationError as error:
        raise RecipeError(_validation_message(path, text, cls, error)) from None


def write_recipe(recipe: BaseModel, path: Path) -> None:
    """Write every setting, defaults included, as TOML that `load_recipe` reads back to an equal recipe.

    None has no form in TOML: such a key is left out, so a field that allows None must have it as its default.
    """
    path.write_text(to_toml(recipe.model_dump(mode="json")), encoding="utf-8")


def to_toml(table: dict[str, Any]) -> str:
    """TOML of a nested table of strings, numbers, booleans, lists and tables; keys with None are left out."""
    return "\n".join(_toml_lines(table, ())) + "\n"


def nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean …?` or, where nothing is near, what there is."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if match:
        return f"; did you mean {match[0]!r}?"
    return f"; there are: {', '.join(sorted(known))}" if known else ""


def _toml_lines(table: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    inner = {key: value for key, value in table.items() if isinstance(value, dict)}
    if path and (len(inner) < len(table) or not inner):
        yield f"\n[{'.'.join(_toml_key(part) for part in path)}]"
    for key, value in table.items():
        if value is not None and key not in inner:
            yield f"{_toml_key(key)} = {_toml_value(value)}"
    for key, value in inner.items():
        yield from _toml_lines(value, (*path, key))


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return f'"{"".join(_toml_character(c) for c in value)}"'
    if isinstance(value, dict):
        pairs = (f"{_toml_key(k)} = {_toml_value(v)}" for k, v in value.items() if v is not None)
        return f"{{{', '.join(pairs)}}}"
    return f"[{', '.join(_toml_value(item) for item in value)}]"


def _toml_character(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if character.isprintable() else f"\\U{ord(character):08X}"


def _toml_message(path: Path, text: str, message: str) -> str:
    place = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message)
    line = place[1] if place and place[1] else str(text.count("\n") + 1)
    return f"{path}:{line}: not TOML: {message[: place.start()] if place else message}"


def _validation_message(path: Path, text: str, cls: type[BaseModel], error: ValidationError) -> str:
    errors = error.errors(include_url=False)
    # An unknown key is most often a known one misspelt, and then explains a missing one.
    first = min(errors, key=lambda e: e["type"] != "extra_forbidden")
    loc = tuple(first["loc"])
    where = f"{path}:{_line_of(text, loc)}"
    name = ".".join(str(part) for part in loc)
    if first["type"] == "extra_forbidden":
        known = _fields_at(cls, loc[:-1])
        table = f" in [{'.'.join(str(part) for part in loc[:-1])}]" if len(loc) > 1 else ""
        what = f"unknown key {str(loc[-1])!r}{table}{nearest(str(loc[-1]), known)}"
    elif first["type"] == "missing":
        what = f"the key {name!r} is missing"
    else:
        allowed = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
        given = "" if isinstance(first["input"], dict | list) else f" = {first['input']!r}"
        what = f"{name}{given}: {allowed}" if name else allowed
        expected = re.findall(r"'([^']*)'", first["msg"]) if first["type"] in ("literal_error", "enum") else []
        if match := difflib.get_close_matches(str(first["input"]), expected, n=1):
            what += f"; did you mean {match[0]!r}?"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where}: {what}{more}".replace("\n", " ")


def _fields_at(cls: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Field names of the table at `loc`; tags of unions and indices of lists are passed over."""
    tables = [cls]
    for part in loc:
        inner = [
            found
            for table in tables
            if part in table.model_fields
            for found in _models_in(table.model_fields[str(part)].annotation)
        ]
        tables = inner or tables
    return sorted({name for table in tables for name in table.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _models_in(argument)]


def _line_of(text: str, loc: tuple[int | str, ...]) -> int:
    """The line of a key, 1-based; the line of its table where the key is not there, 1 where neither is."""
    keys = [part for part in loc if isinstance(part, str)]
    table: list[str] = []
    best, depth = 1, 0
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[+([^\[\]]+)\]+\s*(#.*)?$", line):
            table = [part.strip().strip("'\"") for part in header[1].split(".")]
            path = table
        elif assigned := re.match(r"\s*([\w\-'\".]+)\s*=", line):
            path = table + [part.strip().strip("'\"") for part in assigned[1].split(".")]
        else:
            continue
        if keys[: len(path)] == path and len(path) > depth:
            best, depth = number, len(path)
    return best
