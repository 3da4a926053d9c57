"""Prompts made again from the log, for whole runs in real kernels, byte for byte."""

import json

import pytest
from chat_endpoint import answer

from nbagent.env import EnvLimits
from nbagent.errors import TrajectoryError
from nbagent.models.base import SamplingParams
from nbagent.models.openai import OpenAIModel
from nbagent.models.scripted import ByteTokenizer, ScriptedModel
from nbagent.prompts import PromptBuilder
from nbagent.rebuild import windows_again
from nbagent.rollout import RolloutSettings, roll
from nbagent.rollouts import Rollouts
from nbagent.runfolder import RunFolder
from nbagent.trajectory import Trajectory
from nbagent.validation import problems
from nbagent_context import text_of

CODE = "import sys\nprint('\\n'.join(f'GENE{i},{i * i}' for i in range(300)))\nprint('oh', file=sys.stderr)"
PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 2]);"
STEPS = [
    ("run_cell", {"code": "x = 4"}),
    ("run_cell", {"code": CODE}),
    ("read_file", {"path": "long.txt"}),
    None,
    ("run_cell", {"code": "x / 0"}),
    ("add_markdown", {"text": "# Näher 🙂"}),
    ("edit_cell", {"cell": "c1", "source": "x = 5"}),
    ("run_cell", {"code": PLOT}),
    ("run_cell", {"code": "x", "cell": "c3"}),
    ("delete_cell", {"cell": "c2"}),
    ("list_dir", {}),
    ("restart_kernel", {}),
    ("run_cell", {"code": "import os; os._exit(3)"}),
    ("run_cell", {"code": "1 + 1"}),
    ("submit_answer", {"answer": "4"}),
]


def hermes(step):
    if step is None:
        return "I am at a loss."
    name, arguments = step
    return f"I think.\n<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def fenced(step):
    if step is None or step[0] not in ("run_cell", "submit_answer"):
        return "Hm."
    return f"<answer>{step[1]['answer']}</answer>" if "answer" in step[1] else f"```python\n{step[1]['code']}\n```"


@pytest.fixture(scope="module")
def rollouts():
    with Rollouts() as rollouts:
        yield rollouts


class Steps(ScriptedModel):
    """Takes the steps in order, and writes a memory whenever it is asked for one."""

    def __init__(self, write, context_length):
        super().__init__(self.next, ByteTokenizer(), context_length)
        self.texts = iter([write(step) for step in STEPS])

    def next(self, prompt):
        return " x is 4, c1 has it. " if "will be left out from now on" in prompt else next(self.texts)


@pytest.mark.parametrize(
    ("name", "options", "context_length", "asked"),
    [
        ("full", {}, 1 << 20, 0),
        ("window", {"n": 3, "batch": 2}, 12_000, 0),
        ("drop", {"keep": 2}, 6_000, 0),
        ("drop", {"keep": 1, "output_chars": 300, "old_chars": 0, "frugal": True}, 4_500, 0),
        ("summarize", {"keep": 2, "max_tokens": 80, "max_summaries": 3}, 9_000, 2),
    ],
)
@pytest.mark.parametrize("write", [hermes, fenced])
def test_every_prompt_of_a_run_can_be_made_again(
    rollouts, task, tmp_path_factory, name, options, context_length, asked, write
):
    run = RunFolder.create(tmp_path_factory.mktemp("runs") / "run", "")
    settings = RolloutSettings(
        action_format=write.__name__,
        policy=name,
        policy_options=options,
        limits=EnvLimits(max_steps=len(STEPS), warn_steps=4),
        sampling=SamplingParams(max_new_tokens=400),
    )
    model = Steps(write, context_length)
    rollouts.call(roll(task, "r", model, settings, run))
    loaded = run.load("r")
    assert loaded.answer == "4"
    assert problems(loaded.path) == []
    builder = PromptBuilder(ByteTokenizer(), context_length, 400)
    calls = list(loaded.calls())
    made = list(windows_again(loaded, builder.count))
    assert len(made) == len(calls) == len(model.calls) >= len(STEPS)
    assert sum(call.event["call_kind"] == "summary" for call in calls) >= (asked if write is hermes else 0)
    for (event, window), call in zip(made, calls, strict=True):
        assert event is call.event
        assert tuple(builder.build(window).ids) == call.prompt_ids
        assert len(call.prompt_ids) <= context_length - 400
        recorded = [(e["what"], e["level"], e["tokens_saved"], e["why"]) for e in event["elisions"]]
        assert recorded == [(e.what, e.level, e.tokens_saved, e.why) for e in window.elisions]
        read = window.messages[-1]["content"] and "line 0\nline 1\n" in text_of(window.messages[-1])
        assert not read or "cut by the environment" in [e.why for e in window.elisions]


@pytest.mark.parametrize("images", [False, True])
def test_an_endpoints_messages_are_made_again(rollouts, task, tmp_path_factory, endpoint, images, caplog):
    run = RunFolder.create(tmp_path_factory.mktemp("runs") / "run", "")
    for step in STEPS:
        if step is None:
            endpoint.script.append(answer("Hm.", usage=(10**9, 5)))
            continue
        call = {"id": "1", "function": {"name": step[0], "arguments": json.dumps(step[1])}}
        endpoint.script.append(answer("I think.", "tool_calls", usage=(9, 5), tool_calls=[call]))
    settings = RolloutSettings(
        action_format="native",
        limits=EnvLimits(max_steps=len(STEPS)),
        sampling=SamplingParams(max_new_tokens=400),
        images=images,
    )
    model = OpenAIModel(endpoint.url, "tiny", context_length=40_000)
    rollouts.call(roll(task, "r", model, settings, run))
    rollouts.call(model.close())
    loaded = run.load("r")
    assert loaded.answer == "4"
    builder = PromptBuilder(None, 40_000, 400)
    calls = list(loaded.calls())
    for (event, window), call in zip(windows_again(loaded, builder.count), calls, strict=True):
        assert json.dumps(window.messages) == json.dumps(call.messages)
        assert event["tokens"]["prompt_tokens"] in (9, 10**9)
        assert window.tokens <= event["tokens"]["counted"] <= 40_000 - 400
    sent = [body["messages"][-1]["content"] for *_, body in endpoint.requests]
    seen = [[part["type"] for part in content] for content in sent if isinstance(content, list)]
    assert seen == ([["text", "image_url"]] if images else [])
    assert "[image of c5: " in text_of(calls[8].messages[-1])
    assert caplog.text.count("the endpoint counted 1000000000 tokens") == 1


def test_a_log_without_a_budget_says_so():
    old = Trajectory([{"kind": "start", "rollout_id": "r"}], None)
    with pytest.raises(TrajectoryError, match="has no budget"):
        next(windows_again(old, len))
