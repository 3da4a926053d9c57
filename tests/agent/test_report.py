import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import nbformat
import pytest

from nbagent.errors import RunFolderError, StorageError, UsageError
from nbagent.report import build_report
from nbagent.report.gather import gather
from nbagent.report.notebook_page import shown_cells
from nbagent.runfolder import RunFolder
from nbagent.score import Attempt, score_trajectories
from nbagent.tasks import Outcome

EVIL = "</td><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m\u202e\ud800\x00'\"&amp;"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
LIVE = {"script", "iframe", "object", "embed", "link", "form", "input", "base", "audio", "video", "foreignobject"}


class Page(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.style = [], [], [], ""
        self.feed(text)
        self.text = " ".join("".join(self.text).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.text.append(" ")
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "style" and not self.style:
            self.style = data
        self.text.append(data)

    def policy(self):
        return next(v for t, n, v in self.attributes if t == "meta" and n == "content" and v.startswith("default-src"))


def check_harmless(text):
    page = Page(text)
    assert not LIVE & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name != "style", "the policy would drop it"
        if name == "src":
            assert value.startswith("data:image/")
        if name == "href":
            assert not re.match(r"[a-z]+:", value), "nothing outside the run folder is linked"
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert page.policy() == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    assert not set(text) & {"\x1b", "\u202e", "\x00"}
    return page


def attempts(prefix, outcomes, **fields):
    return [
        Attempt(f"t{i}", f"{prefix}-t{i}", outcome, f"family {i % 2}", outcome.reward, n_steps=3, **fields)
        for i, outcome in enumerate(outcomes)
    ]


@pytest.fixture
def run(tmp_path):
    run = RunFolder.create(tmp_path / "demo", "seed = 0\n")
    right, wrong, none = Outcome.CORRECT, Outcome.INCORRECT, Outcome.NO_ANSWER
    for name, outcomes in {
        "untrained_sampled": [none] * 8,
        "warm_sampled": [right, wrong, wrong, right, none, wrong, wrong, Outcome.INFRASTRUCTURE],
        "grpo_sampled": [right] * 7 + [wrong],
        "grpo_greedy": [right] * 8,
        "validation_grpo_sampled": [right] * 5,
    }.items():
        made = attempts(name, outcomes, question=EVIL, answer=EVIL, reason=EVIL)
        score_trajectories(made, name=name).write(run.path / "scores" / f"{name}.json")
    for step in range(40):
        run.log_metrics({"phase": "sft", "step": step, "loss": 3 / (step + 1)})
        run.log_metrics({"phase": "grpo", "step": step, "reward": step / 40, "loss": float("nan")})
    facts = {
        "title": "Demo " + EVIL,
        "demonstrations": ["Half of them were wrong."],
        "caveats": "One seed.",
        "times": {"grpo_s": 274.2},
        "peak_memory_bytes": 2.9e9,
        EVIL: EVIL,
    }
    (run.path / "demo.json").write_text(json.dumps(facts))
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell(EVIL),
            nbformat.v4.new_code_cell(
                "print(1)" + EVIL,
                execution_count=1,
                outputs=[
                    nbformat.v4.new_output("stream", text="  indented\n" + EVIL),
                    nbformat.v4.new_output("display_data", data={"image/png": PIXEL, "text/plain": "fig"}),
                    nbformat.v4.new_output("display_data", data={"image/png": '"><script>', "text/plain": "no image"}),
                    nbformat.v4.new_output("display_data", data={"text/html": EVIL, "image/svg+xml": EVIL}),
                    nbformat.v4.new_output("error", ename="E", evalue=EVIL, traceback=["\x1b[31mE\x1b[0m", EVIL]),
                ],
            ),
        ]
    )
    path = run.notebooks / "grpo_sampled-t0.ipynb"
    path.write_text(json.dumps(notebook))
    return run


def test_the_page_shows_scores_differences_curves_and_facts(run):
    path = build_report(run.path)
    assert path == run.path / "report.html"
    page = check_harmless(path.read_text())
    for words in (
        "GRPO, sampled 8 87.5 [52.9, 97.8]",
        "Warm start, sampled → GRPO, sampled 7 28.6 100.0 +71.4 [",
        "Untrained, sampled → Warm start, sampled",
        "Warm start, sampled 1 of 8",
        "Half of them were wrong.",
        "One seed.",
        "times · grpo 4 min 34 s",
        "peak memory 2.90 GB",
        "Warm start: loss",
        "GRPO: mean reward of the training tasks",
        "Validation split",
        "✓ 7 correct",
        "seed = 0",
    ):
        assert words in page.text
    assert page.tags.count("polyline") == 2
    assert "<script>alert(1)</script>" in page.text, "agent text is shown as text"


def test_attempts_link_to_their_notebooks_and_those_are_harmless(run):
    page = Page(build_report(run.path).read_text())
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert links == ["notebooks/grpo_sampled-t0.html", "notebooks/grpo_sampled-t0.ipynb"]
    for link in links:
        assert (run.path / link).is_file()
    notebook = check_harmless((run.path / links[0]).read_text())
    assert ("img", "src", f"data:image/png;base64,{PIXEL}") in notebook.attributes
    assert "no image" in notebook.text
    assert "not shown: image/svg+xml, text/html" in notebook.text


def test_a_report_made_twice_is_the_same(run):
    assert build_report(run.path).read_bytes() == build_report(run.path).read_bytes()


def test_alarms_and_what_is_watched_are_shown(run):
    for step in range(41, 45):
        watched = {"share_mixed": 0.0, "entropy": 0.5 / step, "staleness_mean": 0.0}
        alarms = {"alarms": ["collapse: " + EVIL]} if step == 43 else {}
        run.log_metrics({"phase": "grpo", "step": step, **watched, **alarms})
    page = check_harmless(build_report(run.path).read_text())
    assert "Alarms update what began to go wrong, and what to try 43 collapse: </td>" in page.text
    for title in ("Groups with both right and wrong attempts", "Entropy of the next token, nats"):
        assert title in page.text
    assert "Age of the weights" not in page.text, "zero throughout says nothing"


def test_a_run_that_only_began_still_has_a_page(tmp_path):
    run = RunFolder.create(tmp_path / "r", "n = 1\n")
    page = check_harmless(build_report(run.path).read_text())
    assert "n = 1" in page.text
    assert "svg" not in page.tags


def test_a_scored_run_without_a_demo_has_its_score(tmp_path):
    run = RunFolder.create(tmp_path / "r", "n = 2\n")
    made = [Attempt("t", f"t-{i}", o, reward=o.reward) for i, o in enumerate((Outcome.CORRECT, Outcome.INCORRECT))]
    score_trajectories(made, model="tiny <b>").write(run.path / "score.json")
    page = check_harmless(build_report(run.path).read_text())
    assert "tiny <b>" in page.text
    assert "pass@2 %" in page.text


def test_scores_are_ordered_by_stage_and_split(run):
    findings = gather(run)
    assert [scored.name for scored in findings.scores] == [
        "untrained_sampled", "warm_sampled", "grpo_sampled", "grpo_greedy"
    ]  # fmt: skip
    assert [scored.label for scored in findings.validation] == ["GRPO, sampled"]
    assert [(before, after) for before, after, _, _ in findings.comparisons] == [
        ("Untrained, sampled", "Warm start, sampled"),
        ("Warm start, sampled", "GRPO, sampled"),
    ]


def test_a_link_leads_nowhere_out_of_the_run(run):
    made = [Attempt("t", "../../../etc/passwd", Outcome.CORRECT, reward=1.0)]
    score_trajectories(made).write(run.path / "score.json")
    text = build_report(run.path).read_text()
    assert 'href="notebooks/..' not in text


def test_what_is_missing_or_damaged_is_one_line(run, tmp_path):
    with pytest.raises(RunFolderError, match="no such folder"):
        build_report(tmp_path / "nowhere")
    (run.path / "demo.json").write_text("{")
    with pytest.raises(UsageError, match=r"demo\.json: is not JSON"):
        build_report(run.path)


def test_a_full_disk_is_a_storage_error(run):
    run.report.symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left"):
        build_report(run.path)


def test_cells_of_every_kind_are_shown():
    cells = shown_cells(
        {"cells": [{"cell_type": "raw", "source": ["a\n", "b\tc"]}, {"cell_type": "code", "source": ""}]}
    )
    assert [(c.kind, c.label, c.source) for c in cells] == [("markdown", "", "a\nb   c"), ("code", "[ ]", "")]
