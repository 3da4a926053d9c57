"""What attempts say of a task as a training task, and the filter made of it."""

import csv
import json
import math
import random
from pathlib import Path

import pytest
from chat_endpoint import answer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from nbagent.cli import app
from nbagent.errors import UsageError
from nbagent.reward_profile import mixed_probability, mixed_share, part_of, profile_of
from nbagent.score import Attempt, score_trajectories
from nbagent.task_filter import Keep, filter_of, read_filter
from nbagent.tasks import Outcome, Task

RUN = CliRunner()


def attempts(task, rewards, **more):
    outcome = {1.0: Outcome.CORRECT, 0.0: Outcome.INCORRECT, None: Outcome.INFRASTRUCTURE}
    return [
        Attempt(task, f"{task}-{i}", outcome.get(r, Outcome.CORRECT), reward=r, question=f"{task}?", **more)
        for i, r in enumerate(rewards)
    ]


def profile(**tasks):
    made = [a for task, rewards in tasks.items() for a in attempts(task, rewards, family=task[0])]
    return profile_of(score_trajectories(made, model="m"), 8)


def test_the_chance_of_a_mixed_group_is_its_expectation_over_the_posterior():
    rng = random.Random(0)
    for right, n, size in ((0, 8, 8), (3, 8, 8), (8, 8, 4), (1, 2, 16)):
        drawn = (rng.betavariate(right + 0.5, n - right + 0.5) for _ in range(40_000))
        expected = sum(1 - p**size - (1 - p) ** size for p in drawn) / 40_000
        assert mixed_probability(right, n, size) == pytest.approx(expected, abs=0.01)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(2, 64))
def test_the_chance_of_a_mixed_group_knows_no_side_and_grows_with_the_group(right, wrong, size):
    n = right + wrong
    chance = mixed_probability(right, n, size)
    assert 0 < chance < 1
    assert chance == pytest.approx(mixed_probability(wrong, n, size))
    assert chance < mixed_probability(right, n, size + 1)


def test_a_single_attempt_never_makes_a_mixed_group():
    assert mixed_probability(3, 8, 1) == pytest.approx(0)
    assert mixed_share([0.2, 0.4], 1) == pytest.approx(0)
    assert mixed_share([0.2, 0.4], 2) == pytest.approx(0.5)
    assert mixed_share([0.3, 0.3], 8) == 0


def test_a_task_has_mean_spread_pass_at_k_and_wilsons_interval():
    (task,) = profile(t=[1.0, 0.0, 0.0, 0.0, None]).tasks
    assert (task.n, task.excluded, task.binary, task.mean) == (4, 1, True, 0.25)
    assert task.spread == pytest.approx(0.5)
    assert task.pass_at == {1: pytest.approx(0.25), 2: pytest.approx(0.5), 4: 1.0}
    assert (task.rate.low, task.rate.high) == (pytest.approx(0.0456, abs=1e-3), pytest.approx(0.6994, abs=1e-3))


def test_what_is_not_binary_has_no_pass_at_k_and_what_was_never_graded_no_mean():
    graded, lost = profile(a=[0.5, 1.0], b=[None, None]).tasks
    assert (graded.binary, graded.pass_at, graded.rate, graded.mean) == (False, {}, None, 0.75)
    assert graded.mixed == pytest.approx(1 - 2 * 0.5**8)
    assert (lost.mean, lost.mixed, lost.n, lost.excluded) == (None, None, 0, 2)
    assert not Keep(mixed=0.0).takes(lost)


def test_all_tasks_together_are_counted_by_how_they_went():
    made = profile(a1=[1.0] * 8, a2=[0.0] * 8, b1=[1.0] + [0.0] * 7, b2=[None])
    whole = part_of(made.tasks)
    assert (whole.always, whole.sometimes, whole.never, whole.ungraded) == (1, 1, 1, 1)
    assert whole.pass_n == pytest.approx(2 / 3)
    assert whole.pass_1.value == pytest.approx((1 + 1 / 8) / 3)
    assert whole.mixed == pytest.approx(sum(mixed_probability(c, 8, 8) for c in (8, 0, 1)) / 3)


def test_the_rules_keep_what_can_be_learned():
    made = profile(a=[1.0] * 8, b=[0.0] * 8, c=[1.0] * 7 + [0.0], d=[1.0] + [0.0] * 7)
    assert list(filter_of(made, Keep(0.5)).kept) == ["c", "d"]
    assert list(filter_of(made, Keep(rate=(0.0, 0.875))).kept) == ["c", "d"]
    assert list(filter_of(made, Keep(rate=(0.0, 1.0))).kept) == ["a", "c", "d"]
    assert list(filter_of(made, Keep(0.0)).kept) == ["a", "b", "c", "d"]
    assert filter_of(made, Keep(0.5)).counts() == {"c": (7.0, 8), "d": (1.0, 8)}


def tasks(*names):
    return [Task(name, f"{name}?", Path(), None) for name in names]


def test_a_filter_takes_its_tasks_and_refuses_another_set(tmp_path):
    filter_of(profile(a=[1.0, 0.0], b=[1.0, 1.0]), Keep(rate=(0.0, 0.9))).write(tmp_path / "filter.json")
    chosen = read_filter(tmp_path / "filter.json")
    assert [t.task_id for t in chosen.select(tasks("b", "a", "new"))] == ["a"]
    with pytest.raises(UsageError, match=r"of the 1 tasks it keeps, 1 are not among the 2 .*e\.g\. a"):
        chosen.select(tasks("b", "c"))
    with pytest.raises(UsageError, match="1 ask another question"):
        chosen.select([Task("a", "something else?", Path(), None)])
    with pytest.raises(UsageError, match="keeps no task"):
        filter_of(profile(b=[1.0, 1.0]), Keep(rate=(0.0, 0.9))).select(tasks("b"))


def test_what_is_no_filter_is_one_line(tmp_path):
    (tmp_path / "f.json").write_text('{"rule": 3}')
    for path in (tmp_path / "f.json", tmp_path / "none.json"):
        with pytest.raises(UsageError) as error:
            read_filter(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def call(name, **args):
    function = {"name": name, "arguments": json.dumps(args)}
    return answer(None, "tool_calls", tool_calls=[{"id": "c1", "type": "function", "function": function}])


def test_the_command_goes_through_the_rollouts_of_a_score_and_chooses_again_without_new_ones(endpoint, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("x,y\n1,3\n")
    rows = "".join(f"What is x + y? Variant {i}.,4,data,sums,t{i}\n" for i in range(3))
    (tmp_path / "q.csv").write_text("question,answer,data_folder,family,id\n" + rows)
    # t0 always right, t1 half, t2 never.
    endpoint.script = [call("submit_answer", answer=a) for a in "4444" + "4455" + "5555"]
    command = [
        *("profile", str(tmp_path / "q.csv"), "--model", f"openai:{endpoint.url}#tiny", "--format", "native"),
        *("--backend", "local", "--out", str(tmp_path / "run"), "--n", "4", "--concurrency", "1", "--max-steps", "2"),
        *("--price-in", "1", "--price-out", "2"),
    ]
    result = RUN.invoke(app, command)
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "run" / "profile.json").read_text())
    assert [task["mean"] for task in written["tasks"]] == [1.0, 0.5, 0.0]
    assert written["tasks"][0]["cost"] > 0
    assert list(read_filter(tmp_path / "run" / "filter.json").kept) == ["t1"]
    rows = list(csv.DictReader((tmp_path / "run" / "profile.csv").read_text().splitlines()))
    assert [row["pass@4"] for row in rows] == ["1.0", "1.0", "0.0"]
    page = (tmp_path / "run" / "profile.html").read_text()
    assert "<script" not in page
    assert "mixed &gt;= 0.5" in page
    assert "1 of 3 tasks kept" in " ".join(result.output.split())
    asked = len(endpoint.requests)
    again = RUN.invoke(app, [*command, "--resume", "--rate", "0:1"])
    assert again.exit_code == 0, again.output
    assert len(endpoint.requests) == asked
    assert list(read_filter(tmp_path / "run" / "filter.json").kept) == ["t0", "t1"]
    assert RUN.invoke(app, [*command, "--resume", "--rate", "0.9:0.1"]).exit_code == 2


def test_a_chance_is_exact_in_closed_form():
    # G = 2: E[2 p (1 − p)] = 2ab / ((a + b)(a + b + 1)).
    a, b = 3.5, 5.5
    assert math.isclose(mixed_probability(3, 8, 2), 2 * a * b / ((a + b) * (a + b + 1)))
