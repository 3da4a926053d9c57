"""Answers of every origin, graded again under every policy."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from nbagent.errors import UsageError
from nbagent.models.scripted import ScriptedModel
from nbagent.rollout import RolloutSettings
from nbagent.runfolder import RunFolder
from nbagent.score_run import run_score
from nbagent.tasks import Outcome, open_tasks
from nbagent_bixbench.answer_files import read_answers
from nbagent_bixbench.policies import POLICIES, PolicyName
from nbagent_bixbench.regrade import regrade
from nbagent_bixbench.results import Result, read_results, write_results
from nbagent_bixbench.results_commands import app
from nbagent_bixbench.types import Judgement, Option

C, W, N, R, U, X = Outcome
OPTIONS = (Option("A", "41", "distractor"), Option("B", "42", "ideal"), Option("C", "Insufficient", "refusal"))


def row(answer, ideal="42", eval_mode="str_verifier", mode="open", replica=0, outcome=U, **fields):
    return Result("q", replica, mode, eval_mode, ideal, answer, outcome, **fields)


def said(verdict):
    return Judgement(verdict, (verdict, verdict, "incorrect"), 2 / 3, "1", "first judge")


class Always:
    """A judge of one mind, which counts how often it is asked."""

    def __init__(self, verdict):
        self.verdict, self.asked = verdict, []

    def decide(self, question, ideal, predicted):
        self.asked.append((question, ideal, predicted))
        return Judgement(self.verdict, (self.verdict,), 1.0, "2", "second judge")


def test_the_command_knows_every_policy():
    assert sorted(name.value for name in PolicyName) == sorted(POLICIES)


def test_every_mode_is_graded_by_its_own_rule():
    rows = [
        row("42.0"),
        row("b", mode="mcq_refusal", options=OPTIONS),
        row("C", mode="mcq_refusal", options=OPTIONS),
        row(None, mode="mcq_refusal", options=OPTIONS, choice="42"),
        row("yes", "true", mode="hypothesis"),
        row("false", "True", mode="hypothesis"),
    ]
    graded = regrade(rows, "strict")
    assert [result.outcome for result in graded] == [C, C, R, C, C, W]
    assert [result.choice for result in graded] == [None, "42", "Insufficient", "42", None, None]
    assert {result.policy for result in graded} == {"strict"}


def test_the_published_parser_reads_other_letters_than_ours():
    (ours,), (theirs,) = (
        regrade([row("b", mode="mcq_refusal", options=OPTIONS)], p) for p in ("strict", "official-agentic")
    )
    assert (ours.outcome, ours.choice, theirs.outcome, theirs.choice) == (C, "42", W, None)


def test_an_infrastructure_failure_stays_one():
    for policy in POLICIES:
        (graded,) = regrade([row(None, outcome=X, error="ModelError: gone")], policy)
        assert (graded.outcome, graded.policy, graded.error) == (X, policy, "ModelError: gone")


def test_a_recorded_verdict_is_replayed_whole_and_a_new_judge_goes_before_it():
    recorded = row("binds DNA", "DNA binding", "llm_verifier", question="what?", judge=said("correct"))
    (again,) = regrade([recorded])
    assert (again.outcome, again.judge) == (C, said("correct"))
    judge = Always("incorrect")
    (new,) = regrade([recorded], judge=judge)
    assert (new.outcome, new.judge.model) == (W, "second judge")
    assert judge.asked == [("what?", "DNA binding", "binds DNA")]


def test_a_judge_is_not_asked_where_the_policy_needs_none_and_what_it_said_is_kept():
    (graded,) = regrade([row("41", judge=said("correct"))])
    assert (graded.outcome, graded.judge) == (W, said("correct"))


def test_rows_keep_their_order_with_a_judge_and_progress_counts_them():
    done = []
    rows = [row(str(i), str(i % 2), replica=i) for i in range(50)]
    graded = regrade(rows, "judge", Always("correct"), lambda: done.append(1))
    assert [result.replica for result in graded] == list(range(50))
    assert len(done) == 50


def test_a_policy_that_does_not_exist_is_named():
    with pytest.raises(UsageError, match="grading policy 'lenient' is unknown"):
        regrade([row("1")], "lenient")


def test_a_run_folder_is_read_and_regraded_rows_are_written(tmp_path):
    write_results(tmp_path / "results.jsonl", [row("42"), row("41", replica=1)])
    shown = CliRunner().invoke(app, ["regrade", str(tmp_path), "--json", "--out", str(tmp_path / "new.jsonl")])
    made = json.loads(shown.output)
    assert (made["policy"], made["file"], made["n_total"], made["accuracy"]) == ("strict", "run folder", 2, 0.5)
    assert [result.outcome for result in read_results(tmp_path / "new.jsonl")] == [C, W]
    again = CliRunner().invoke(app, ["regrade", str(tmp_path), "--out", str(tmp_path / "new.jsonl")])
    assert isinstance(again.exception, UsageError)
    assert "is there already" in str(again.exception)


def test_the_table_fits_a_terminal_and_names_all_that_was_asked_for(tmp_path):
    other = Result("r", 0, "open", "range_verifier", "(1,2)", "x", U)
    write_results(tmp_path / "results.jsonl", [row("42"), row("x", replica=1), row(None, replica=2), other])
    shown = CliRunner().invoke(app, ["regrade", str(tmp_path)], env={"COLUMNS": "80"}).output
    for words in ("total", "correct", "sure", "accuracy %", "precis. %", "cover. %", "str_verifier", "1 no answer"):
        assert words in shown
    assert "…" not in shown


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "a,b\n1,2\n", "is no file of answers: neither result rows"),
        ("x.txt", "", "is no file of answers"),
        ("x.csv", b"\xff\xff", r"is not UTF-8 \(byte 0\)"),
        ("x.jsonl", '{"question_id": 1}\n', "x.jsonl:1: field 'format' is missing"),
        ("x.jsonl", '{"question_id": \n', "x.jsonl:1: not JSON"),
        (None, None, "no such file or folder"),
        ("empty", None, "holds no answers: no results.jsonl, no run of nbagent score, no trajectory JSON"),
    ],
)
def test_what_is_no_file_of_answers_is_one_line(tmp_path, name, content, message):
    path = tmp_path / (name or "nothing")
    if content is None and name:
        path.mkdir()
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=message) as caught:
        read_answers(path)
    assert "\n" not in str(caught.value)


@contextmanager
def judge_server(grade):
    """A real endpoint whose every reply is one grade."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            choice = {"index": 0, "message": {"role": "assistant", "content": grade}, "finish_reason": "stop"}
            body = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1#tester"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_command_asks_the_judge_that_is_named(tmp_path):
    write_results(tmp_path / "results.jsonl", [row("binds DNA", "DNA binding", "llm_verifier", question="what?")])
    words = ["regrade", str(tmp_path), "--policy", "official-agentic", "--json"]
    assert json.loads(CliRunner().invoke(app, words).output)["outcomes"]["ungraded"] == 1
    with judge_server("<grade>correct</grade>") as url:
        shown = CliRunner().invoke(app, [*words, "--judge", url, "--judge-cache", str(tmp_path / "cache")])
    made = json.loads(shown.stdout[shown.stdout.index("{") :])
    assert (made["outcomes"]["correct"], made["judging"]["agreement"]) == (1, 1.0)
    assert made["judging"]["models"] == ["tester"]


def test_a_run_of_nbagent_score_is_regraded_with_the_keys_of_its_set(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.csv").write_text("a\n1\n")
    (tmp_path / "set.csv").write_text("id,question,answer,data_folder,family\nq1,How many?,0.0002,data,counts\n")
    source = open_tasks(str(tmp_path / "set.csv"))
    run = RunFolder.create(tmp_path / "run", "seed = 0\n")
    run.add_tasks(source.fingerprint())
    settings = RolloutSettings(backend="local")
    answers = '<tool_call>{"name": "submit_answer", "arguments": {"answer": "2e-4"}}</tool_call>'
    run_score(source.tasks(), ScriptedModel([answers] * 2), settings, run, n=2)
    found = read_answers(run.path)
    assert [(r.question_id, r.replica, r.answer, r.ideal) for r in found.results] == [
        ("q1", 0, "2e-4", "0.0002"),
        ("q1", 1, "2e-4", "0.0002"),
    ]
    assert [r.outcome for r in regrade(found.results, "strict")] == [C, C]
    assert [r.outcome for r in regrade(found.results, "official-zeroshot")] == [U, U]
    assert found.results[0].categories == ("counts",)
