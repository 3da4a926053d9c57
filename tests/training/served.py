"""What tests with a real vLLM server share: the environment that has it, a small model, and ways to ask.

It needs an environment with vLLM (`make vllm`), named by NBAGENT_VLLM_PYTHON or lying at .venv-vllm.
"""

import asyncio
import contextlib
import os
import signal
import time

import pytest
import torch

from nbagent.env import EnvLimits
from nbagent.errors import UsageError
from nbagent.models.base import Prompt, SamplingParams
from nbagent.models.vllm import VLLMModel
from nbagent.models.vllm_server import VLLMServer, find_interpreter
from nbagent.rollout import RolloutSettings
from nbagent.tasks import open_tasks
from nbagent_training.scratch import Size, make_model

try:
    INTERPRETER = find_interpreter()
except UsageError as error:
    INTERPRETER = None
    WHY = str(error)

NEEDS_VLLM = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(INTERPRETER is None, reason=WHY if INTERPRETER is None else ""),
]
PROMPT = tuple(range(5, 69))
SIZE = Size(vocabulary=320, hidden=128, layers=2, heads=2, kv_heads=1, intermediate=128, positions=4096)
"""Head dimension 64: vLLM's CPU attention does not take 16."""


def network(tokenizer, seed):
    model = make_model(tokenizer, SIZE, seed)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3.0)
    return model.eval()


@contextlib.contextmanager
def served(rollouts, model, tokenizer, place, **settings):
    """A model at a server of its own."""
    model.save_pretrained(place / "start")
    tokenizer.save_pretrained(place / "start")
    server = VLLMServer(INTERPRETER, place / "start", log=place / "log", dtype="float32", **settings)
    try:
        sampler = VLLMModel(tokenizer, "served", server=server, place=place)
        yield sampler, server
        rollouts.call(sampler.close())
    finally:
        server.close()


def ask(rollouts, sampler, n=1, prompt=PROMPT, **params):
    async def all_of_them():
        return await asyncio.gather(
            *(sampler.sample(Prompt([], ids=prompt), SamplingParams(seed=seed, **params)) for seed in range(n))
        )

    return rollouts.call(all_of_them())


def log_probs(model, prompt, ids, temperature=1.0):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].double()
    return torch.log_softmax(logits / temperature, -1).gather(1, torch.tensor(ids)[:, None])[:, 0]


def greedy(model, prompt, n):
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(n):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


def play(rollouts, sampler, tmp_path, n, max_steps=3):
    """Rollouts of one bundled task in real kernels."""
    task = open_tasks("bundled:train?n=1&seed=0&families=heart_median", tmp_path / "tasks").tasks()[0]
    settings = RolloutSettings(
        action_format="fenced", limits=EnvLimits(max_steps=max_steps), sampling=SamplingParams(max_new_tokens=48)
    )
    return rollouts.run([(task, f"r{k}") for k in range(n)], sampler, settings)


def kill_once_busy(sampler, server):
    while not sampler._under_way.total():
        time.sleep(0.001)
    os.killpg(server._process.pid, signal.SIGKILL)
