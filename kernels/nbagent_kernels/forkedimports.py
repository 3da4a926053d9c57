"""Imports from one file, where the image brings one (docker/nbagent_images/inside/pack_imports.py says what is in it).

What a kernel imports at its start are some three hundred small files and a hundred regular expressions. A fork server
that serves one session spends a fifth of that time on finding, reading and compiling them.
"""

from __future__ import annotations

import _sre  # type: ignore[import-not-found]
import contextlib
import importlib.machinery
import marshal
import mmap
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

PACK = Path("/opt/nbagent/imports")


class PackedLoader(importlib.machinery.SourceFileLoader):
    """Loads a module from its file, but for the code, which is in the pack; once that is closed, altogether."""

    def __init__(self, name: str, path: str, pack: Pack) -> None:
        super().__init__(name, path)
        self._pack = pack

    def get_code(self, fullname: str) -> CodeType | None:
        """The module's code, as its file has it."""
        return super().get_code(fullname) if self._pack.mapped.closed else self._pack.code(fullname)


class Pack:
    """Finds the modules of a pack, as the import system wants it.

    Attributes:
        mapped: the file.
        index: what is in it.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError, ValueError, EOFError, TypeError or LookupError: it is no pack, or another interpreter's."""
        with path.open("rb") as file:
            self.mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self._begin = 8 + int.from_bytes(self.mapped[:8], "little")
            self.index: dict[str, Any] = marshal.loads(self.mapped[8 : self._begin])
            if self.index["version"] != sys.version:
                raise ValueError("another interpreter's")
        except BaseException:
            self.mapped.close()
            raise

    def code(self, name: str) -> CodeType:
        """A module's code."""
        _, _, begin, end = self.index["modules"][name]
        with memoryview(self.mapped) as whole, whole[self._begin + begin : self._begin + end] as part:
            return marshal.loads(part)  # type: ignore[no-any-return]

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Where a module of the pack is; None for others."""
        if name not in self.index["modules"]:
            return None
        file, is_package, *_ = self.index["modules"][name]
        spec = importlib.machinery.ModuleSpec(name, PackedLoader(name, file, self), origin=file, is_package=is_package)
        spec.has_location = True
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(file.rpartition("/")[0])
        return spec


@contextlib.contextmanager
def packed(path: Path = PACK) -> Iterator[None]:
    """Import from a pack meanwhile; as always where there is none, or one of another interpreter."""
    try:
        pack = Pack(path)
    except (OSError, ValueError, EOFError, TypeError, LookupError):
        yield
        return
    cache: dict[Any, Any] = re._cache  # type: ignore[attr-defined]
    for (pattern, flags), given in pack.index["patterns"]:
        cache.setdefault((type(pattern), pattern, flags), _sre.compile(*given))
    sys.meta_path.insert(0, pack)
    try:
        yield
    finally:
        sys.meta_path.remove(pack)
        pack.mapped.close()
