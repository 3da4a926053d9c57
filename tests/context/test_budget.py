"""What every policy promises: within the budget, always the same, and what matters survives."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stories import BRIEF, NOTICE, plain_story, shown, stories, told

from nbagent_context import Budget, BudgetTooSmall, Memory, SummaryRequest, policy
from nbagent_context.history import newest_error
from nbagent_context.types import exchanges_of, measure

POLICIES = {
    "full": policy("full"),
    "window": policy("window", n=2, batch=3),
    "drop": policy("drop"),
    "drop_short": policy("drop", keep=3, output_chars=200, old_chars=0, frugal=True),
    "summarize": policy("summarize", keep=1, max_tokens=60, max_summaries=2),
}
NAMES = pytest.mark.parametrize("name", POLICIES)


def look(name, story, budget, notice=NOTICE, memory="it was 5"):
    """The next window, with every memory that is asked for written; None where it does not fit."""
    for _ in range(4):
        try:
            seen = POLICIES[name].window(BRIEF, story.notebook, story.history, notice, budget, len)
        except BudgetTooSmall:
            return None
        if not isinstance(seen, SummaryRequest):
            return seen
        assert seen.tokens + seen.max_tokens <= budget.tokens
        assert seen.tokens == measure(seen.messages, budget, len)
        assert 0 < seen.covers < story.steps
        story.remember(seen, memory)
    raise AssertionError("asks without end")


@NAMES
@given(story=stories, tokens=st.integers(100, 9000), memory=st.sampled_from(["", "it was 5", "long " * 99]))
def test_the_budget_holds_and_what_matters_survives(name, story, tokens, memory):
    budget = Budget(tokens, 3)
    window = look(name, story, budget, memory=memory)
    if window is None:
        return
    assert window.tokens == measure(window.messages, budget, len) <= tokens
    text = shown(window)
    assert BRIEF.instruction in text
    assert BRIEF.task in text
    assert NOTICE in text
    exchanges = exchanges_of(story.history)
    if exchanges:
        assert f"OUT{exchanges[-1].step}." in text
    error = newest_error(exchanges, story.notebook)
    if error:
        assert f"OUT{error.step}." in text
    assert all(elision.tokens_saved >= 0 or elision.why == "replaced by a memory" for elision in window.elisions)
    assert len(window.elisions) < 20


@NAMES
@given(story=stories, tokens=st.integers(300, 9000))
def test_a_policy_is_pure(name, story, tokens):
    before = copy.deepcopy((story.cells, story.history))
    first = look(name, story, Budget(tokens, 3))
    assert story.cells == before[0]
    assert [entry for entry in story.history if not isinstance(entry, Memory)] == before[1]
    again = copy.deepcopy(story)
    assert look(name, again, Budget(tokens, 3)) == first


@given(stories, st.integers(400, 4000))
def test_nothing_is_cut_where_there_is_room(story, tokens):
    roomy = look("full", story, Budget(10**7, 3))
    assert not roomy.elisions
    window = look("drop", story, Budget(10**7, 3))
    assert {elision.why for elision in window.elisions} <= {"age", "size"}
    tight = look("drop", story, Budget(tokens, 3))
    if tight is not None and window.tokens > tokens:
        assert "budget" in {elision.why for elision in tight.elisions}


@NAMES
def test_an_empty_notebook_has_a_prompt(name):
    window = look(name, told([]), Budget(500, 3))
    assert [m["role"] for m in window.messages] == ["system", "user"]
    assert window.elisions == ()


@NAMES
@pytest.mark.parametrize("filler", ["x" * 1_000_000, "ab,c " * 300_000, "漢字🙂" * 100_000, "1\n" * 500_000])
def test_huge_outputs_fit(name, filler):
    story = told([("run", "", ""), ("run", filler, ""), ("error", filler, ""), ("read", filler, "")])
    window = look(name, story, Budget(3000, 3))
    if name == "full":
        assert window is None
        return
    assert window.tokens <= 3000
    assert "OUT3." in shown(window)
    assert "ValueError: OUT2." in shown(window)


@pytest.mark.parametrize("name", ["window", "drop", "summarize"])
def test_ten_thousand_cells_fit(name):
    story = plain_story(10_000)
    window = look(name, story, Budget(4000, 3))
    assert window.tokens <= 4000
    assert "OUT9999." in shown(window)
    saved = sum(elision.tokens_saved for elision in window.elisions)
    assert saved > 300_000
    assert len(window.elisions) < 10


@NAMES
def test_too_small_a_budget_says_by_how_much(name):
    with pytest.raises(BudgetTooSmall, match=r"takes \d+ tokens, \d+ more than the budget of 50") as raised:
        POLICIES[name].window(BRIEF, plain_story(3).notebook, plain_story(3).history, NOTICE, Budget(50, 3), len)
    needed = raised.value.needed
    fitting = POLICIES[name].window(
        BRIEF, plain_story(3).notebook, plain_story(3).history, NOTICE, Budget(needed, 3), len
    )
    assert fitting.tokens <= needed
