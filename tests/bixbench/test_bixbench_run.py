"""Agents of known skill go through every mode and setting, over real kernels, real HTTP, and real files."""

from collections import Counter
from pathlib import Path

import nbformat
import pytest
from judge_endpoint import JudgeServer
from known_agents import guessing, perfect, write_set
from typer.testing import CliRunner

from nbagent.agent import Agent
from nbagent.cli import app
from nbagent.models.scripted import ScriptedModel
from nbagent.runfolder import RunFolder
from nbagent.tasks import Outcome
from nbagent.validation import problems
from nbagent_bixbench.bundled import open_source as open_bundled
from nbagent_bixbench.make import make_tasks
from nbagent_bixbench.modes import rows_in_mode
from nbagent_bixbench.results import read_results
from nbagent_bixbench.run import RunRecipe, run_set
from nbagent_bixbench.source import open_source
from nbagent_bixbench.summary import chance, summarize

RUN = CliRunner()
MODES = ["open", "mcq", "mcq_refusal", "hypothesis"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NBAGENT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    """Eight drawn questions, one of each of eight families."""
    return make_tasks(tmp_path_factory.mktemp("bundled") / "set", 8, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["agentic", "zero-shot"])
@pytest.mark.parametrize("mode", MODES)
def test_a_perfect_agent_scores_everything(bundled, tmp_path, mode, setting):
    source = open_source(str(bundled), tmp_path / "capsules")
    rows = rows_in_mode(source.rows, mode)
    recipe = RunRecipe(
        tasks=str(bundled),
        model="scripted",
        mode=mode,
        setting=setting,
        replicas=3,
        agent=Agent(action_format="fenced"),
    )
    model = ScriptedModel(perfect(rows, looks=setting == "agentic"))
    run = RunFolder.create(tmp_path / "run", "")
    results = run_set(recipe, rows, source, model, run, concurrency=12)
    assert Counter((r.question_id, r.replica) for r in results) == {
        (r.question_id, i): 1 for r in rows for i in range(3)
    }
    assert {result.outcome for result in results} == {Outcome.CORRECT}, [r.reason for r in results]
    summary = summarize(results)
    assert (summary.accuracy, summary.precision, summary.coverage) == (1.0, 1.0, 1.0)
    assert len(model.calls) == len(results) * (2 if setting == "agentic" else 1)
    assert read_results(run.path) == results
    for result in results:
        assert not problems(run.path / result.trajectory)
        if setting == "agentic":
            notebook = nbformat.read(run.path / result.notebook, 4)
            nbformat.validate(notebook)
            shown = next(cell for cell in notebook.cells if cell.cell_type == "code").outputs[0].text
            assert "./" in shown
            assert not [word for word in ("ipynb", "html", "Rmd", "jsonl", "Notebook") if word in shown]
        else:
            assert result.notebook == ""


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_guessing_model_scores_its_baseline(bundled, tmp_path, mode):
    with JudgeServer(guessing) as server:
        result = RUN.invoke(
            app,
            [
                *("bixbench", "zero-shot", str(bundled), "--model", f"openai:{server.url}#guesser"),
                *("--mode", mode, "--replicas", "40", "--out", str(tmp_path / "run")),
            ],
        )
    assert result.exit_code == 0, result.output
    results = read_results(tmp_path / "run")
    assert len(server.requests) == len(results) == 8 * 40
    summary = summarize(results)
    assert (
        summary.baseline == chance(results[0]) == {"open": 0, "mcq": 0.25, "mcq_refusal": 0.2, "hypothesis": 0.5}[mode]
    )
    interval = summary.intervals["accuracy"]
    assert interval.low <= summary.baseline <= interval.high
    if mode == "mcq_refusal":
        assert summary.coverage == pytest.approx(0.8, abs=0.08)


@pytest.mark.slow
def test_the_bundled_set_is_run_by_its_location(tmp_path):
    location = "bundled:heldout?n=2&seed=4"
    model_says = perfect(open_bundled(location).rows)
    with JudgeServer(lambda sent, seed: model_says("\n".join(m["content"] for m in sent))) as server:
        command = ["bixbench", "run", location, "--model", f"openai:{server.url}#m", "--format", "fenced"]
        more = ["--replicas", "2", "--backend", "fork", "--out", str(tmp_path / "run"), "--mode", "mcq"]
        result = RUN.invoke(app, [*command, *more])
    assert result.exit_code == 0, result.output
    results = read_results(tmp_path / "run")
    assert [r.outcome for r in results] == [Outcome.CORRECT] * 4
    attempt = Path(results[-1].trajectory).stem
    words = ["replay", str(tmp_path / "run"), "--rollout", attempt, "--out", str(tmp_path / "nb.ipynb"), "--execute"]
    replayed = RUN.invoke(app, [*words, "--backend", "fork"])
    assert replayed.exit_code == 0, replayed.output
    assert "none with other outputs than before" in replayed.output


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--images"], []])
def test_images_are_shown_where_asked_for(tmp_path, flags):
    draw = (
        "```python\nimport io\nfrom PIL import Image as Picture\nfrom IPython.display import Image, display\n"
        "out = io.BytesIO()\nPicture.new('RGB', (40, 30)).save(out, 'PNG')\ndisplay(Image(out.getvalue()))\n```"
    )
    folder = write_set(tmp_path / "set", [{}])
    rule = lambda messages, seed: draw if "[c1]" not in str(messages) else "<answer>4</answer>"  # noqa: E731
    with JudgeServer(rule) as server:
        words = ["bixbench", "run", str(folder), "--model", f"openai:{server.url}#m", "--format", "fenced", *flags]
        result = RUN.invoke(app, [*words, "--replicas", "1", "--backend", "fork", "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    (row,) = read_results(tmp_path / "run")
    assert (row.outcome, row.images) == (Outcome.CORRECT, bool(flags))
    assert ("data:image/png;base64" in str(server.requests[-1])) == bool(flags)


def test_an_agent_may_work_in_r(tmp_path):
    pytest.importorskip("jupyter_client")
    from jupyter_client.kernelspec import KernelSpecManager

    if "ir" not in KernelSpecManager().find_kernel_specs():
        pytest.skip("no R kernel here")
    folder = write_set(tmp_path / "set", [{"ideal": "4", "eval_mode": "str_verifier"}])

    def agent(text):
        if "4" in text.partition("[c1]")[2]:
            return "<answer>4</answer>"
        return "```r\nd <- read.csv('a.csv')\ncat(d$x + d$y)\n```"

    source = open_source(str(folder), tmp_path / "capsules")
    recipe = RunRecipe(
        tasks=str(folder), model="m", replicas=1, language="r", agent=Agent(action_format="fenced", backend="local")
    )
    (result,) = run_set(recipe, source.rows, source, ScriptedModel(agent), RunFolder.create(tmp_path / "run", ""))
    assert (result.outcome, result.language, result.steps) == (Outcome.CORRECT, "r", 2)
    assert nbformat.read(tmp_path / "run" / result.notebook, 4).metadata.kernelspec.language.lower() == "r"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "zero-shot"])
def test_a_model_in_this_process_goes_through(tmp_path, command):
    from nbagent_training.scratch import Size, make_model, make_tokenizer

    tokenizer = make_tokenizer(["import pandas as pd\nprint(df.mean())\n<answer>12.5</answer>"] * 30, 340)
    network = make_model(tokenizer, Size(vocabulary=340, hidden=32, layers=2, heads=4, intermediate=64), 1)
    network.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    folder = write_set(tmp_path / "set", [{}, {}])
    more = ["--backend", "fork", "--format", "fenced", "--max-steps", "2"] if command == "run" else []
    for out in ("a", "b") if command == "zero-shot" else ("a",):
        words = ["bixbench", command, str(folder), "--model", str(tmp_path / "model"), "--out", str(tmp_path / out)]
        result = RUN.invoke(app, [*words, "--replicas", "2", "--max-new-tokens", "24", *more])
        assert result.exit_code == 0, result.output
    results = read_results(tmp_path / "a")
    assert len(results) == 4
    assert all(r.completion_tokens and r.prompt_tokens and r.steps == (2 if more else 1) for r in results)
    assert {r.outcome for r in results} <= {Outcome.NO_ANSWER, Outcome.INCORRECT}
    if command == "zero-shot":
        again = read_results(tmp_path / "b")
        assert [(r.answer, r.completion_tokens) for r in results] == [(r.answer, r.completion_tokens) for r in again]
