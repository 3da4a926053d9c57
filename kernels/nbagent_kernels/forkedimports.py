"""Imports from one file, where the image brings one (docker/nbagent_images/inside/pack_imports.py says what is in it).

What a kernel imports at its start are some three hundred small files and a hundred regular expressions. A fork server
that serves one session spends a fifth of that time on finding, reading and compiling them.
"""

from __future__ import annotations

import _sre  # type: ignore[import-not-found]
import contextlib
import importlib.machinery
import marshal
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

PACK = Path("/opt/nbagent/imports")


class PackedLoader(importlib.machinery.SourceFileLoader):
    """Loads a module from its file, but for the code, which is there already."""

    def __init__(self, name: str, path: str, code: bytes) -> None:
        super().__init__(name, path)
        self._code = code

    def get_code(self, fullname: str) -> CodeType | None:
        """The module's code, as its file has it."""
        return marshal.loads(self._code)  # type: ignore[no-any-return]


class Finder:
    """Finds the modules of a pack.

    Args:
        modules: name -> (file, whether it is a package, its marshalled code).
    """

    def __init__(self, modules: dict[str, tuple[str, bool, bytes]]) -> None:
        self._modules = modules

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """As the import system wants it."""
        if name not in self._modules:
            return None
        file, is_package, code = self._modules[name]
        loader = PackedLoader(name, file, code)
        spec = importlib.machinery.ModuleSpec(name, loader, origin=file, is_package=is_package)
        spec.has_location = True
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(file.rpartition("/")[0])
        return spec


@contextlib.contextmanager
def packed(path: Path = PACK) -> Iterator[None]:
    """Import from a pack meanwhile; as always where there is none, or one of another interpreter."""
    pack: Any = None
    with contextlib.suppress(OSError, ValueError, EOFError, TypeError):
        pack = marshal.loads(path.read_bytes())
    if not isinstance(pack, dict) or pack.get("version") != sys.version:
        yield
        return
    cache: dict[Any, Any] = re._cache  # type: ignore[attr-defined]
    for (pattern, flags), given in pack["patterns"]:
        cache.setdefault((type(pattern), pattern, flags), _sre.compile(*given))
    finder = Finder(pack["modules"])
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
