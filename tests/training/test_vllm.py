"""A real vLLM server on the CPU: rollouts in real kernels, new weights, and its death in the middle of them.

LoRA: test_vllm_adapters.py. A server at a URL, and a teacher's: test_vllm_elsewhere.py. A whole run: test_vllm_run.py.
"""

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from served import INTERPRETER, NEEDS_VLLM, PROMPT, ask, greedy, kill_once_busy, log_probs, network, play, served

from nbagent.errors import ModelError, UsageError
from nbagent.models.base import Prompt, SamplingParams
from nbagent.models.vllm_server import VLLMServer, find_interpreter
from nbagent.rollouts import Rollouts
from nbagent.samples import samples
from nbagent.tasks import Outcome
from nbagent_training.engine import Engine
from nbagent_training.sampler_settings import Sampler
from nbagent_training.weight_lines import GlooLine

pytestmark = NEEDS_VLLM


@pytest.fixture(scope="module")
def trained(tokenizer):
    return network(tokenizer, 3)


@pytest.fixture(scope="module")
def rollouts():
    with Rollouts(4) as rollouts:
        yield rollouts


@pytest.fixture(scope="module")
def both(rollouts, trained, tokenizer, tmp_path_factory):
    with served(rollouts, trained, tokenizer, tmp_path_factory.mktemp("served"), swaps=True) as both:
        yield both


@pytest.fixture
def sampler(both):
    return both[0]


def test_more_long_prompts_at_once_than_a_step_of_the_server_reads(rollouts, both):
    """With chunks of prompts and seeded calls the engine of vLLM 0.31 died on the CPU."""
    sampler, server = both
    starts = server.starts

    async def all_of_them():
        prompts = [tuple(5 + (k + place * place) % 300 for place in range(1400)) for k in range(6)]
        return await asyncio.gather(
            *(sampler.sample(Prompt([], ids=ids), SamplingParams(seed=7, max_new_tokens=4)) for ids in prompts)
        )

    assert all(made.ids for made in rollouts.call(all_of_them()))
    assert server.starts == starts


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_the_trainers(rollouts, sampler, trained, temperature):
    made = ask(rollouts, sampler, n=12, max_new_tokens=24, temperature=temperature)
    gaps = torch.cat([(log_probs(trained, PROMPT, c.ids, temperature) - torch.tensor(c.logprobs)).abs() for c in made])
    assert gaps.mean() < 1e-3
    assert len({c.ids for c in made}) == 12
    assert ask(rollouts, sampler, n=12, max_new_tokens=24, temperature=temperature)[5].ids == made[5].ids


def test_the_terminator_is_kept_and_the_text_is_without_it(rollouts, sampler, tokenizer):
    made = ask(rollouts, sampler, n=40, max_new_tokens=200, temperature=1.0)
    ended = [c for c in made if c.finish == "stop"]
    assert ended
    for completion in made:
        assert len(completion.ids) == len(completion.logprobs)
        assert (completion.ids[-1] == tokenizer.eos_token_id) == (completion.finish == "stop")
        kept = completion.ids[:-1] if completion.finish == "stop" else completion.ids
        assert completion.text == tokenizer.decode(kept)


def test_a_prompt_that_does_not_fit_is_an_error(rollouts, sampler):
    with pytest.raises(ModelError, match="do not fit into 4096"):
        ask(rollouts, sampler, prompt=(5,) * 4090, max_new_tokens=100)


def test_rollouts_in_real_kernels(rollouts, sampler, trained, tmp_path):
    made = play(rollouts, sampler, tmp_path, 4)
    rows = [row for trajectory in made for row in samples(trajectory)]
    assert len(rows) == sum(len(list(t.calls())) for t in made) == 12
    gap = torch.cat(
        [(log_probs(trained, r.prompt_ids, r.completion_ids) - torch.tensor(r.logprobs)).abs() for r in rows]
    )
    assert gap.mean() < 1e-3
    assert {row.version for row in rows} == {sampler.version}


def test_new_weights_answer_as_the_trainers_do(rollouts, sampler, trained, tokenizer):
    (before,) = ask(rollouts, sampler, max_new_tokens=12, temperature=0.0)
    assert before.ids == greedy(trained, PROMPT, 12)
    other = network(tokenizer, 4)
    sampler.save = other.save_pretrained
    try:
        sampler.refresh(7)
        (after,) = ask(rollouts, sampler, max_new_tokens=12, temperature=0.0)
        assert after.ids == greedy(other, PROMPT, 12) != before.ids
        assert (before.version, after.version) == (0, 7)
    finally:
        sampler.save = trained.save_pretrained
        sampler.refresh(8)


def test_a_swap_waits_for_the_calls_under_way(rollouts, sampler, trained, tokenizer):
    """Every completion is wholly of one version, and says of which."""
    models = {9: trained, 10: network(tokenizer, 5)}
    sampler.refresh(9)
    sampler.save = models[10].save_pretrained
    swap = threading.Thread(target=sampler.refresh, args=(10,))

    async def calls():
        first = [asyncio.create_task(one(seed)) for seed in range(6)]
        while not sampler._under_way.total():
            await asyncio.sleep(0)
        swap.start()
        return [*await asyncio.gather(*first), *[await one(seed) for seed in range(6, 9)]]

    def one(seed):
        return sampler.sample(Prompt([], ids=PROMPT), SamplingParams(max_new_tokens=300, seed=seed))

    try:
        made = rollouts.call(calls())
        swap.join()
        assert {c.version for c in made} == {9, 10}
        for completion in made:
            gap = (
                log_probs(models[completion.version], PROMPT, completion.ids) - torch.tensor(completion.logprobs)
            ).abs()
            assert gap.mean() < 1e-3
    finally:
        sampler.save = trained.save_pretrained
        sampler.refresh(11)


def test_a_server_that_dies_amid_rollouts_is_survived(rollouts, both, trained, tokenizer, tmp_path):
    """It comes back with the newest weights; no rollout is lost."""
    sampler, server = both
    other = network(tokenizer, 6)
    sampler.save = other.save_pretrained
    sampler.refresh(12)
    killer = threading.Thread(target=kill_once_busy, args=(sampler, server))
    killer.start()
    made = play(rollouts, sampler, tmp_path, 4, max_steps=2)
    killer.join()
    assert server.starts == 2
    assert [t.outcome for t in made].count(Outcome.INFRASTRUCTURE) == 0
    rows = [row for trajectory in made for row in samples(trajectory)]
    assert len(rows) == 8
    gaps = [(log_probs(other, r.prompt_ids, r.completion_ids) - torch.tensor(r.logprobs)).abs() for r in rows]
    assert torch.cat(gaps).mean() < 1e-3


def test_weights_are_sent_past_any_file(rollouts, tokenizer, tmp_path, monkeypatch):
    """By vLLM's own endpoints. A server that dies, or is left with half of them, gets those that were taken last."""
    model, other = network(tokenizer, 3), network(tokenizer, 4)
    settings = Sampler(engine="vllm", python=str(INTERPRETER.python), weights="sent")
    engine = Engine(settings, tmp_path, rollouts, bf16=False, starting=lambda name: contextlib.nullcontext())
    try:
        sampler = engine.of(model, tokenizer, "grpo")
        server = sampler._server
        assert ask(rollouts, sampler, max_new_tokens=12, temperature=0.0)[0].ids == greedy(model, PROMPT, 12)

        model.load_state_dict(other.state_dict())
        sampler.refresh(1)
        made = ask(rollouts, sampler, n=6, max_new_tokens=24)
        gaps = [(log_probs(other, PROMPT, c.ids) - torch.tensor(c.logprobs)).abs().mean() for c in made]
        assert max(gaps) < 1e-3
        assert {c.version for c in made} == {1}
        assert server.starts == 1

        # The trainer is at work on the next version when the server dies.
        model.load_state_dict(network(tokenizer, 5).state_dict())
        server.start_again(1)
        assert ask(rollouts, sampler, max_new_tokens=12, temperature=0.0)[0].ids == greedy(other, PROMPT, 12)

        broadcast, sent = GlooLine.broadcast, []

        def breaks_once(line, tensor):
            sent.append(tensor)
            if len(sent) == 5:
                raise RuntimeError("the line broke")
            broadcast(line, tensor)

        monkeypatch.setattr(GlooLine, "broadcast", breaks_once)
        sampler.refresh(2)
        assert server.starts == 3
        (made,) = ask(rollouts, sampler, max_new_tokens=12, temperature=0.0)
        assert made.ids == greedy(model, PROMPT, 12)
        assert made.version == 2
        assert sorted(f.name for f in (tmp_path / "sampler").glob("weights-*")) == ["weights-start"]
    finally:
        engine.close()
    assert sorted(f.name for f in (tmp_path / "sampler").iterdir()) == ["tokenizer", "vllm.log"]


OWNER = """
import sys, time
from pathlib import Path
from nbagent.models.vllm_server import VLLMServer, find_interpreter
server = VLLMServer(find_interpreter(), Path(sys.argv[1]), log=Path(sys.argv[2]))
server.start()
while server._process is None:
    time.sleep(0.01)
print(server._process.pid, flush=True)
time.sleep(600)
"""


def runs(pid):
    """A process that nobody has asked for its exit code yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_nothing_outlives_an_owner_that_was_killed(tmp_path):
    command = [sys.executable, "-c", OWNER, str(tmp_path), str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        server = int(owner.stdout.readline())
        owner.kill()
    ended = time.monotonic() + 20
    while runs(server):
        assert time.monotonic() < ended, "the server lives on"
        time.sleep(0.05)


def test_a_server_that_cannot_start_says_why(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    server = VLLMServer(INTERPRETER, tmp_path, log=tmp_path / "log")
    server.start()
    try:
        with pytest.raises(ModelError, match=r"before it answered; its log .*Error"):
            server.wait()
    finally:
        server.close()


def test_a_python_without_vllm_is_refused(monkeypatch, tmp_path):
    with pytest.raises(UsageError, match="this Python has no vLLM"):
        find_interpreter(sys.executable)
    monkeypatch.delenv("NBAGENT_VLLM_PYTHON", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="make vllm"):
        find_interpreter()
