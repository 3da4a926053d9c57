import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from nbagent.blobs import Blobs
from nbagent.compare import compare
from nbagent.errors import StorageError, UsageError
from nbagent.reward_profile import profile_of
from nbagent.score import Attempt, read_score, score_trajectories
from nbagent.score_table import comparison_table, score_table
from nbagent.stats import paired_difference, wilson
from nbagent.task_filter import Keep, filter_of
from nbagent.tasks import Outcome
from nbagent.terminal import plain
from nbagent.trajectory import Trajectory

C, W, N, R, U, X = Outcome


def attempts(outcomes, family="", start=0, **fields):
    """One attempt per task."""
    return [
        Attempt(f"t{i}", f"t{i}-0", outcome, family, outcome.reward, n_steps=2, **fields)
        for i, outcome in enumerate(outcomes, start)
    ]


def shown(table, width=200):
    console = Console(width=width, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(table)
    console.file.close()
    return console.export_text()


def test_excluded_attempts_are_counted_and_left_out_of_pass_at_1():
    score = score_trajectories(attempts([C] * 6 + [W] * 2 + [N, R] + [U, X]))
    overall = score.overall
    assert overall.pass_at == {1: wilson(6, 10)}
    assert (overall.n_tasks, overall.n_attempts, overall.n_excluded) == (12, 12, 2)
    assert {outcome: share.count for outcome, share in overall.outcomes.items()} == {C: 6, W: 2, N: 1, R: 1, U: 1, X: 1}
    assert overall.outcomes[U].share == wilson(1, 12)
    assert sum(share.share.value for share in overall.outcomes.values()) == pytest.approx(1)


def test_families_are_scored_apart_and_together():
    score = score_trajectories(attempts([C, C, W], "surv") + attempts([W, W], "bulk", start=3))
    assert list(score.families) == ["bulk", "surv"]
    assert score.families["surv"].pass_1 == wilson(2, 3)
    assert score.overall.pass_1 == wilson(2, 5)


def test_several_attempts_per_task_give_pass_at_k_over_tasks():
    made = [
        Attempt(task, f"{task}-{i}", outcome, reward=outcome.reward)
        for task, outcomes in {"a": [C, W, W], "b": [W, W, W], "c": [C, C, X]}.items()
        for i, outcome in enumerate(outcomes)
    ]
    summary = score_trajectories(made).overall
    assert list(summary.pass_at) == [1, 2, 3]
    assert summary.pass_at[1].value == pytest.approx((1 / 3 + 0 + 1) / 3)
    assert summary.pass_at[1].method == "bootstrap"
    assert summary.pass_at[2].value == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert (summary.pass_at[3].value, summary.pass_at[3].n) == (0.5, 2)


def test_the_order_of_attempts_changes_nothing():
    made = attempts([C, W, N, C, X], "f")
    assert score_trajectories(made) == score_trajectories(list(reversed(made)))


@pytest.mark.parametrize("made", [[], attempts([U, X])])
def test_nothing_graded_is_a_score_without_pass_at_k(made):
    score = score_trajectories(made)
    assert score.overall.pass_1 is None
    assert "–" in shown(score_table(score)) or not made


def test_a_score_is_read_back_equal(tmp_path):
    score = score_trajectories(
        attempts([C, W, X], "f", answer="é\x1b", question="q"),
        name="n",
        model="m",
        tasks={"kind": "x"},
        settings={"n": 1},
    )
    score.write(tmp_path / "run" / "score.json")
    assert read_score(tmp_path / "run") == score == read_score(tmp_path / "run" / "score.json")


@pytest.mark.parametrize(("text", "message"), [(None, "no such score"), ("{}", "not a score"), ("[", "not a score")])
def test_what_is_no_score_says_so_in_one_line(tmp_path, text, message):
    if text is not None:
        (tmp_path / "score.json").write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        read_score(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_disk_that_is_full_is_a_storage_error():
    score = score_trajectories(attempts([C]))
    with pytest.raises(StorageError, match=r"/dev/full: cannot write: No space left"):
        score.write(Path("/dev/full"))


@contextmanager
def files_of_at_most(n_bytes):
    """This process can make no larger file for a while, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_while_results_are_written_leaves_none_that_look_done(tmp_path):
    """Of a resumed run a score that is there is done: half of one would end every further try."""
    score = score_trajectories(attempts([C, W] * 20, question="q"))
    profile = profile_of(score, 4)
    for write, file in (
        (score.write, tmp_path / "score.json"),
        (filter_of(profile, Keep()).write, tmp_path / "filter.json"),
        (lambda path: profile.write(path.parent), tmp_path / "profile.json"),
    ):
        with files_of_at_most(200), pytest.raises(StorageError, match=file.name):
            write(file)
        assert list(tmp_path.iterdir()) == []
    score.write(tmp_path / "score.json")
    with files_of_at_most(200), pytest.raises(StorageError):
        score_trajectories([]).write(tmp_path / "score.json")
    assert read_score(tmp_path) == score, "the old one is kept"


def test_an_attempt_is_read_from_its_event_log():
    events = [
        {"kind": "start", "rollout_id": "r", "task_id": "t", "question": "how many?", "family": "bulk", "t": 0.0},
        {"kind": "call", "call_kind": "action", "tokens": {"prompt": 10, "completion": 3}},
        {"kind": "observation", "error": "no tool call"},
        {"kind": "call", "call_kind": "summary", "tokens": {"prompt_tokens": 7, "completion_tokens": 2, "cost": 0.5}},
        {"kind": "call", "call_kind": "action", "tokens": {"prompt": 12, "completion": 4}},
        {"kind": "observation", "error": ""},
        {"kind": "answer", "answer": "42"},
        {"kind": "end", "truncated": 0, "outcome": "correct", "reason": "equal", "reward": 1, "t": 2.5, "error": ""},
    ]  # fmt: skip
    attempt = Attempt.of(Trajectory(events, Blobs()))
    assert attempt == Attempt(
        "t", "r", C, "bulk", 1.0, n_steps=2, malformed=1, prompt_tokens=29, completion_tokens=9, cost=0.5,
        seconds=2.5, question="how many?", answer="42", reason="equal",
    )  # fmt: skip
    cut_off = Attempt.of(Trajectory(events[:3], Blobs()) if events[2].setdefault("t", 1.0) else None)
    assert (cut_off.outcome, cut_off.reward) == (X, None)


def test_two_scores_compare_task_by_task():
    before = score_trajectories(attempts([W] * 6 + [C] * 4, "f"), name="warm")
    after = score_trajectories(attempts([C] * 5 + [W] + [C] * 3 + [X], "f"), name="grpo")
    comparison = compare(before, after)
    assert (comparison.before, comparison.after, comparison.n_left_out) == ("warm", "grpo", 1)
    assert comparison.overall == paired_difference([0] * 6 + [1] * 3, [1] * 5 + [0] + [1] * 3)
    assert comparison.families == {"f": comparison.overall}
    text = shown(comparison_table(comparison))
    assert "grpo minus warm" in text
    assert "+55.6 [" in text


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (attempts([C, C], start=1), r"1 only in a \(e\.g\. t0\), 1 only in b \(e\.g\. t2\)"),
        (attempts([C, C], question="other"), "2 share an id but ask something else"),
        (attempts([X, U]), "no task was graded in both"),
    ],
)
def test_scores_on_other_tasks_are_not_compared(second, message):
    first = score_trajectories(attempts([C, W]), name="a")
    with pytest.raises(UsageError, match=message):
        compare(first, score_trajectories(second, name="b"))


def test_tables_show_foreign_text_and_do_not_obey_it():
    score = score_trajectories(attempts([C, W], "[red]x\x1b[2J"), name="[bold]\x1b]0;title\x07")
    text = shown(score_table(score))
    assert "[red]x\\x1b[2J" in text
    assert "[bold]\\x1b]0;title\\x07" in text
    assert "\x1b" not in text
    assert plain("a\u202eb\u200bc\ud800", 9) == "a\\u202eb…"
