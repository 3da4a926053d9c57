"""The wheel holds everything that runs: built, installed in a clean environment, used from another folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = [
    ROOT / p
    for p in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
]

pytestmark = pytest.mark.slow

IMPORT_ALL = """
import importlib, json, pkgutil, sys
files = {}
for package in sys.argv[1:]:
    top = importlib.import_module(package)
    names = [package, *(m.name for m in pkgutil.walk_packages(top.__path__, package + "."))]
    names = [name for name in names if not name.endswith("__main__")]
    files.update({name: importlib.import_module(name).__file__ for name in names})
print("\\n" + json.dumps(files))
"""


def run(command: Sequence[str | Path], cwd: Path, **env: str) -> str:
    """What the command printed; fails with all it said."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=kept | env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from what git would commit, so that an ignored or forgotten file is missed here."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", dist, source], dist)
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the wheel, and the dependencies without the checkout's editable install.

    The dependencies come by a path line in a .pth: the .pth files inside that folder are then not read, and
    one of those is the editable install.
    """
    home = tmp_path_factory.mktemp("clean") / "venv"
    run([sys.executable, "-m", "venv", home], home.parent)
    python = home / "bin" / "python"
    run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], home.parent)
    site = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], home.parent).strip()
    libraries = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (Path(site) / "dependencies.pth").write_text("\n".join(libraries) + "\n")
    return python


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder that is not the checkout."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


def test_data_files_are_inside(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    wanted = {
        str(path.relative_to(package.parent))
        for package in PACKAGES
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    assert not wanted - inside, "files of the packages that the wheel lacks"
    assert any(name.endswith(".toml") and name.startswith("nbagent_training/recipes/") for name in inside)
    assert "nbagent_kernels/forkserver.py" in inside
    stray = {
        name for name in inside if not name.startswith(tuple(p.name for p in PACKAGES)) and ".dist-info/" not in name
    }
    assert not stray
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in inside)


def test_everything_imports_from_another_folder(python: Path, elsewhere: Path) -> None:
    said = run([python, "-c", IMPORT_ALL, *(p.name for p in PACKAGES)], elsewhere, HOME=str(elsewhere))
    files = json.loads(said.rstrip().rpartition("\n")[2])
    assert len(files) >= 20
    venv = python.parents[1]
    outside = {name: file for name, file in files.items() if not Path(file).is_relative_to(venv)}
    assert not outside, "imported from somewhere else than the wheel"


def test_the_program_answers(python: Path, elsewhere: Path) -> None:
    program = python.parent / "nbagent"
    commands = run([program, "--help"], elsewhere, HOME=str(elsewhere))
    for command in ("demo", "train", "score", "replay", "exec", "tasks"):
        assert command in commands
        run([program, command, "--help"], elsewhere, HOME=str(elsewhere))
    assert not list(elsewhere.iterdir())


def test_the_demo_runs_from_the_wheel(python: Path, elsewhere: Path) -> None:
    run([python.parent / "nbagent", "demo", "--smoke", "--out", "run"], elsewhere, HOME=str(elsewhere))
    assert (elsewhere / "run" / "report.html").is_file()
    assert [path.name for path in elsewhere.iterdir()] == ["run"], "something was left outside the run folder"
