"""What the published pipeline does wrong when it runs a set, tried on ours; and how a run goes on after a failure."""

import json
import re
import threading
from collections import Counter

import pytest
from judge_endpoint import JudgeServer
from known_agents import guessing, perfect, write_set
from typer.testing import CliRunner

from nbagent.cli import app
from nbagent.errors import RecipeError
from nbagent.recipe import load_recipe
from nbagent.tasks import Outcome
from nbagent_bixbench.results import read_results
from nbagent_bixbench.run import RunRecipe
from nbagent_bixbench.source import open_source

CLI = CliRunner()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NBAGENT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def zero_shot(tmp_path):
    """Runs `nbagent bixbench zero-shot` on rows against an endpoint of this rule."""

    def run(rule, rows=({},), *more, out="run", model="m", fails=0):
        folder = tmp_path / "set"
        if not folder.exists():
            write_set(folder, rows)
        with JudgeServer(rule) as server:
            words = ["bixbench", "zero-shot", str(folder), "--model", f"openai:{run.url or server.url}#{model}"]
            result = CLI.invoke(app, [*words, "--out", str(tmp_path / out), *more])
        assert result.exit_code == fails, result.output
        run.requests, run.said, run.url = server.requests, result, ""
        return read_results(tmp_path / out) if not fails else []

    run.url = ""
    return run


def saying(*answers):
    """An endpoint that gives these answers one after the other."""
    left, lock = list(answers), threading.Lock()

    def rule(messages, seed):
        with lock:
            said = left.pop(0) if left else answers[-1]
        return said if isinstance(said, int) else f"<answer>{said}</answer>"

    return rule


def test_falsy_answers_are_answers(zero_shot):
    # Fault 8: the published loader drops 0, 0.0 and False like an empty answer.
    rows = [{"ideal": key} for key in ("0", "0.0", "False", "4")]
    answers = {"number 1?": "0", "number 2?": "0.0", "number 3?": "False", "number 4?": ""}
    results = zero_shot(
        lambda messages, seed: next(
            f"<answer>{a}</answer>" for q, a in answers.items() if q in messages[-1]["content"]
        ),
        rows,
        *("--replicas", "1"),
    )
    assert [(r.answer, r.outcome) for r in results] == [
        ("0", Outcome.CORRECT),
        ("0.0", Outcome.CORRECT),
        ("False", Outcome.CORRECT),
        ("", Outcome.NO_ANSWER),
    ]


def test_names_that_begin_alike_stay_apart(zero_shot, tmp_path):
    # Fault 9: the published table takes every run whose name contains the name asked for.
    rows = [{"question_id": "bix-1-q1", "ideal": "4"}, {"question_id": "bix-1-q10", "ideal": "5"}]
    first = zero_shot(saying("4"), rows, "--replicas", "2", out="a")
    second = zero_shot(saying("5"), rows, "--replicas", "2", out="ab")
    for results, right in ((first, "bix-1-q1"), (second, "bix-1-q10")):
        assert len(results) == 4
        assert {r.question_id for r in results if r.outcome is Outcome.CORRECT} == {right}
    assert len(read_results(tmp_path / "a")) == 4


def test_a_single_attempt_needs_no_number_in_its_name(zero_shot, tmp_path):
    # Fault 10: the published loader fails on its own default file name, which has no replica.
    (result,) = zero_shot(saying("4"), [{}], "--replicas", "1")
    assert (result.replica, result.outcome) == (0, Outcome.CORRECT)
    (file,) = (tmp_path / "run" / "questions").iterdir()
    assert json.loads(file.read_text())["answer"] == "4"


@pytest.mark.parametrize("concurrency", [1, 3, 8, 50])
def test_each_question_is_asked_exactly_as_often_as_said(zero_shot, concurrency):
    # Fault 11: the published loop steps by one batch and takes four, 676 rollouts for 205 questions.
    results = zero_shot(guessing, [{}] * 13, "--replicas", "3", "--concurrency", str(concurrency))
    asked = Counter(re.search(r"number \d+", r["messages"][-1]["content"])[0] for r in zero_shot.requests)
    assert asked == {f"number {n}": 3 for n in range(1, 14)}
    assert Counter((r.question_id, r.replica) for r in results).most_common(1)[0][1] == 1
    assert len(results) == 39


def test_settings_are_checked_and_none_is_ignored(zero_shot, tmp_path):
    # Fault 13: `rollout_type: aviary` runs vanilla, and the validators never run.
    for more, message in [
        (["--mode", "guess"], "'guess' is not one of"),
        (["--replicas", "0"], "should be greater than or equal to 1"),
        (["--policy", "lenient"], "'lenient' is not one of"),
        (["--policy", "judge"], "--policy judge: asks a judge about every answer; name one: --judge URL#MODEL"),
        (["--judge", "http://127.0.0.1:9"], "a judge needs its model's name"),
    ]:
        zero_shot(guessing, [{}], *more, fails=2)
        assert message in re.sub(r"[│\s]+", " ", zero_shot.said.stderr)
        assert not (tmp_path / "run").exists()
    zero_shot(guessing, [{}], "--replicas", "1", "--mode", "mcq", "--temperature", "0.3")
    path = tmp_path / "run" / "recipe.toml"
    recipe = load_recipe(path, RunRecipe)
    assert (recipe.mode, recipe.setting, recipe.replicas, recipe.temperature) == ("mcq", "zero-shot", 1, 0.3)
    path.write_text("rollout_type = 'aviary'\n" + path.read_text())
    with pytest.raises(RecipeError, match="unknown key 'rollout_type'"):
        load_recipe(path, RunRecipe)


def test_the_model_named_is_the_model_asked_as_it_is_said(zero_shot):
    # Fault 14: with a newer ldp the run asks gpt-4o at 0.1, and the file is labelled with the settings' model.
    (result,) = zero_shot(saying("4"), [{}], "--replicas", "1", "--temperature", "0.7", model="tiny-2")
    (request,) = zero_shot.requests
    assert (request["model"], request["temperature"]) == ("tiny-2", 0.7)
    assert result.model == "tiny-2"


def test_the_same_seed_is_the_same_run(zero_shot):
    # Fault 15: no seeds; options are shuffled by a salted hash.
    more = ["--mode", "mcq_refusal", "--replicas", "3"]
    runs = {out: zero_shot(guessing, [{}] * 4, *more, "--seed", out[0], out=out) for out in ("1a", "1b", "2")}
    told = {out: [(r.options, r.answer, r.choice) for r in results] for out, results in runs.items()}
    assert told["1a"] == told["1b"]
    assert [o for o, _, _ in told["1a"]] != [o for o, _, _ in told["2"]]
    letters = [next(o.letter for o in r.options if o.kind == "ideal") for r in runs["1a"]]
    assert len(set(letters)) > 1


def test_what_failed_on_the_hosts_side_is_made_again_and_nothing_else(zero_shot, tmp_path):
    failing = lambda messages, seed: 400 if "number 2?" in messages[-1]["content"] else "<answer>4</answer>"  # noqa: E731
    rows, more = [{}] * 3, ["--replicas", "2"]
    results = zero_shot(failing, rows, *more)
    assert Counter(r.outcome for r in results) == {Outcome.CORRECT: 4, Outcome.INFRASTRUCTURE: 2}
    assert {r.error.partition(":")[0] for r in results if r.error} == {"ModelError"}
    assert "2 of 6 attempts failed on the host's side; the same command with --resume" in zero_shot.said.stdout
    asked = Counter(r["messages"][-1]["content"] for r in zero_shot.requests)
    assert max(asked.values()) == 2 * 3, "a failure is tried again twice, no more"
    zero_shot(saying("4"), rows, *more, fails=2)
    assert "holds another run; give another --out, or --resume" in zero_shot.said.stderr


def test_a_run_that_stopped_keeps_what_ended_and_goes_on(tmp_path):
    folder = write_set(tmp_path / "set", [{}] * 6)
    calls = []

    def rule(messages, seed):
        calls.append(seed)
        return 401 if refuses and len(calls) > 4 else "<answer>4</answer>"

    refuses = True
    with JudgeServer(rule) as server:
        words = ["bixbench", "zero-shot", str(folder), "--model", f"openai:{server.url}#m", "--concurrency", "1"]
        words += ["--replicas", "2", "--out", str(tmp_path / "run")]
        stopped = CLI.invoke(app, words)
        assert stopped.exit_code == 2
        assert "4 of 12 attempts are saved" in stopped.stderr
        assert [r.outcome for r in read_results(tmp_path / "run")] == [Outcome.CORRECT] * 4
        refuses, before = False, len(calls)
        assert CLI.invoke(app, [*words, "--resume"]).exit_code == 0
        assert len(calls) == before + 8
        assert CLI.invoke(app, [*words, "--resume"]).exit_code == 0
        assert len(calls) == before + 8
        other = CLI.invoke(app, [*words, "--resume", "--mode", "mcq"])
    assert other.exit_code == 2
    assert "the run there has another recipe" in other.stderr
    results = read_results(tmp_path / "run")
    assert Counter((r.question_id, r.replica) for r in results) == {
        (f"bix-90-q{n}", i): 1 for n in range(1, 7) for i in (0, 1)
    }


def test_free_text_is_ungraded_until_a_judge_is_there(zero_shot, tmp_path):
    rows = [{"ideal": "four", "eval_mode": "llm_verifier"}, {"ideal": "4"}]
    results = zero_shot(saying("4"), rows, "--replicas", "2")
    assert Counter(r.outcome for r in results) == {Outcome.UNGRADED: 2, Outcome.CORRECT: 2}
    assert "2 of 4 answers are ungraded: free text needs a judge" in zero_shot.said.stdout
    there = False
    with JudgeServer(lambda messages, seed: "<grade>correct</grade>" if there else 401) as judge:
        words = ["--replicas", "2", "--judge", f"{judge.url}#j", "--resume"]
        unreached = zero_shot(saying("4"), rows, *words, out="judged")
        assert {(r.outcome, r.judge.verdict) for r in unreached[:2]} == {(Outcome.UNGRADED, "unreachable")}
        there = True
        # The agent is not asked again, so that its address, a part of the recipe, has to be the same.
        zero_shot.url = re.search(r'model = "openai:(.*)#m"', (tmp_path / "judged" / "recipe.toml").read_text())[1]
        judged = zero_shot(saying("5"), rows, *words, out="judged")
    assert [(r.outcome, r.answer) for r in judged] == [(Outcome.CORRECT, "4")] * 4
    assert [r.judge.model for r in judged[:2]] == ["j", "j"]
    assert judged[2].judge is None
    assert not zero_shot.requests


@pytest.mark.slow
def test_a_choice_made_afterwards_is_the_second_models_over_the_notebook(tmp_path):
    folder = write_set(tmp_path / "set", [{}, {"ideal": "9", "distractors": ["4", "1", "2"]}])
    agent = perfect(open_source(str(folder)).rows)
    seen = []

    def picker(messages, seed):
        text = messages[-1]["content"]
        seen.append(text)
        if down:
            return 400
        return f"<answer>{re.search('^([A-Z]): .4.$', text, re.MULTILINE)[1]}</answer>"

    down = True
    with JudgeServer(lambda m, s: agent("\n".join(x["content"] for x in m))) as server, JudgeServer(picker) as second:
        words = ["bixbench", "run", str(folder), "--model", f"openai:{server.url}#m", "--format", "fenced"]
        words += ["--backend", "fork", "--out", str(tmp_path / "run"), "--replicas", "1", "--mode", "mcq_refusal"]
        bare = CLI.invoke(app, [*words, "--mcq", "posthoc"])
        assert bare.exit_code == 2
        assert "name the model that picks: --mcq-model URL#MODEL" in bare.stderr
        words += ["--mcq", "posthoc", "--mcq-model", f"{second.url}#p"]
        first = CLI.invoke(app, words)
        assert first.exit_code == 0, first.output
        assert {r.outcome for r in read_results(tmp_path / "run")} == {Outcome.INFRASTRUCTURE}
        asked, down = len(server.requests), False
        for _ in range(2):
            assert CLI.invoke(app, [*words, "--resume"]).exit_code == 0
        assert len(server.requests) == asked, "the agent is not asked again"
    right, wrong = read_results(tmp_path / "run")
    assert (right.outcome, right.choice, right.extra) == (
        Outcome.CORRECT,
        "4",
        {"open_answer": "4", "chosen_by": "p"},
    )
    assert (wrong.outcome, wrong.choice, wrong.extra["open_answer"]) == (Outcome.INCORRECT, "4", "9")
    assert len(seen) == 4, "and neither is the second model"
    assert "a.csv" in seen[-1], "it reads the notebook"
    assert not [text for text in seen if "correct" in text.lower()], "it is not told the verdict"
    assert not [r for r in server.requests if "insufficient information" in json.dumps(r).lower()], (
        "the agent sees no options"
    )


def test_nothing_of_the_answer_is_sent_to_a_model(zero_shot):
    row = {"ideal": "1234.5", "result": "SECRET", "hypothesis": "SECRET TOO", "canary": "CANARY", "paper": "PAPER"}
    zero_shot(saying("4"), [row], "--replicas", "1")
    sent = json.dumps(zero_shot.requests)
    assert not [word for word in ("1234.5", "SECRET", "CANARY", "PAPER") if word in sent]
