import errno
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import EntryPoint

import pytest
import typer
from typer.testing import CliRunner

from nbagent import __version__
from nbagent.cli import app
from nbagent.cli_errors import ending
from nbagent.cli_group import Commands, help_line
from nbagent.errors import ModelError, StorageError, TrajectoryError, UsageError
from nbagent.runfolder import RunFolder
from nbagent.score import Attempt, score_trajectories
from nbagent.tasks import Outcome
from nbagent_kernels.errors import KernelStartError

RUN = CliRunner()


def nbagent(*args, **settings):
    return subprocess.run(
        [sys.executable, "-m", "nbagent.cli", *args], capture_output=True, text=True, timeout=60, **settings
    )


def test_help_names_every_command_in_a_newcomers_order():
    said = RUN.invoke(app, ["--help"]).output
    names = ["demo", "tasks", "train", "score", "compare", "replay", "prompt", "report", "exec", "validate"]
    places = [said.index(f"│ {name} ") for name in names]
    assert places == sorted(places)
    assert RUN.invoke(app, ["--version"]).output == f"nbagent {__version__}\n"


@pytest.mark.parametrize("command", ["score", "compare", "replay", "prompt", "exec", "report", "validate"])
def test_every_command_teaches_by_example(command):
    result = RUN.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"nbagent {command} " in result.output


def test_a_misspelt_command_names_the_near_one_also_of_other_packages():
    result = RUN.invoke(app, ["dmo"])
    assert result.exit_code == 2
    assert "Did you mean 'demo'?" in result.stderr


def test_commands_of_other_packages_are_imported_only_when_run(tmp_path):
    package = tmp_path / "outside"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "commands.py").write_text(
        '"""Module."""\nimport typer\nprint("imported")\napp = typer.Typer(help="Sub commands.\\n\\nMore.")\n'
        '@app.command()\ndef one() -> None:\n    print("one")\n@app.command()\ndef two() -> None:\n    print("two")\n'
        'def alone(word: str) -> None:\n    """Say a word.\n\n    More.\n    """\n    print(word)\n'
    )
    (tmp_path / "outside-1.dist-info").mkdir()
    (tmp_path / "outside-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1\n")
    (tmp_path / "outside-1.dist-info" / "entry_points.txt").write_text(
        "[nbagent.commands]\nsub = outside.commands:app\nalone = outside.commands:alone\ngone = missing.commands:app\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    said = nbagent("--help", env=env).stdout
    assert "Sub commands." in said
    assert "Say a word." in said
    assert "imported" not in said
    assert nbagent("alone", "hi", env=env).stdout == "imported\nhi\n"
    assert nbagent("sub", "two", env=env).stdout == "imported\ntwo\n"


def test_a_help_line_that_cannot_be_found_is_empty():
    assert help_line("no_such_package:x") == ""
    assert help_line("nbagent.cli_score:score").startswith("Score a model")
    assert EntryPoint("score", "nbagent.cli_score:score", "nbagent.commands").value == "nbagent.cli_score:score"


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UsageError("a.toml:3: no\nkey"), 2, "nbagent: a.toml:3: no key\n"),
        (ModelError("gone \x1b[31m"), 2, "nbagent: gone \\x1b[31m\n"),
        (StorageError("/x: cannot write"), 2, "nbagent: /x: cannot write\n"),
        (TrajectoryError("log:1: bad"), 2, "nbagent: log:1: bad\n"),
        (KernelStartError("no kernel"), 2, "nbagent: no kernel\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 2, "nbagent: /x/y: No space left on device; free"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "nbagent: /x: Permission denied; check its p"),
        (KeyboardInterrupt(), 130, "nbagent: interrupted\n"),
        (KeyboardInterrupt("3 saved; --resume goes on"), 130, "nbagent: interrupted; 3 saved; --resume goes on\n"),
    ],
)
def test_an_error_ends_as_one_line_with_its_status(error, status, line):
    program = typer.Typer(cls=Commands, pretty_exceptions_enable=False)

    @program.callback()
    def options() -> None:
        pass

    @program.command()
    def fail() -> None:
        raise error

    result = RUN.invoke(program, ["fail"])
    assert result.exit_code == status
    assert result.stderr.startswith(line)
    assert result.stderr.count("\n") == 1
    assert not result.stdout


def test_a_bug_keeps_its_traceback():
    assert ending(RuntimeError("bug")) is None
    assert ending(FileNotFoundError(errno.ENOENT, "x", "y")) is None


WAIT = (
    "import sys, time, typer\n"
    "from nbagent import cli\n"
    "@cli.app.command()\n"
    "def wait() -> None:\n"
    "    print('waiting', flush=True)\n"
    "    time.sleep(30)\n"
    "sys.argv = ['nbagent', 'wait']\n"
    "cli.main()\n"
)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_program_ends_with_130_and_one_line(kind):
    process = subprocess.Popen([sys.executable, "-c", WAIT], stdout=-1, stderr=-1, text=True)
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(kind)
    start = time.monotonic()
    _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (130, "nbagent: interrupted\n")
    assert time.monotonic() - start < 10


def test_a_closed_pipe_is_quiet(tmp_path):
    script = "import sys\nfrom nbagent import cli\n@cli.app.command()\ndef talk() -> None:\n"
    script += "    for _ in range(100000):\n        print('x' * 100)\nsys.argv = ['nbagent', 'talk']\ncli.main()\n"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=-1, stderr=-1, text=True)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=20) == 141


@pytest.fixture
def scored(tmp_path):
    paths = []
    for name, right in (("before", 2), ("after", 7)):
        run = RunFolder.create(tmp_path / name, "n = 1\n")
        outcomes = [Outcome.CORRECT] * right + [Outcome.INCORRECT] * (8 - right)
        made = [Attempt(f"t{i}", f"t{i}-0", o, reward=o.reward) for i, o in enumerate(outcomes)]
        score_trajectories(made, name=name).write(run.path / "score.json")
        paths.append(run.path)
    return paths


def test_compare_prints_the_paired_difference(scored):
    result = RUN.invoke(app, ["compare", *map(str, scored)])
    assert result.exit_code == 0
    assert "after minus before" in result.output
    assert "+62.5 [+25.0, +87.5]" in result.output


def test_compare_says_what_is_wrong_with_its_input(scored, tmp_path):
    assert RUN.invoke(app, ["compare", str(scored[0]), str(tmp_path / "x")]).stderr.startswith(
        f"nbagent: {tmp_path}/x: no"
    )
    score_trajectories([Attempt("other", "o", Outcome.CORRECT)]).write(tmp_path / "other.json")
    result = RUN.invoke(app, ["compare", str(scored[0]), str(tmp_path / "other.json")])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "not on the same tasks: 8 only in before (e.g. t0), 1 only in" in result.stderr


def test_report_writes_the_page_and_prints_where(scored, tmp_path):
    result = RUN.invoke(app, ["report", str(scored[0])])
    assert result.stdout == f"{scored[0]}/report.html\n"
    assert (scored[0] / "report.html").is_file()
    result = RUN.invoke(app, ["report", str(tmp_path / "none")])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
