"""Policies: pure, within the budget always, nothing dropped without a record."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbagent_context import Brief, Budget, BudgetTooSmall, Exchange, policy, text_of
from nbagent_context.drop import Drop
from nbagent_context.full import Full

BRIEF = Brief("Answer with Python.", "How many?\nFiles: a.csv")
BIG = Budget(10**6, 3)


def cell(number, source, text):
    outputs = [{"output_type": "stream", "name": "stdout", "text": text}] if text else []
    return {
        "id": f"c{number}",
        "cell_type": "code",
        "source": source,
        "metadata": {},
        "execution_count": number,
        "outputs": outputs,
    }


def run(number, source, text):
    fence = f"```python\n{source}\n```"
    return Exchange(number - 1, fence, "run_cell", text, f"c{number}", shown=True, short=f"run_cell c{number}")


def story(n, size=40):
    cells = [cell(i, f"print({i})", f"out {i} " + "x" * size) for i in range(1, n + 1)]
    history = [run(i, f"print({i})", f"out {i} " + "x" * size) for i in range(1, n + 1)]
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, history


def shown(window):
    return "".join(text_of(m) for m in window.messages)


def test_drop_shows_the_task_the_notebook_and_the_newest_output():
    notebook, history = story(3)
    window = Drop(keep=1, old_chars=5, frugal=True).window(BRIEF, notebook, history, "2 steps left", BIG, len)
    text = shown(window)
    assert [m["role"] for m in window.messages] == ["system", "user"]
    assert text.index("How many?") < text.index("[c1]") < text.index("[c3]") < text.index("2 steps left")
    assert "out 3 " + "x" * 40 in text
    assert "out 2 x" not in text
    assert "out 2…" in text
    (elision,) = window.elisions
    assert (elision.what, elision.level, elision.why) == ("output of 2 cells, c1 to c2", "line", "age")
    assert elision.tokens_saved == 2 * (len("out 1 ") + 40 - len("out 1…"))


def test_drop_keeps_what_the_notebook_does_not_show():
    notebook, history = story(1)
    history += [
        Exchange(1, "x", "read_file", "content of the file", short="read_file a.csv"),
        Exchange(2, "hm", "", "Not an action: no fence.", short=""),
    ]
    text = shown(Drop(keep=1).window(BRIEF, notebook, history, "", BIG, len))
    assert "> read_file a.csv\n" in text
    assert "content of the file" not in text
    assert "> not an action\nNot an action: no fence." in text


def test_prompts_of_a_frugal_drop_are_not_prefixes_of_each_other():
    notebook, history = story(3)
    first = dict(notebook, cells=notebook["cells"][:2])
    drop = Drop(old_chars=0, frugal=True)
    assert not shown(drop.window(BRIEF, notebook, history, "", BIG, len)).startswith(
        shown(drop.window(BRIEF, first, history[:2], "", BIG, len))
    )


def test_drop_cuts_outputs_in_batches_and_only_when_room_is_short():
    notebook, history = story(60, 400)
    one, breaks = "", []
    for n in range(1, 61):
        so_far = dict(notebook, cells=notebook["cells"][:n])
        window = Drop().window(BRIEF, so_far, history[:n], "", Budget(8000, 3), len)
        if not shown(window).startswith(one):
            breaks.append(n)
        one = shown(window)
        if n < 12:
            assert window.elisions == ()
    assert 3 < len(breaks) < 15
    dropped, lines, outputs = window.elisions
    assert (dropped.level, dropped.why) == ("dropped", "budget")
    assert (lines.level, outputs.level) == ("line", "line")
    assert dropped.what.endswith("cells, c1 to c23")
    assert lines.what.startswith("19 cells, c24")
    assert outputs.what.startswith("output of")
    assert "[c1 … c23]" in one
    assert "out 60 " + "x" * 400 in one


def attempt(make):
    try:
        return make(), None
    except BudgetTooSmall as error:
        return None, error


@given(st.integers(0, 8), st.integers(0, 400), st.integers(1, 3000), st.integers(0, 3))
def test_the_budget_is_never_exceeded_and_windows_are_pure(n, size, tokens, keep):
    notebook, history = story(n, size)
    before = copy.deepcopy(notebook)
    budget = Budget(tokens, 3)
    drop = Drop(keep=max(keep, 1), output_chars=200)
    window, error = attempt(lambda: drop.window(BRIEF, notebook, history, "note", budget, len))
    if window is None:
        assert error.needed > tokens == error.budget
        assert str(error.needed - tokens) in str(error)
    else:
        counted = sum(3 + len(text_of(m)) for m in window.messages)
        assert window.tokens == counted <= tokens
        assert "How many?" in shown(window)
        assert "note" in shown(window)
    assert notebook == before


def test_a_tight_budget_costs_old_outputs_first_and_says_so():
    notebook, history = story(4, 100)
    full = Drop(keep=4).window(BRIEF, notebook, history, "", BIG, len)
    tight = Drop(keep=4).window(BRIEF, notebook, history, "", Budget(full.tokens - 10, 3), len)
    assert [(e.what, e.why) for e in tight.elisions] == [("output of c1", "budget")]
    assert full.tokens - tight.tokens == tight.elisions[0].tokens_saved


def test_full_is_append_only_and_refuses_past_the_budget():
    notebook, history = story(3)
    one = Full().window(BRIEF, notebook, history[:2], "", BIG, len)
    two = Full().window(BRIEF, notebook, history, "", BIG, len)
    assert two.messages[: len(one.messages)] == one.messages
    assert [m["role"] for m in two.messages] == ["system", "user"] + ["assistant", "user"] * 3
    with pytest.raises(BudgetTooSmall, match="more than the budget of 50"):
        Full().window(BRIEF, notebook, history, "", Budget(50, 3), len)


def test_policies_are_found_by_name():
    assert policy("drop", keep=2) == Drop(keep=2)
    assert policy("full") == Full()
    with pytest.raises(ValueError, match=r"unknown context policy 'dorp'; there are: drop, full"):
        policy("dorp")
    with pytest.raises(ValueError, match="kep"):
        policy("drop", kep=2)
