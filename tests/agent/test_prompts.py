"""Prompts as ids: parts encoded on their own and joined, template pieces exact."""

import tracemalloc

import pytest

from nbagent.errors import UsageError
from nbagent.prompts import PromptBuilder
from nbagent_context import Brief, Window, message, policy


@pytest.fixture(scope="module")
def tokenizer():
    from nbagent_training.scratch import make_tokenizer

    return make_tokenizer(["import pandas as pd\nprint(df.mean())\n12.5 genes"] * 30, 340)


def test_ids_are_the_parts_ids_between_the_templates_pieces(tokenizer):
    window = Window((message("system", ["be ", "brief"]), message("user", ["how many\n", "genes?\n"])), 0)
    builder = PromptBuilder(tokenizer, 512, 100)
    ids = builder.build(window).ids

    def encode(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    wanted = [
        *encode("<|system|>"), *encode("be "), *encode("brief"),
        *encode("<|user|>"), *encode("how many\n"), *encode("genes?\n"), *encode("<|assistant|>"),
    ]  # fmt: skip
    assert list(ids) == wanted
    text = tokenizer.apply_chat_template(
        [{"role": "system", "content": "be brief"}, {"role": "user", "content": "how many\ngenes?\n"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert tokenizer.decode(ids) == text


def test_a_budget_kept_is_a_prompt_that_fits(tokenizer):
    builder = PromptBuilder(tokenizer, 512, 100)
    budget = builder.budget()
    parts = ["a b c\n"] * 20
    window = Window((message("system", ["x"]), message("user", parts)), 0)
    counted = 2 * budget.per_message + builder.count("x") + sum(map(builder.count, parts))
    assert len(builder.build(window).ids) <= counted + 512 - 100 - budget.tokens


DEFAULT = """{% if messages[0]['role'] == 'system' %}<s>{{ messages[0]['content'] }}</s>{% else %}\
<s>You are a helpful assistant, made by somebody who says so in each prompt: 12.5 genes, 12.5 means.</s>{% endif %}\
{% for m in messages if m['role'] != 'system' %}<{{ m['role'] }}>{{ m['content'] }}\
</{{ m['role'] }}>{% endfor %}<assistant>"""


@pytest.mark.parametrize("instruction", ["", "Answer with Python."])
@pytest.mark.parametrize("name", ["full", "window", "drop", "summarize"])
def test_a_template_that_adds_an_instruction_of_its_own_is_counted(tokenizer, instruction, name):
    other = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>", chat_template=DEFAULT)
    builder = PromptBuilder(other, 512, 100)
    budget = builder.budget()
    start = PromptBuilder(tokenizer, 512, 100).budget()
    assert start.tokens > budget.tokens
    notebook = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    fits = 0
    for length in range(1, 600):
        brief = Brief(instruction, "genes " * length)
        if builder.count(brief.task) + budget.per_message > budget.tokens:
            break
        try:
            window = policy(name).window(brief, notebook, [], "", budget, builder.count)
        except ValueError:
            continue
        fits += 1
        assert len(builder.build(window).ids) <= 512 - 100
    assert fits > 50


class Counting:
    """A tokenizer that counts what it encodes."""

    def __init__(self, tokenizer):
        self.own, self.encoded = tokenizer, []
        self.apply_chat_template = tokenizer.apply_chat_template

    def __call__(self, text, add_special_tokens=False):
        self.encoded.append(text)
        return self.own(text, add_special_tokens=add_special_tokens)


def test_what_is_counted_and_shown_is_encoded_once(tokenizer):
    counting = Counting(tokenizer)
    builder = PromptBuilder(counting, 512, 100)
    window = Window((message("system", ["be brief"]), message("user", ["how many\n", "genes?\n"])), 0)
    for _ in range(3):
        builder.count("genes?\n")
        builder.build(window)
    assert sorted(counting.encoded) == sorted(set(counting.encoded))


def test_what_is_kept_is_bounded_in_bytes(tokenizer):
    builder = PromptBuilder(tokenizer, 10**6, 100)
    tracemalloc.start()
    try:
        for number in range(300):
            builder.count(f"{number} " + "12.5 genes, " * 2500)
        held, _ = tracemalloc.get_traced_memory()
        assert held < 10 << 20
        shown = Window((message("user", [f"{number} " + "12.5 genes, " * 250 for number in range(300)]),), 0)
        before, _ = tracemalloc.get_traced_memory()
        builder.build(shown)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Four bytes an id, not the 36 of a tuple of numbers.
    assert held - before < 12 * 300 * builder.count("12.5 genes, " * 250)


def test_without_a_tokenizer_counts_are_a_bound_in_bytes():
    builder = PromptBuilder(None, 512, 100)
    assert not builder.exact
    assert builder.count("Ä1") == 3
    prompt = builder.build(Window((message("user", ["q"]),), 0))
    assert prompt.ids is None
    tools = [{"function": {"name": "run_cell"}}]
    with_tools = builder.build(Window((message("user", ["q"]),), 0), tools)
    assert with_tools.counted - prompt.counted == builder.budget().tokens - builder.budget(tools).tokens > 30


def test_a_named_tokenizer_counts_for_an_endpoint_and_is_marked_inexact(tokenizer):
    builder = PromptBuilder(None, 512, 100, counter=tokenizer)
    assert not builder.exact
    assert builder.count("import pandas as pd") < len("import pandas as pd")
    assert builder.build(Window((message("user", ["q"]),), 0)).ids is None


def test_images_are_for_endpoints(tokenizer):
    from nbagent_training.recipe import TrainRecipe

    with pytest.raises(ValueError, match="training on images is not supported"):
        TrainRecipe(agent={"images": True})
    with pytest.raises(UsageError, match="training on images is not supported"):
        PromptBuilder(tokenizer, 512, 100, image_tokens=1100)
    assert PromptBuilder(None, 512, 100, image_tokens=1100).budget().image_tokens == 1100


def test_a_template_that_drops_a_message_is_refused(tokenizer):
    from nbagent.errors import ModelFolderError

    broken = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>", chat_template="none")
    with pytest.raises(ModelFolderError, match="system message"):
        PromptBuilder(broken, 512, 100).budget()
