import pytest
from typer.testing import CliRunner

from nbagent.errors import UsageError
from nbagent_bixbench.commands import app
from nbagent_bixbench.families import FAMILIES


def run(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "set"
    output = run("make", folder, "--n", 4, "--seed", 3, "--families", "ti_tv, iris_count", "--split", "validation")
    assert f"4 tasks in {folder}" in output
    return folder


def test_make_then_check(made):
    output = run("check", made)
    assert "4 tasks" in output
    assert "ti_tv" in output
    assert "0 tasks have no reference notebook" in output


def test_show_lists_and_shows_one(made):
    assert "nb-1-q1" in run("show", made)
    output = run("show", made, "NB-1-q1")
    assert "Ti/Tv" in output or "transitions" in output
    assert ".csv" in output


def test_show_of_no_task_is_a_usage_error(made):
    with pytest.raises(UsageError, match="has no task 'nb-9-q9'"):
        run("show", made, "nb-9-q9")


def test_unknown_families_are_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="unknown family 'welsh'"):
        run("make", tmp_path / "set", "--families", "welsh")
    assert not list(tmp_path.iterdir())


def test_families_are_listed_with_what_they_ask():
    output = run("list-families")
    assert all(name in output for name in FAMILIES)
    assert "pbmc68k" in output
