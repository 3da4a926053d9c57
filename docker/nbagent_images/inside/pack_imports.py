"""Puts what a Python kernel imports at its start into one file, from which a sandbox's fork server takes it.

    pack_imports.py OUT

Run by the image's own interpreter when the image is built. OUT holds, one after the other, eight bytes (the length of
what follows, least byte first), a marshalled dictionary, and the marshalled code of all modules:

    "version"   sys.version of that interpreter, which alone may use it
    "modules"   name -> (file, whether it is a package, where its code begins and ends after the dictionary)
    "patterns"  for each regular expression that importing compiles: the key in re's cache, what _sre.compile takes

A fork server then neither looks for some three hundred files nor compiles a hundred expressions.
"""

from __future__ import annotations

import _sre  # type: ignore[import-not-found]
import importlib
import marshal
import re
import sys
from pathlib import Path
from typing import Any

MODULES = (
    "ipykernel.debugger",
    "ipykernel.ipkernel",
    "ipykernel.kernelapp",
    "jupyter_client.session",
    # What making the shell imports, and the fork server's own files.
    "IPython.core.completerlib",
    "IPython.core.logger",
    "IPython.core.oinspect",
    "bdb",
    "secrets",
)


def main(out: Path) -> None:
    """Import, and write what came of it."""
    made: dict[int, tuple[Any, ...]] = {}
    compile_pattern = _sre.compile

    def recorded(*given: Any) -> re.Pattern[Any]:
        """An expression, and what it was made of."""
        pattern: re.Pattern[Any] = compile_pattern(*given)
        source, flags, code, *groups = given
        made[id(pattern)] = source, int(flags), [int(word) for word in code], *groups  # re's own kinds of int
        return pattern

    re.purge()
    _sre.compile = recorded
    sys.modules["debugpy"] = None  # type: ignore[assignment]  # as the fork server does, which has no debugger
    for name in MODULES:
        importlib.import_module(name)
    modules, codes = {}, bytearray()
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        if spec is not None and spec.name == name and (spec.origin or "").endswith(".py"):
            begin = len(codes)
            codes += marshal.dumps(spec.loader.get_code(name))
            modules[name] = spec.origin, spec.submodule_search_locations is not None, begin, len(codes)
    patterns = [
        ((source, int(flags)), made[id(pattern)])
        for (_, source, flags), pattern in re._cache.items()  # type: ignore[attr-defined]
        if id(pattern) in made
    ]
    index = marshal.dumps({"version": sys.version, "modules": modules, "patterns": patterns})
    out.write_bytes(len(index).to_bytes(8, "little") + index + codes)
    print(f"{len(modules)} modules and {len(patterns)} expressions, {out.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
