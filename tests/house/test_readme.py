"""The README says what is there: its commands, flags, variables, links and map are tried."""

from __future__ import annotations

import csv
import functools
import os
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
NBAGENT = Path(sys.executable).with_name("nbagent")
PACKAGES = [
    ROOT / p
    for p in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
]


def code(text: str) -> list[str]:
    """Indented and fenced lines, and what stands in backticks."""
    fenced = [line for block in re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]
    indented = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    return [*fenced, *indented, *re.findall(r"`([^`\n]+)`", text)]


def commands() -> list[list[str]]:
    """Every `nbagent …` command of the README, as words, without comments."""
    found = {c.partition(" #")[0].strip() for c in code(README) if c.startswith(("nbagent ", ".venv/bin/nbagent "))}
    return [shlex.split(c)[1:] for c in sorted(found)]


def nbagent(*words: str, cwd: Path) -> str:
    """What the program printed; its own environment is wide and plain, so that help is not cut."""
    env = {"PATH": os.environ["PATH"], "HOME": str(cwd), "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    env["HF_HUB_OFFLINE"] = "1"
    done = subprocess.run([NBAGENT, *words], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@functools.cache
def help_of(command: tuple[str, ...]) -> str:
    """What `nbagent COMMAND --help` prints."""
    with tempfile.TemporaryDirectory() as folder:
        return nbagent(*command, "--help", cwd=Path(folder))


def test_the_first_lines_say_how_to_begin() -> None:
    first = README.splitlines()[:15]
    assert any(line.strip().startswith("make demo") for line in first)
    assert any(line.strip().startswith("make test") for line in first)


def test_there_are_commands_to_try() -> None:
    assert {words[0] for words in commands()} >= {"demo", "tasks", "train", "score", "replay", "exec"}


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_and_its_flags_exist(words: list[str]) -> None:
    helped = help_of(tuple(words[: 2 if words[0] in {"tasks", "bixbench", "sandbox", "kernelspec"} else 1]))
    unknown = [flag for w in words if w.startswith("--") if (flag := w.partition("=")[0]) not in helped]
    assert not unknown


@pytest.mark.slow
def test_the_tasks_command_runs(tmp_path: Path) -> None:
    (words,) = {tuple(c) for c in commands() if c[:2] == ["tasks", "make"] and "--n" in c and "--seed" in c}
    nbagent(*words, cwd=tmp_path)
    assert (tmp_path / words[2] / "BixBench.jsonl").is_file()


def test_the_questions_shown_are_a_set(tmp_path: Path) -> None:
    lines = code(README)
    begin = next(i for i, line in enumerate(lines) if line.startswith("question,answer,data_folder"))
    rows = list(csv.DictReader(lines[begin : begin + 3]))
    (tmp_path / "questions.csv").write_text("\n".join(lines[begin : begin + 3]) + "\n")
    for row in rows:
        (tmp_path / row["data_folder"]).mkdir()
        (tmp_path / row["data_folder"] / "data.csv").write_text("a,b\n1,2\n")
    assert "2 tasks" in nbagent("tasks", "check", "questions.csv", cwd=tmp_path)


def test_the_recipe_shown_is_one(tmp_path: Path) -> None:
    from nbagent.recipe import load_recipe
    from nbagent_training.recipe import TrainRecipe

    lines = README.split("    # recipe.toml\n", 1)[1].split("\n\n", 1)[0].splitlines()
    path = tmp_path / "recipe.toml"
    path.write_text("\n".join(line[4:] for line in lines))
    assert load_recipe(path, TrainRecipe).tasks.train == "my-tasks"


def test_make_targets_and_variables_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M))
    variables = set(re.findall(r"^([A-Z_]+) \?=", MAKEFILE, re.M))
    for line in (c for c in code(README + CONTRIBUTING) if c.startswith("make ")):
        for word in line.partition("#")[0].split()[1:]:
            assert word.partition("=")[0] in (variables if "=" in word else targets), line


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    assert not [link for link in links if "://" not in link and not (ROOT / link).exists()]


def drawn() -> dict[str, set[str]]:
    """Files named by the map, by the package's folder under which they stand."""
    found: dict[str, set[str]] = {}
    for line in README.partition("<!-- map: begin -->")[2].partition("<!-- map: end -->")[0].splitlines():
        if re.match(r"    \S", line):
            names = found.setdefault(line.split()[0].rstrip("/"), set())
        elif line.strip():
            names |= set(re.findall(r"\w+\.py\b", line))
    return found


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.name)
def test_the_map_names_every_module_and_nothing_else(package: Path) -> None:
    there = {path.name for path in package.rglob("*.py")} - {"__init__.py"}
    assert drawn().get(str(package.relative_to(ROOT))) == there
