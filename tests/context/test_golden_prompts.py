"""What a model reads, to the letter: one attempt with every kind of output, by each policy and action format."""

import base64
import io

import pytest

from nbagent.actions import action_format
from nbagent.tools import TOOLS
from nbagent_context import Brief, Budget, Exchange, Memory, SummaryRequest, policy, text_of

TABLE = "\n".join(f"GENE{i:<4} {i * 7 % 101:>5}" for i in range(60))
NOTICE = "2 steps left: submit your answer."


def plot():
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (64, 48)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def stream(name, text):
    return {"output_type": "stream", "name": name, "text": text}


CELLS = {
    "c1": (
        "import pandas as pd\ncounts = pd.read_csv('counts.csv', index_col=0)\ncounts.shape",
        [
            stream("stderr", "\x1b[33mwarning\x1b[0m: 3 rows\n 10%|#    |\r 100%|#####|\n" + "retry\n" * 5),
            {
                "output_type": "execute_result",
                "metadata": {},
                "data": {"text/plain": "(60, 8)", "text/html": "<b>8</b>"},
            },
        ],
        1,
    ),
    "c2": ("print(counts.mean(axis=1).to_string())", [stream("stdout", TABLE + "\n")], 2),
    "c3": (
        "counts['gene']",
        [
            {
                "output_type": "error",
                "ename": "KeyError",
                "evalue": "'gene'",
                "traceback": [
                    "\x1b[31mKeyError\x1b[0m",
                    "Cell In[3], line 1\n----> 1 counts['gene']",
                    "File /v/lib/python3.11/site-packages/pandas/core/frame.py:4102, in DataFrame.__getitem__(self)",
                    "KeyError: 'gene'",
                ],
            }
        ],
        3,
    ),
    "c4": ("top = counts.mean(axis=1).idxmax()", [], None),
    "c5": (
        "counts.mean(axis=1).plot()",
        [{"output_type": "display_data", "metadata": {}, "data": {"image/png": plot(), "text/plain": "<Figure>"}}],
        6,
    ),
}
NOTEBOOK = {
    "cells": [
        {"id": "m1", "cell_type": "markdown", "metadata": {}, "source": "# Mean counts\nby gene"},
        *(
            {
                "id": name,
                "cell_type": "code",
                "metadata": {},
                "source": source,
                "execution_count": n,
                "outputs": outputs,
            }
            for name, (source, outputs, n) in CELLS.items()
        ),
    ],
    "metadata": {"language_info": {"name": "python"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}


def story(name):
    """The same attempt, as a model would have written it in an action format."""
    fmt = action_format(name)
    brief = Brief(fmt.instruction(fmt.available(TOOLS)), "Which gene has the highest mean?\nFiles: counts.csv")

    def ran(step, cell, answer, **more):
        text = fmt.render("run_cell", {"code": CELLS[cell][0]})
        return Exchange(step, text, "run_cell", answer, cell, True, f"run_cell {cell}", **more)

    def other(step, tool, args, answer, short):
        text = "Hm." if name == "fenced" else fmt.render(tool, args)
        return Exchange(step, text, tool, answer, args.get("cell", ""), short=short)

    history = [
        Exchange(0, "<answer", "", "Not an action: <answer> is not closed by </answer>.", failed=True),
        other(1, "read_file", {"path": "counts.csv"}, "gene,s1,s2\nGENE0,0,3\n", "read_file counts.csv"),
        ran(2, "c1", "[c1]\nwarning: 3 rows\n(60, 8)"),
        ran(3, "c2", f"[c2]\n{TABLE}"),
        ran(4, "c3", "[c3]\nat: counts['gene']\nKeyError: 'gene'", failed=True),
        ran(5, "c4", "[c4]\n(no output)"),
        other(6, "edit_cell", {"cell": "c4", "source": CELLS["c4"][0]}, "c4 changed, not run.", "edit_cell c4"),
        ran(7, "c5", "[c5]\n[image of c5: 64x48 png]", thought="Now a plot."),
    ]
    return brief, history


MEMORY = Memory("counts has 60 genes and 8 samples. counts['gene'] fails: genes are the index.", 5, 7)
BIG = 10**6
PROMPTS = {
    "full": ("full", {}, BIG),
    "window": ("window", {"n": 2, "batch": 1}, BIG),
    "drop": ("drop", {}, BIG),
    "drop_short": ("drop", {"keep": 3, "output_chars": 200, "old_chars": 0, "frugal": True}, BIG),
    "drop_frugal": ("drop", {"frugal": True}, BIG),
    "drop_tight": ("drop", {}, 560),
    "summarize": ("summarize", {}, BIG),
    "summarize_request": ("summarize", {"max_tokens": 100}, 2100),
}


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("fmt", ["fenced", "hermes", "native"])
def test_the_prompt_is_the_golden_one(name, fmt, golden):
    kind, options, tokens = PROMPTS[name]
    brief, history = story(fmt)
    if name == "summarize":
        history.append(MEMORY)
    # The same room for everything but the instruction, whose length is the format's.
    budget = Budget(tokens + len(brief.instruction), 3)
    window = policy(kind, **options).window(brief, NOTEBOOK, history, NOTICE, budget, len)
    assert isinstance(window, SummaryRequest) == (name == "summarize_request")
    parts = [f"=== {message['role']}\n{text_of(message)}" for message in window.messages]
    left_out = [f"{e.what}: {e.level}, {e.tokens_saved} saved, {e.why}" for e in window.elisions]
    golden(f"prompts/{fmt}_{name}.txt", "\n".join([*parts, f"=== {window.tokens} tokens; left out:", *left_out]) + "\n")


def test_a_model_that_sees_is_shown_the_newest_images():
    brief, history = story("native")
    window = policy("drop").window(brief, NOTEBOOK, history, NOTICE, Budget(BIG, 3, image_tokens=500), len)
    *_, text, image, notice = window.messages[-1]["content"]
    assert text["text"] == "> run_cell c5\nNow a plot.\n"
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert notice["text"] == f"{NOTICE}\n"
    blind = policy("drop").window(brief, NOTEBOOK, history, NOTICE, Budget(BIG, 3), len)
    assert window.tokens == blind.tokens + 500
    small = policy("drop").window(brief, NOTEBOOK, history, NOTICE, Budget(len(brief.instruction) + 900, 3, 9000), len)
    assert [e.what for e in small.elisions][-1] == "image of c5"
