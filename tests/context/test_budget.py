"""What every policy promises: within the budget, always the same, and what matters survives."""

import base64
import copy
import functools
import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stories import BRIEF, NOTICE, code_cell, plain_story, shown, stories, stream, told

from nbagent_context import Budget, BudgetTooSmall, Memory, SummaryRequest, policy
from nbagent_context.elide import HIGH
from nbagent_context.history import newest_error, newest_output
from nbagent_context.types import exchanges_of, measure
from nbagent_training.scratch import make_tokenizer

POLICIES = {
    "full": policy("full"),
    "window": policy("window", n=2, batch=3),
    "window_short": policy("window", n=1, batch=1),
    "drop": policy("drop"),
    "drop_short": policy("drop", keep=3, output_chars=200, old_chars=0, frugal=True),
    "summarize": policy("summarize", keep=1, max_tokens=60, max_summaries=2),
}
NAMES = pytest.mark.parametrize("name", POLICIES)


@pytest.fixture(scope="module")
def tokens_of():
    """Counts with a real tokenizer, of the demo's kind."""
    tokenizer = make_tokenizer(
        [NOTICE, "0.12 3.4\nprint(1)\n[steps 1 to 2 not shown]\n[c1]\nValueError: OUT2."] * 30, 400
    )
    return functools.cache(lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]))


def look_or_raise(name, story, budget, notice=NOTICE, memory="it was 5", count=len):
    """The next window, with every memory that is asked for written."""
    for _ in range(4):
        seen = POLICIES[name].window(BRIEF, story.notebook, story.history, notice, budget, count)
        assert seen.tokens == measure(seen.messages, budget, count)
        if not isinstance(seen, SummaryRequest):
            return seen
        assert seen.tokens + seen.max_tokens <= budget.tokens
        assert 0 < seen.covers < story.steps
        story.remember(seen, memory)
    raise AssertionError("asks without end")


def look(*args, **more):
    """The same; None where it does not fit."""
    try:
        return look_or_raise(*args, **more)
    except BudgetTooSmall:
        return None


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
    error, output = newest_error(exchanges, story.notebook), newest_output(exchanges, story.notebook)
    if error:
        assert f"OUT{error.step}." in text
    if output:
        assert f"OUT{output.step}." in text
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


def sweep(name, story, count, image_tokens=0):
    """Every budget from 1 to where nothing needs to be cut; what each that is refused asks for."""
    roomy = look_or_raise("full", story.again(), Budget(10**7, 3), count=count).tokens
    refused = {}
    for tokens in range(1, int(roomy / HIGH) + 400):
        budget, small = Budget(tokens, 3, image_tokens), None
        try:
            window = look_or_raise(name, story.again(), budget, "left", "m " * 99, count)
        except BudgetTooSmall as error:
            small = error
        if small is None:
            assert window.tokens <= tokens
        else:
            assert f"{small.needed - tokens} more than the budget of {tokens};" in str(small)
            assert small.budget == tokens < small.needed
            refused[tokens] = small.needed
    return refused


FAR = [("run", "x" * 30, "")] * 12 + [("error", "y" * 260, "")] + [("run", "", "")] * 11
FAR += [("run", "z" * 300, ""), ("malformed", "", ""), ("read", "q" * 300, "I think.")]


@NAMES
@pytest.mark.parametrize("real", [False, True])
def test_no_budget_is_exceeded_and_the_least_that_a_refusal_asks_for_works(name, real, tokens_of):
    count = tokens_of if real else len
    refused = sweep(name, told(FAR), count)
    assert refused
    # One and the same smallest prompt is what every refusal asks for, and no larger budget is refused.
    assert set(refused.values()) == {max(refused) + 1}


def test_a_tokenizer_of_which_shorter_marks_take_more_is_kept_to():
    def odd(text):
        """One token for what is reserved, many for the marks that come."""
        return len(text.replace("100000", "").replace("100001", ""))

    for name in ("window", "drop", "summarize"):
        refused = sweep(name, told(FAR[:16]), odd)
        assert set(refused.values()) == {max(refused) + 1}


HINTS = "\n".join(f"See https://example.org/{number} on how to impute what is missing." for number in range(40))
MESSAGES = {
    "hints": "Input X contains NaN: SENTINEL.\n" + HINTS,
    "one_hint": "Input X contains NaN: SENTINEL.\n" + "Estimators that handle NaN are listed there. " * 20,
    "begins_with_a_break": "\nAll the 5 fits failed: SENTINEL.\n" + HINTS,
    "long_first_line": f"SENTINEL {'word ' * 200}\n" + HINTS,
}


def failing(message, printed, after=()):
    """A cell that printed and failed with a message of several lines, and what came after it."""
    from nbagent_context.render import output_text

    story = told([("run", "", "")])
    error = {"output_type": "error", "ename": "ValueError", "evalue": message, "traceback": []}
    cell = code_cell(2, "model.fit(X, y)", [stream(printed), error])
    story.made = 2
    story.cells.append(cell)
    answer = f"[c2]\n{output_text(cell['outputs'])}"
    story.add("run_cell", answer, "c2", shown=True, short="run_cell c2", failed=True)
    for kind in after:
        story.tell(kind, "0.12 3.4\n" * 40)
    return story


@NAMES
@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("after", [(), ("read",) * 6, ("run",) * 6])
def test_the_newest_error_keeps_its_name_and_first_line(name, message, after):
    story = failing(MESSAGES[message], "epoch 1\n" + "".join(f"line {i}\n" for i in range(120)), after)
    seen = 0
    for tokens in (20_000, 6000, 3000, 2000, 1500, 1200, 1000, 900, 800):
        window = look(name, copy.deepcopy(story), Budget(tokens, 3))
        if window is not None:
            seen += 1
            assert "ValueError: " in shown(window)
            assert "SENTINEL" in shown(window)
    assert seen > (0 if name == "full" else 4)


def test_an_older_error_keeps_its_name_in_its_one_line():
    story = failing(MESSAGES["hints"], "", ["mend", *["run"] * 6])
    line = look("summarize", story, Budget(1500, 3), memory="")
    window = policy("window", n=20).window(BRIEF, story.notebook, story.history, "", Budget(2200, 3), len)
    assert "ValueError: Input X contains NaN: SENTINEL." in shown(window)
    assert line is not None
    dropped = policy("drop").window(BRIEF, story.notebook, story.history, "", Budget(10**6, 3), len)
    assert "> run_cell c2: ValueError: Input X contains NaN: SENTINEL.\n" in shown(dropped)


@NAMES
def test_the_newest_output_survives_whatever_came_after_it(name):
    for kinds in (["run", *["read"] * 10], ["run", *["malformed"] * 10], ["run", *["markdown"] * 10, "error", "read"]):
        for tokens in range(300, 3000, 90):
            story = told([(kind, "", "") for kind in kinds])
            window = look(name, story, Budget(tokens, 3))
            output = newest_output(exchanges_of(story.history), story.notebook)
            assert window is None or f"OUT{output.step}." in shown(window)


def seeing(story, n_images=4):
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (64, 48)).save(buffer, "PNG")
    png = base64.b64encode(buffer.getvalue()).decode()
    story.cells[-1]["outputs"] = [
        {"output_type": "display_data", "metadata": {}, "data": {"image/png": png, "text/plain": "<Figure>"}}
    ] * n_images
    return story


@NAMES
def test_images_take_only_what_is_left(name):
    story = seeing(plain_story(1))
    blind = sweep(name, story, len)
    assert sweep(name, story, len, 150) == blind
    needed = max(blind.values())
    for extra in (0, 149, 150, 299, 300, 599):
        window = look(name, story, Budget(needed + extra, 3, 150), "left")
        images = [part for part in window.messages[-1]["content"] if part["type"] == "image_url"]
        assert len(images) <= extra // 150
        assert [e.what for e in window.elisions if "image" in e.what] == [
            "image of c1" if len(images) == 3 else f"{4 - len(images)} images of c1"
        ]


def test_the_list_of_actions_takes_only_what_is_left():
    newest = ("read", "q" * 3000, "")
    alone = max(sweep("drop", told([("markdown", "", "")] * 9 + [newest]), len).values())
    window = look("drop", told([("markdown", "", "")] * 9 + [newest]), Budget(alone, 3), "left")
    assert "OUT9." in shown(window)
    assert "> add_markdown" not in shown(window)
    assert "9 actions" in [elision.what for elision in window.elisions]


@NAMES
def test_what_the_environment_cut_is_recorded(name):
    story = told([("run", "", ""), ("read", "q" * 60, "")])
    story.history[-1] = replace(story.history[-1], full_chars=100 * len(story.history[-1].observation))
    *_, cut = look(name, story, Budget(10**6, 3)).elisions
    assert (cut.what, cut.level, cut.why) == ("answer of exchange 1", "head_tail", "cut by the environment")
    assert cut.tokens_saved == 99 * len(story.history[-1].observation)


def test_a_memory_goes_before_a_prompt_is_refused():
    story = plain_story(6)
    story.history.append(Memory("m " * 25, 5, 6))
    refused = sweep("summarize", story, len)
    window = look("summarize", story, Budget(max(refused) + 1, 3), "left")
    assert "memory" not in shown(window)
    assert ("memory", "dropped", "budget") in [(e.what, e.level, e.why) for e in window.elisions]
    roomy = look("summarize", story, Budget(5000, 3))
    assert "Your memory of steps 0 to 4:\nm m " in shown(roomy)


@pytest.mark.parametrize("tokens", [1, 7, 60])
def test_a_memory_that_is_too_long_is_cut_to_its_tokens(tokens):
    def dense(text):
        """The beginning takes more tokens than the rest."""
        return len(text) + 30 * text.count("x")

    story = plain_story(6)
    story.history.append(Memory("x" * 20 + "y" * 400, 5, 6))
    window = policy("summarize", max_tokens=tokens).window(
        BRIEF, story.notebook, story.history, "", Budget(10**5, 3), dense
    )
    _, _, memory = shown(window).partition("Your memory of steps 0 to 4:\n")
    assert dense(memory.partition("\n[steps")[0]) <= tokens
    assert ("memory", "size") in [(e.what, e.why) for e in window.elisions]


def test_a_short_thought_gives_way_to_no_longer_line():
    """The line of a failure that the notebook shows would take more than the thought alone."""
    story = told([("run", "", ""), ("run", "", ""), ("error", "", "I think."), ("error", "0.12 3.4\n" * 22, "")])
    window = look("drop_short", story, Budget(408, 3))
    assert window is not None
    assert all(elision.tokens_saved >= 0 for elision in window.elisions)
