"""A policy of somebody else's: the example, installed as anybody would install it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json
from stories import BRIEF, NOTICE, plain_story, shown
from nbagent_context import Budget, BudgetTooSmall, policy

story = plain_story(3)
window = policy("outline", chars=12).window(BRIEF, story.notebook, story.history, NOTICE, Budget(10**6, 3), len)
try:
    policy("outline").window(BRIEF, story.notebook, story.history, NOTICE, Budget(20, 3), len)
except BudgetTooSmall as error:
    print(json.dumps([shown(window), window.elisions[0].what, error.budget]))
"""


@pytest.mark.slow
def test_the_example_is_found_by_its_entry_point(tmp_path):
    install = ["install", "-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--target"]
    subprocess.run([sys.executable, "-m", "pip", *install, tmp_path, ROOT / "examples/policy"], check=True, timeout=120)
    paths = f"{tmp_path}:{Path(__file__).parent}"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={"PYTHONPATH": paths, "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    text, what, budget = json.loads(done.stdout)
    assert "[c2] print(1)\n" in text
    assert text.endswith("OUT2.\n" + "x" * 40 + "\n2 steps left: submit your answer.")
    assert (what, budget) == ("3 cells", 20)
