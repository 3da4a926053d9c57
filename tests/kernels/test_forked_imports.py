"""What a kernel imports at its start comes from one file of the image, and is as it would have been without."""

from __future__ import annotations

import importlib
import marshal
import re
import sys
import types
from pathlib import Path

import pytest
from conftest import container
from kernel_probes import text

from nbagent_kernels import SessionSpec
from nbagent_kernels.forkedimports import PackedLoader, packed

LOOK = """
import inspect, sys
kinds = {}
for name, module in list(sys.modules.items()):
    kinds.setdefault(type(getattr(module, "__loader__", None)).__name__, []).append(name)
print(sorted(kinds["PackedLoader"])[:2], len(kinds["PackedLoader"]) > 250)
print([finder for finder in sys.meta_path if type(finder).__name__ == "Pack"])
import IPython.core.interactiveshell as shell
print(shell.__file__, shell.__cached__.endswith(".pyc"), shell.__spec__.parent)
print("class InteractiveShell" in inspect.getsource(shell))
"""
BESIDE = """
import sys
print([name for name, module in sys.modules.items()
       if type(getattr(module, "__loader__", None)).__name__ == "SourceFileLoader" and not name.startswith("_nbagent")])
"""
EARLY = 60
"""Modules that Python and the fork server themselves import before."""


@pytest.fixture
def backend():
    return "docker"


@pytest.mark.docker
@pytest.mark.asyncio(loop_scope="module")
async def test_a_kernel_in_a_container_starts_from_the_pack(opened):
    container("python")
    session = await opened(SessionSpec(preload=()))
    # First, for looking imports more.
    beside = text((await session.execute(BESIDE)).outputs)
    said = text((await session.execute(LOOK)).outputs).splitlines()
    assert said[0] == "['IPython', 'IPython.core'] True"
    assert said[1] == "[]"
    assert said[2].endswith("IPython/core/interactiveshell.py True IPython.core")
    assert said[3] == "True"
    assert beside.count("'") // 2 < EARLY, f"the pack lacks what the kernel imports: {beside}"


def pack(tmp_path, **changed):
    """A pack of a package with one module."""
    code = marshal.dumps(compile("from packedhere import inner\nvalue = 6 * inner.seven", "made", "exec"))
    inner = marshal.dumps(compile("seven = 7", "made", "exec"))
    modules = {
        "packedhere": (f"{tmp_path}/packedhere/__init__.py", True, 0, len(code)),
        "packedhere.inner": (f"{tmp_path}/packedhere/inner.py", False, len(code), len(code) + len(inner)),
    }
    index = marshal.dumps({"version": sys.version, "modules": modules, "patterns": [], **changed})
    path = tmp_path / "pack"
    path.write_bytes(len(index).to_bytes(8, "little") + index + code + inner)
    return path


@pytest.fixture
def without():
    yield
    for name in ("packedhere", "packedhere.inner"):
        sys.modules.pop(name, None)


def test_a_package_and_its_modules_come_from_a_pack(tmp_path, without, monkeypatch):
    before = list(sys.meta_path)
    with packed(pack(tmp_path)):
        made = importlib.import_module("packedhere")
    assert (made.value, made.__path__, made.inner.__package__) == (42, [f"{tmp_path}/packedhere"], "packedhere")
    assert isinstance(made.__loader__, PackedLoader)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "packedhere").mkdir()
    (tmp_path / "packedhere" / "__init__.py").write_text("value = 43")
    assert importlib.reload(made).value == 43, "later, a module is what its file is"
    assert sys.meta_path == before
    assert not [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("/pack")]


def test_expressions_come_from_a_pack(tmp_path):
    import _sre

    given = []
    real = _sre.compile
    re.purge()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sre, "compile", lambda *words: given.append(words) or real(*words))
        wanted = re.compile("(?P<a>x)|[a-c]+", re.I)
    source, flags, code, *groups = given[0]
    kept = ((source, int(re.I)), (source, int(flags), [int(word) for word in code], *groups))
    re.purge()
    with packed(pack(tmp_path, patterns=[kept])), pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sre, "compile", lambda *words: pytest.fail("compiled again"))
        found = re.compile("(?P<a>x)|[a-c]+", re.I)
    assert found == wanted
    assert found.fullmatch("X").groupdict() == {"a": "X"}


@pytest.mark.parametrize(
    "content", [None, b"", b"no pack", bytes(8), (9).to_bytes(8, "little") + marshal.dumps([1]), "another version"]
)
def test_without_a_fitting_pack_imports_are_as_always(tmp_path, content, without):
    path = tmp_path / "pack"
    if content == "another version":
        path = pack(tmp_path, version="2.7")
    elif content is not None:
        path.write_bytes(content)
    before = list(sys.meta_path)
    with packed(path):
        assert sys.meta_path == before
        assert isinstance(importlib.import_module("json"), types.ModuleType)
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("packedhere")
