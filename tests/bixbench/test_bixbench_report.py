"""The report of a run: page, numbers and tables, harmless whatever the results hold."""

import json
import re
from html.parser import HTMLParser

import nbformat
import pytest
from typer.testing import CliRunner

from nbagent.errors import StorageError, UsageError
from nbagent.tasks import Outcome
from nbagent_bixbench.published_scores import published_scores
from nbagent_bixbench.regrade import regrade
from nbagent_bixbench.report import write_report
from nbagent_bixbench.report_commands import app
from nbagent_bixbench.results import Result, write_results
from nbagent_bixbench.types import Judgement, Option

C, W, N, R, U, X = Outcome
EVIL = "</td><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m\u202e'\"&amp;"
FOUR = tuple(Option(letter, f"t{letter}", "ideal" if letter == "A" else "distractor") for letter in "ABCD")


class Tags(HTMLParser):
    """Names of tags and attributes, and all that is linked."""

    def __init__(self, text):
        super().__init__()
        self.names, self.links, self.contents = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names |= {tag, *(f"@{name}" for name, _ in attrs)}
        self.links += [value for name, value in attrs if name in ("href", "src")]
        self.contents += [value for name, value in attrs if name == "content"]


def harmless(text):
    tags = Tags(text)
    assert not tags.names & {"script", "iframe", "img", "form", "object", "@onerror", "@onload", "@style"}
    assert not [link for link in tags.links if re.match(r"[a-z]+:", link)]
    assert tags.contents[0].startswith("default-src 'none'; style-src 'sha256-")
    assert not set(text) & {"\x1b", "\u202e"}
    return tags


def rows(**fields):
    opened = [
        Result(f"q{q}", i, "open", "str_verifier", f"{q}", f"{q}" if (q + i) % 2 else "x", U, question=f"How many {q}?",
               categories=(f"cat {q % 2}",), capsule_uuid=f"c{q}", model="m", cost=0.5, **fields)
        for q in range(6) for i in range(3)
    ]  # fmt: skip
    chosen = [
        Result(f"m{q}", i, "mcq", "str_verifier", "tA", "ABCD"[(q + i) % 4], U, options=FOUR, model="m")
        for q in range(6)
        for i in range(3)
    ]
    judged = Result(
        "l", 0, "open", "llm_verifier", "k", "a", U, judge=Judgement("correct", ("correct",) * 3, 1, "1", "j")
    )
    return regrade([*opened, *chosen, judged])


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    write_results(tmp_path / "run" / "results.jsonl", rows())
    return tmp_path / "run"


def test_the_page_shows_every_part_and_the_numbers_hold_the_same(run):
    made = write_report(run)
    text = made.page.read_text()
    harmless(text)
    for words in ("open answer", "multiple choice", "answers at random", "official-zeroshot", "majority vote", "cat 1"):
        assert words in text
    numbers = json.loads(made.numbers.read_text())
    assert list(numbers) == ["open-agentic", "mcq-agentic"]
    assert numbers["open-agentic"]["by_policy"]["strict"]["n_correct"] == numbers["open-agentic"]["n_correct"] == 10
    assert numbers["open-agentic"]["by_policy"]["official-zeroshot"]["outcomes"]["ungraded"] == 9
    assert list(numbers["open-agentic"]["vote"]) == ["1", "2", "3"]
    assert numbers["mcq-agentic"]["baseline"] == 0.25
    assert numbers["open-agentic"]["judging"]["agreement"] == 1


def test_nothing_that_an_agent_wrote_is_live_and_keys_are_not_shown(tmp_path):
    (tmp_path / "run").mkdir()
    evil = Result(EVIL, 0, "open", "str_verifier", "the secret key", EVIL, W, question=EVIL, reason=EVIL, model=EVIL,
                  error=EVIL, categories=(EVIL, "b"), capsule_uuid=EVIL)  # fmt: skip
    write_results(tmp_path / "run" / "results.jsonl", [evil])
    text = write_report(tmp_path / "run").page.read_text()
    harmless(text)
    assert "the secret key" not in text
    assert "&lt;script&gt;" in text


def test_published_scores_stand_beside_bixbench_asked_the_same_way(run):
    assert "best of the paper" not in write_report(run).page.read_text(), "these are other questions"
    asked = Result("bix-1-q1", 0, "open", "str_verifier", "1", "1", C)
    write_results(run / "results.jsonl", [asked])
    text = write_report(run).page.read_text()
    assert "best of the paper" in text
    assert "GPT-4o" not in text, "zero-shot scores belong to zero-shot runs"
    guessed = Result("Bix-1-q2", 0, "mcq", "str_verifier", "tA", "A", C, options=FOUR, setting="zero-shot")
    write_results(run / "results.jsonl", [guessed])
    text = write_report(run).page.read_text()
    assert "GPT-4o" in text
    assert "36.1 %" in text


def test_published_scores_are_shares_with_a_source_and_conditions():
    for score in published_scores():
        assert all(0 <= x <= 1 for x in (score.accuracy, score.coverage, score.precision) if x is not None)
        assert score.source
        assert score.conditions
        assert score.setting in ("agentic", "zero-shot")


def test_a_zero_shot_run_marks_what_can_be_guessed(run, tmp_path):
    guessed = [
        Result("m1", i, "mcq", "str_verifier", "tA", "A", C, options=FOUR, setting="zero-shot") for i in range(3)
    ]
    write_results(tmp_path / "without.jsonl", guessed)
    made = write_report(run, tmp_path / "without.jsonl")
    assert json.loads(made.numbers.read_text())["mcq-agentic"]["guessable"] == {
        "m1 (mcq)": "zero-shot attempts get it right"
    }
    assert "Needs no data: zero-shot attempts get it right." in made.page.read_text()


def test_notebooks_of_the_run_get_a_page_and_others_none(tmp_path):
    run = tmp_path / "run"
    (run / "notebooks").mkdir(parents=True)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(1)")])
    nbformat.write(notebook, run / "notebooks" / "a.ipynb")
    nbformat.write(notebook, tmp_path / "outside.ipynb")
    (run / "link.ipynb").symlink_to(tmp_path / "outside.ipynb")
    places = [
        "notebooks/a.ipynb",
        "../outside.ipynb",
        "link.ipynb",
        "notebooks/none.ipynb",
        str(tmp_path / "outside.ipynb"),
    ]
    write_results(
        run / "results.jsonl",
        [Result("q", i, "open", "str_verifier", "1", "1", C, notebook=place) for i, place in enumerate(places)],
    )
    tags = harmless(write_report(run).page.read_text())
    assert "notebooks/a.html" in tags.links
    assert not [link for link in tags.links if "outside" in link or "link" in link]
    assert not (tmp_path / "outside.html").exists()
    page = (run / "notebooks" / "a.html").read_text()
    assert '<a href="../bixbench.html">' in page


def test_the_command_prints_tables_and_where_the_report_is(run):
    shown = CliRunner().invoke(app, ["report", str(run)], env={"COLUMNS": "80"})
    assert shown.exit_code == 0, shown.output
    for words in ("open answer: 7 questions, graded strict", "vote over answers %", "answers at random: 25.0 %"):
        assert words in shown.output
    assert (run / "bixbench.html").is_file()


def test_a_report_of_nothing_or_onto_a_full_disk_is_one_line(run, tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        write_report(tmp_path / "nothing")
    (run / "bixbench.json").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left"):
        write_report(run)
