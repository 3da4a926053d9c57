"""`nbagent prompt`: what the model saw, from the log of a real run."""

from dataclasses import replace

import pytest
from chat_endpoint import answer
from typer.testing import CliRunner

from nbagent.cli import app
from nbagent.env import EnvLimits
from nbagent.models.base import SamplingParams
from nbagent.models.openai import OpenAIModel
from nbagent.models.scripted import ScriptedModel
from nbagent.rollout import RolloutSettings, roll
from nbagent.rollouts import Rollouts
from nbagent.runfolder import RunFolder
from nbagent_training.scratch import make_tokenizer

RUN = CliRunner()
TEXTS = [
    "```python\nprint('\\n'.join(f'GENE{i}' for i in range(40)))\n```",
    "```python\nprint(7)\n```",
    "<answer>7</answer>",
]


def tokenizer():
    return make_tokenizer(["a little text 1 2 3"], 300)


class Writing:
    """A Hugging Face tokenizer for a scripted model, whose text has no terminator in it."""

    def __init__(self):
        self.own = tokenizer()
        self.eos_token_id = self.own.eos_token_id
        self.apply_chat_template = self.own.apply_chat_template

    def __call__(self, text, add_special_tokens=False):
        return self.own(text, add_special_tokens=add_special_tokens)

    def decode(self, ids):
        return self.own.decode([i for i in ids if i != self.eos_token_id])


def settings(policy, **options):
    return RolloutSettings(
        action_format="fenced",
        policy=policy,
        policy_options=options,
        limits=EnvLimits(max_steps=4),
        sampling=SamplingParams(max_new_tokens=200),
    )


@pytest.fixture(scope="module")
def rollouts():
    with Rollouts() as rollouts:
        yield rollouts


@pytest.fixture
def place(tmp_path_factory):
    """Not in `tmp_path`, which is the task's capsule."""
    return tmp_path_factory.mktemp("place")


def say(*args):
    return RUN.invoke(app, ["prompt", *map(str, args)])


def test_the_prompt_of_a_step_is_shown_with_what_was_cut(rollouts, task, place):
    run = RunFolder.create(place / "run", "")
    texts = iter(TEXTS)
    model = ScriptedModel(lambda prompt: next(texts), Writing(), 4000)
    rollouts.call(roll(task, "r", model, settings("drop", frugal=True), run))
    tokenizer().save_pretrained(run.checkpoints / "final")
    loaded = run.load("r")
    ids = [call.prompt_ids for call in loaded.calls()]
    said = say(run.path, "--rollout", "r")
    assert said.exit_code == 0, said.output
    lines = said.output.splitlines()
    assert lines[0].startswith(f"=== step 2, action, policy drop: {len(ids[2]):,} tokens, budget ")
    assert lines[1].startswith("output of c1: line, "), said.output
    assert lines[1].endswith("tokens saved (age)")
    shown = "\n".join(lines[lines.index("=== prompt") + 1 : lines.index("=== reply")])
    assert tokenizer()(shown, add_special_tokens=False)["input_ids"] == list(ids[2])
    assert "GENE0…" in shown
    assert "GENE39" not in shown
    assert lines[-1] == "<answer>7</answer>"
    first = say(run.path, "--rollout", "r", "--step", 0).output
    assert "nothing was cut" in first
    assert "step 2" not in first


def test_a_memory_and_the_prompt_after_it_are_both_shown(rollouts, task, place):
    run = RunFolder.create(place / "run", "")
    texts = iter([*TEXTS[:2], "Nothing so far.", TEXTS[2]])
    model = ScriptedModel(lambda prompt: next(texts), Writing(), 1800)
    rollouts.call(roll(task, "r", model, settings("summarize", threshold=0.15, keep=1, max_tokens=90), run))
    assert [call.event["call_kind"] for call in run.load("r").calls()].count("summary") == 1
    tokenizer().save_pretrained(place / "named")
    said = say(run.path, "--rollout", "r", "--step", 2, "--tokenizer", place / "named").output
    assert said.index("step 2, memory, policy summarize") < said.index("Nothing so far.")
    assert said.index("Nothing so far.") < said.index("step 2, action, policy summarize")
    assert "1 exchanges before step 1: dropped" in said
    assert "name the model's folder with --tokenizer" in say(run.path, "--rollout", "r").output
    run.recipe.write_text(f'model = "{place / "named"}"\n')
    assert say(run.path, "--rollout", "r", "--step", 2).output == said


def test_an_endpoints_messages_are_shown_and_its_control_codes_escaped(rollouts, task, place, endpoint):
    run = RunFolder.create(place / "run", "")
    for text in ("```python\nprint(1)\n```\x1b[31m", "<answer>7</answer>"):
        endpoint.script.append(answer(text, usage=(9, 5)))
    model = OpenAIModel(endpoint.url, "tiny", context_length=40_000)
    rollouts.call(roll(task, "r", model, settings("full"), run))
    rollouts.call(model.close())
    said = say(run.path, "--rollout", "r").output
    assert "tokens by another tokenizer or a bound, budget " in said
    assert [line for line in said.splitlines() if line.startswith("=== ")][1:] == [
        "=== system",
        "=== user",
        "=== assistant",
        "=== user",
        "=== reply",
    ]
    assert "\\x1b[31m" in said
    assert "\x1b" not in said


def test_what_the_environment_cut_and_the_tools_that_went_along_are_named(rollouts, task, place, endpoint):
    run = RunFolder.create(place / "run", "")
    for name, arguments in (("read_file", '{"path": "long.txt"}'), ("submit_answer", '{"answer": "7"}')):
        call = {"id": "1", "function": {"name": name, "arguments": arguments}}
        endpoint.script.append(answer("", "tool_calls", usage=(9, 5), tool_calls=[call]))
    model = OpenAIModel(endpoint.url, "tiny", context_length=60_000)
    rollouts.call(roll(task, "r", model, replace(settings("full"), action_format="native"), run))
    rollouts.call(model.close())
    lines = say(run.path, "--rollout", "r").output.splitlines()
    assert any("lines cut" in line for line in lines)
    assert lines[1] == "answer of exchange 0: head and tail, 88,922 tokens saved (cut by the environment)"
    assert lines[2].startswith("tools sent along: run_cell, edit_cell, ")
    assert lines[2].endswith("submit_answer")


def test_what_is_not_there_is_named(rollouts, task, place):
    run = RunFolder.create(place / "run", "")
    model = ScriptedModel(lambda prompt: TEXTS[2], Writing(), 4000)
    rollouts.call(roll(task, "r", model, settings("drop"), run))
    for args, message in [
        (["--rollout", "r", "--step", 5], "r: has no step 5; its steps are 0 to 0"),
        (["--rollout", "r"], "name the model's folder with --tokenizer"),
        (["--rollout", "r", "--tokenizer", place], "not the folder of a Hugging Face tokenizer"),
        (["--rollout", "s"], "s"),
    ]:
        said = say(run.path, *args)
        assert said.exit_code == 2
        assert message in said.stderr
