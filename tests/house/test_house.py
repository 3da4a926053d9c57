"""The house rules that a linter cannot say. CONTRIBUTING.md lists them."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import pickle
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from slowness import listed

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = [ROOT / p for p in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
SHADOWING = ["kernels", "context", "training", "benchmarks", "benchmarks/bixbench", "docker"]
HEAVY = {
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "scanpy",
    "anndata",
    "pandas",
    "sklearn",
}
BUILTIN_ERRORS = tuple(
    e
    for e in vars(__import__("builtins")).values()
    if isinstance(e, type) and issubclass(e, Exception) and e is not Exception
)


def files() -> list[Path]:
    """What git tracks or would track; nothing it ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return sorted(p for name in listed.stdout.decode().split("\0") if name and (p := ROOT / name).is_file())


def modules() -> list[Path]:
    """Every Python file of the six packages."""
    return sorted(path for package in PACKAGES for path in package.rglob("*.py"))


def dotted(path: Path) -> str:
    """The import name of a module file."""
    package = next(p for p in PACKAGES if path.is_relative_to(p))
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_a_file_is_read_in_one_sitting() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in files()
        if path.suffix in {".py", ".j2", ".html", ".js", ".css", ".sh"}
        and (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long, f"over 400 lines, split them by noun or verb: {long}"


def test_a_file_is_named_for_what_it_is() -> None:
    banned = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
    assert not [
        str(p.relative_to(ROOT)) for p in files() if p.stem in banned or banned & set(p.parts[len(ROOT.parts) :])
    ]


@pytest.mark.parametrize("folder", SHADOWING)
def test_no_folder_poses_as_somebody_elses_package(folder: str) -> None:
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists(), f"{folder}/ would shadow a package of that name"


def test_the_docker_sdk_and_transformers_see_past_our_folders() -> None:
    code = (
        "import docker, pathlib, sys\n"
        "from docker import from_env\n"
        "from transformers.utils.import_utils import is_kernels_available\n"
        "assert 'site-packages' in docker.__file__, docker.__file__\n"
        "import importlib.metadata as m\n"
        "names = {d.name for d in m.distributions()}\n"
        "assert is_kernels_available() == ('kernels' in names)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_test_files_have_names_of_their_own() -> None:
    tests = list((ROOT / "tests").rglob("*.py"))
    counts = Counter(path.name for path in tests if path.name != "conftest.py")
    assert not [name for name, n in counts.items() if n > 1]
    assert not [str(p) for p in tests if p.name == "__init__.py"]


def test_every_module_says_what_it_is() -> None:
    silent = [str(p.relative_to(ROOT)) for p in modules() if not ast.get_docstring(ast.parse(p.read_text()))]
    assert not silent, f"no module docstring: {silent}"


def test_every_package_is_typed() -> None:
    assert not [str(p) for p in PACKAGES if not (p / "py.typed").is_file()]


def test_version_is_the_newest_in_the_changelog() -> None:
    versions = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    program = importlib.import_module("nbagent").__version__
    assert versions[0] == PROJECT["project"]["version"] == program


def test_no_secret_and_no_benchmark_text_is_tracked() -> None:
    forbidden = re.compile(
        r"canary\s+guid|-----BEGIN [A-Z ]*PRIVATE\s+KEY|\bsk-[A-Za-z0-9_-]{24,}|\bgh[pousr]_[A-Za-z0-9]{30,}"
        r"|\bhf_[A-Za-z0-9]{30,}|\bAKIA[A-Z0-9]{16}\b",
        flags=re.IGNORECASE,
    )
    found = [
        f"{path.relative_to(ROOT)}: {match.group()[:20]}"
        for path in files()
        if (match := forbidden.search(path.read_bytes().decode("utf-8", errors="ignore")))
    ]
    assert not found


LIGHT = """
import json, sys
seen = []
def watch(event, args):
    if event in ("os.mkdir", "socket.connect", "socket.getaddrinfo", "socket.bind"):
        seen.append([event, str(args[:1])])
sys.addaudithook(watch)
{code}
roots = sorted({{name.partition(".")[0] for name in sys.modules}})
print("\\n" + json.dumps({{"seen": seen, "roots": roots}}))
"""


@pytest.mark.parametrize(
    "code",
    [
        "import nbagent",
        "import nbagent_kernels, nbagent_context, nbagent_images, nbagent_bixbench, nbagent_training",
        (
            "from nbagent.cli import main\nsys.argv = ['nbagent', '--help']\n"
            "try:\n    main()\nexcept SystemExit as e:\n    assert not e.code"
        ),
    ],
    ids=["nbagent", "packages", "help"],
)
def test_starting_is_light(code: str, tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LIGHT.format(code=code)],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said, _, last = done.stdout.rstrip().rpartition("\n")
    report = json.loads(last)
    assert not HEAVY & set(report["roots"])
    assert not report["seen"], "folders made or network asked at start"
    assert not list(tmp_path.iterdir())
    if code.startswith("import"):
        assert not said.strip(), "an import prints"


def error_classes() -> list[type[Exception]]:
    found: dict[str, type[Exception]] = {}
    for path in modules():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and path.stem in ERROR_FILES:
                cls = getattr(importlib.import_module(dotted(path)), node.name)
                if isinstance(cls, type) and issubclass(cls, Exception):
                    found[f"{cls.__module__}.{cls.__qualname__}"] = cls
    return [found[name] for name in sorted(found)]


ERROR_FILES = {"errors", "types"}
SAMPLES = {"int": 3, "float": 1.5, "str": "what, where, what to do", "Path": Path("x"), "bool": True}


@pytest.mark.parametrize("cls", error_classes(), ids=lambda c: c.__qualname__)
def test_errors_pickle_and_are_the_fitting_builtin(cls: type[Exception]) -> None:
    own = [base for base in cls.__mro__[1:] if base.__module__.startswith("nbagent")]
    if own:
        assert issubclass(cls, BUILTIN_ERRORS) or cls.__bases__ == (own[-1],), f"{cls} is no builtin"
    if "__init__" in vars(cls):
        wanted = list(inspect.signature(cls).parameters.values())
        error = cls(*[SAMPLES[str(p.annotation).partition(" ")[0]] for p in wanted if p.default is p.empty])
    else:
        error = cls(SAMPLES["str"])
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_what_is_listed_as_slow_is_there() -> None:
    for name in sorted(listed()):
        file, _, function = name.partition("::")
        assert f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), f"{name} is gone: `make slow`"
