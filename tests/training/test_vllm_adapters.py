"""LoRA adapters at a real vLLM server: each under a name of its own, and none lost with a server that dies."""

import contextlib
import os
import signal
import threading
import time

import pytest
import torch
from peft import LoraConfig, get_peft_model
from served import INTERPRETER, NEEDS_VLLM, PROMPT, ask, greedy, log_probs, network

from nbagent.errors import ModelError
from nbagent.models.hf import load
from nbagent.rollouts import Rollouts
from nbagent_training.engine import Engine
from nbagent_training.sampler_settings import Sampler

pytestmark = NEEDS_VLLM


def redraw(adapted):
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.5)


def gap(adapted, made):
    return max((log_probs(adapted, PROMPT, c.ids) - torch.tensor(c.logprobs)).abs().mean() for c in made)


def test_a_run_with_lora_gives_the_server_adapters(tokenizer, tmp_path, monkeypatch):
    """Each under a name of its own; the base stays, and the adapter before goes once nobody uses it."""
    trained = network(tokenizer, 3)
    trained.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    base, _ = load(tmp_path / "base")
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    settings = Sampler(engine="vllm", python=str(INTERPRETER.python))
    with Rollouts(4) as rollouts:
        engine = Engine(settings, tmp_path, rollouts, bf16=False, starting=lambda name: contextlib.nullcontext())
        try:
            sampler = engine.of(adapted, tokenizer, "grpo")
            (plain,) = ask(rollouts, sampler, max_new_tokens=8, temperature=0.0)
            assert plain.ids == greedy(trained, PROMPT, 8)
            for version in (1, 2):
                redraw(adapted)
                sampler.refresh(version)
                made = ask(rollouts, sampler, n=4, max_new_tokens=24)
                assert gap(adapted, made) < 1e-3
                assert {c.version for c in made} == {version}
                assert ask(rollouts, sampler, max_new_tokens=8, temperature=0.0)[0].ids != plain.ids
            assert list(sampler._adapters.values()) == [tmp_path / "sampler" / "weights-000002"]
            dies_amid_a_swap(rollouts, sampler, adapted, monkeypatch)
            sampler.save = trained.save_pretrained
            with pytest.raises(ModelError, match="no adapter"):
                sampler.refresh(4)
        finally:
            engine.close()
    assert not list((tmp_path / "sampler").glob("weights-*"))


def dies_amid_a_swap(rollouts, sampler, adapted, monkeypatch):
    """The server dies before it has the new adapter, with calls under way, and they outlast it.

    They are answered by an adapter whose version they bear: the one before, or the new one.
    """
    server, tell = sampler._server, sampler._told.tell
    before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    dead = threading.Event()

    def dies(path, body, done=""):
        if path == "/v1/load_lora_adapter" and not dead.is_set():
            dead.set()
            while not sampler._under_way.total():
                time.sleep(0.001)
            os.killpg(server._process.pid, signal.SIGKILL)
            while server.starts == 1:
                time.sleep(0.01)
            # Until a call is made again, by the name of the one before.
            while not sampler._under_way.total():
                time.sleep(0.001)
        return tell(path, body, done)

    monkeypatch.setattr(sampler._told, "tell", dies)
    redraw(adapted)
    swap = threading.Thread(target=sampler.refresh, args=(3,))
    swap.start()
    dead.wait()
    made = ask(rollouts, sampler, n=4, max_new_tokens=200)
    swap.join()
    assert server.starts == 2
    made += ask(rollouts, sampler, n=2, max_new_tokens=24)
    assert sampler._endpoint.retries >= 4
    assert {c.version for c in made[:4]} <= {2, 3}
    assert {c.version for c in made[4:]} == {3}
    assert gap(adapted, [c for c in made if c.version == 3]) < 1e-3
    now = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    adapted.load_state_dict(before, strict=False)
    old = [c for c in made if c.version == 2]
    assert old, "none was made again before the swap was over"
    assert gap(adapted, old) < 1e-3
    adapted.load_state_dict(now, strict=False)
