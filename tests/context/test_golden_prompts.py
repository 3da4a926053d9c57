"""What a model reads, to the letter: one notebook with every kind of output, rendered by each policy."""

import pytest

from nbagent_context import Brief, Budget, Exchange, text_of
from nbagent_context.drop import Drop
from nbagent_context.full import Full

BRIEF = Brief("Answer with Python.", "Which gene has the highest mean count?\nFiles: counts.csv, samples.csv")
TABLE = "\n".join(f"GENE{i:<4} {i * 7 % 101:>5}" for i in range(60))
OUTPUTS = {
    "c1": [
        {
            "output_type": "stream",
            "name": "stderr",
            "text": "\x1b[33mwarning\x1b[0m: 3 rows\n 10%|#    |\r 100%|#####|\n",
        },
        {
            "output_type": "execute_result",
            "execution_count": 1,
            "metadata": {},
            "data": {"text/plain": "(60, 8)", "text/html": "<b>(60, 8)</b>"},
        },
    ],
    "c2": [{"output_type": "stream", "name": "stdout", "text": TABLE + "\n"}],
    "c3": [
        {
            "output_type": "error",
            "ename": "KeyError",
            "evalue": "'gene'",
            "traceback": ["\x1b[31mKeyError\x1b[0m", "Cell In[3], line 1", "KeyError: 'gene'"],
        }
    ],
    "c4": [{"output_type": "display_data", "metadata": {}, "data": {"image/png": "aGk=", "text/plain": "<Figure>"}}],
}
SOURCES = {
    "c1": "import pandas as pd\ncounts = pd.read_csv('counts.csv', index_col=0)\ncounts.shape",
    "c2": "print(counts.mean(axis=1).to_string())",
    "c3": "counts['gene']",
    "c4": "counts.mean(axis=1).plot()",
}
CELLS = [
    {"id": "m1", "cell_type": "markdown", "metadata": {}, "source": "# Mean counts\nby gene"},
    *(
        {
            "id": name,
            "cell_type": "code",
            "metadata": {},
            "source": source,
            "execution_count": number,
            "outputs": OUTPUTS[name],
        }
        for number, (name, source) in enumerate(SOURCES.items(), 1)
    ),
]
NOTEBOOK = {"cells": CELLS, "metadata": {"language_info": {"name": "python"}}, "nbformat": 4, "nbformat_minor": 5}
HISTORY = [
    Exchange(0, "<answer", "", "Not an action: the answer tag is never closed.", short=""),
    Exchange(1, "…", "read_file", "gene,s1,s2\nGENE0,0,3\n", short="read_file counts.csv"),
    *(
        Exchange(
            step, f"```python\n{SOURCES[cell]}\n```", "run_cell", f"output of {cell}", cell, True, f"run_cell {cell}"
        )
        for step, cell in enumerate(SOURCES, 2)
    ),
]
POLICIES = {
    "full": (Full(), 10**6),
    "drop": (Drop(), 10**6),
    "drop_short": (Drop(keep=3, output_chars=200, old_chars=0), 10**6),
    "drop_tight": (Drop(), 420),
}


@pytest.mark.parametrize("name", POLICIES)
def test_the_prompt_is_the_golden_one(name, golden):
    policy, tokens = POLICIES[name]
    window = policy.window(BRIEF, NOTEBOOK, HISTORY, "2 steps left: submit your answer.", Budget(tokens, 3), len)
    parts = [f"=== {message['role']}\n{text_of(message)}" for message in window.messages]
    left_out = [f"{e.what}: {e.level}, {e.tokens_saved} saved, {e.why}" for e in window.elisions]
    golden(f"prompts/{name}.txt", "\n".join([*parts, f"=== {window.tokens} tokens; left out:", *left_out]) + "\n")
