import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from chat_endpoint import answer
from typer.testing import CliRunner

from nbagent.backends import choose_backend, container_of
from nbagent.cli import app
from nbagent.errors import UsageError
from nbagent.models.opening import is_ours
from nbagent.recipe import load_recipe
from nbagent.score import read_score
from nbagent.score_run import ScoreRecipe

RUN = CliRunner()


def call(name, **args):
    function = {"name": name, "arguments": json.dumps(args)}
    return answer(None, "tool_calls", tool_calls=[{"id": "c1", "type": "function", "function": function}])


@pytest.fixture
def questions(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("x,y\n1,3\n")
    rows = [f"What is x + y? Variant {i}.,4,data,family {i % 2}\n" for i in range(4)]
    (tmp_path / "q.csv").write_text("question,answer,data_folder,family\n" + "".join(rows))
    return tmp_path / "q.csv"


@pytest.fixture
def command(questions, endpoint, tmp_path):
    def made(*more, out="run"):
        return [
            *("score", str(questions), "--model", f"openai:{endpoint.url}#tiny", "--format", "native"),
            *("--backend", "local", "--out", str(tmp_path / out), "--max-steps", "3", *more),
        ]

    return made


def test_a_score_is_kept_with_its_attempts_notebooks_and_report(command, endpoint, tmp_path):
    endpoint.script = [call("submit_answer", answer=a) for a in "44444455"]
    result = RUN.invoke(app, command("--n", "2", "--concurrency", "1", "--price-in", "1", "--price-out", "2"))
    assert result.exit_code == 0, result.output
    assert "pass@2 %" in result.output
    score = read_score(tmp_path / "run")
    assert score.overall.pass_at[1].value == 0.75
    assert list(score.families) == ["family 0", "family 1"]
    assert (score.model, score.settings["n"]) == ("tiny", 2)
    assert score.overall.cost == pytest.approx(8 * (100 + 2 * 20) / 1e6)
    recipe = load_recipe(tmp_path / "run" / "recipe.toml", ScoreRecipe)
    assert (recipe.n, recipe.agent.backend, recipe.agent.action_format) == (2, "local", "native")
    for attempt in score.attempts:
        nbformat.validate(nbformat.read(tmp_path / "run" / "notebooks" / f"{attempt.rollout_id}.ipynb", 4))
        assert f"notebooks/{attempt.rollout_id}.html" in (tmp_path / "run" / "report.html").read_text()
    (tmp_path / "run" / "rollouts" / f"{score.attempts[-1].rollout_id}.jsonl").unlink()
    asked = len(endpoint.requests)
    again = RUN.invoke(app, command("--n", "2"))
    assert (again.exit_code, again.stderr.count("\n")) == (2, 2)
    assert "holds another run; give another --out, or --resume" in again.stderr
    endpoint.script = [call("submit_answer", answer="4")]
    assert RUN.invoke(app, command("--n", "2", "--resume")).exit_code == 0
    assert len(endpoint.requests) == asked + 1, "only the missing attempt is made"
    assert read_score(tmp_path / "run").overall.pass_at[1].value == 0.875
    assert RUN.invoke(app, ["validate", str(tmp_path / "run")]).output == "8 event logs, no problems\n"


def test_a_cap_on_cost_stops_the_run_and_a_higher_one_goes_on(command, endpoint, tmp_path):
    endpoint.script = [call("submit_answer", answer="4") for _ in range(9)]
    prices = "--price-in", "0", "--price-out", "1000", "--concurrency", "1", "--max-new-tokens", "100"
    result = RUN.invoke(app, command(*prices, "--max-cost", "0.13"))
    assert result.exit_code == 2
    assert "the cap is 0.13" in result.stderr
    assert "2 of 4 attempts are saved" in result.stderr
    assert RUN.invoke(app, command(*prices, "--max-cost", "9", "--resume")).exit_code == 0
    assert read_score(tmp_path / "run").overall.n_attempts == 4


def test_an_endpoint_that_refuses_the_key_ends_the_run_at_once(command, endpoint):
    endpoint.script = [(401, "{}")] * 20
    result = RUN.invoke(app, command())
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert "HTTP 401 Unauthorized: {}; set NBAGENT_API_KEY; 0 of 4 attempts are saved" in last


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--policy", "drp"], "unknown context policy 'drp'"),
        (["--max-cost", "3"], "needs both prices"),
        (["--backend", "docker:no-such-image"], "backend docker: "),
        (["--backend", "fork:python"], "there are: docker, fork, local"),
    ],
)
def test_bad_settings_are_said_before_a_folder_is_made(command, tmp_path, more, message):
    result = RUN.invoke(app, command(*more))
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["nowhere", "openai:http://host/v1#m"])
def test_code_of_a_model_that_is_not_ours_runs_in_docker_or_where_the_user_says(
    questions, tmp_path, model, monkeypatch
):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing")
    container_of.cache_clear()
    result = RUN.invoke(app, ["score", str(questions), "--model", model, "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "no Docker engine answers" in result.stderr
    assert f"name --backend fork or local if {model} may run as you" in result.stderr


def test_a_missing_model_folder_is_one_line(questions, tmp_path):
    result = RUN.invoke(
        app, ["score", str(questions), "--model", "nowhere", "--backend", "fork", "--out", str(tmp_path / "run")]
    )
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("nbagent: nowhere: no such model folder; give")


def test_ours_is_a_model_that_was_made_from_nothing(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "final"
    checkpoint.mkdir(parents=True)
    assert not is_ours(str(checkpoint))
    recipe = tmp_path / "run" / "recipe.toml"
    recipe.write_text('[model]\nfolder = ""\n')
    assert is_ours(str(checkpoint))
    recipe.write_text('[model]\nfolder = "foreign"\n')
    assert not is_ours(str(checkpoint))
    assert not is_ours("openai:http://x")
    assert choose_backend(None, "x", ours=True) == "fork"
    assert choose_backend("local", "x", ours=False) == "local"
    with pytest.raises(UsageError, match="magic is no backend"):
        choose_backend("magic", "x", ours=True)


def test_ctrl_c_keeps_what_is_done_and_leaves_no_process(command, endpoint, tmp_path):
    endpoint.script = [call("submit_answer", answer="4") for _ in range(2)] + ["hang"] * 9
    arguments = [sys.executable, "-m", "nbagent.cli", *command("--concurrency", "1")]
    process = subprocess.Popen(arguments, stdout=-1, stderr=-1, text=True, process_group=0)
    deadline = time.monotonic() + 60
    while len(endpoint.requests) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == (
        f"nbagent: interrupted; 2 of 4 attempts are saved in {tmp_path}/run; the same command with --resume goes on"
    )
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def notebook(path, *sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return str(path)


def test_exec_runs_any_notebook_and_says_which_cell_failed(tmp_path):
    path, out = notebook(tmp_path / "a.ipynb", "print(open('d.txt').read())", "1/0", "2"), tmp_path / "b.ipynb"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "d.txt").write_text("from data")
    more = ["--out", str(out), "--backend", "local", "--files", str(tmp_path / "data")]
    result = RUN.invoke(app, ["exec", path, *more])
    assert result.exit_code == 1
    assert result.stdout.startswith("cell 2: error\n2 cells in ")
    assert result.stdout.endswith(f", 1 failed, 1 not run\n{out}\n")
    assert "no sandbox" in result.stderr
    assert nbformat.read(out, 4).cells[0].outputs[0].text == "from data\n"
    assert RUN.invoke(app, ["exec", notebook(tmp_path / "c.ipynb", "1"), *more]).exit_code == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--backend", "docker:no-such-image"], "backend docker: "),
        (["--backend", "local"], "missing.ipynb: cannot be read"),
    ],
)
def test_exec_says_what_is_wrong_in_one_line(tmp_path, more, message):
    result = RUN.invoke(app, ["exec", str(tmp_path / "missing.ipynb"), "--out", str(tmp_path / "o.ipynb"), *more])
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]


def test_replay_writes_the_attempt_and_runs_it_again(command, endpoint, tmp_path):
    endpoint.script = [call("run_cell", code="import random\nprint(open('a.csv').read(), random.random())")]
    endpoint.script += [call("run_cell", code="1/0"), call("submit_answer", answer="4")]
    assert RUN.invoke(app, command("--limit", "1")).exit_code == 0
    (attempt,) = read_score(tmp_path / "run").attempts
    out = tmp_path / "attempt.ipynb"
    replay = ["replay", str(tmp_path / "run"), "--rollout", attempt.rollout_id, "--out", str(out)]
    result = RUN.invoke(app, [*replay, "--execute"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "its cells ran with backend local, which runs code as you" in result.stderr
    assert not out.exists()
    result = RUN.invoke(app, [*replay, "--execute", "--backend", "local"])
    assert result.exit_code == 0, result.output
    assert "they are no sandbox" in result.stderr
    assert result.stdout.endswith(", 1 failed, none with other outputs than before\n")
    sources = [cell.source for cell in nbformat.read(out, 4).cells if cell.cell_type == "code"]
    assert sources[1] == "1/0"
    result = RUN.invoke(app, [*replay[:3], "nothing", *replay[4:]])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "no rollout 'nothing' in this run" in result.stderr
