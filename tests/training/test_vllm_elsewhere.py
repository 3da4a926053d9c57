"""A real vLLM server at a URL: it takes new weights by files, loses them with its owner's restart, and is a teacher."""

import os
import socket

import httpx
import pytest
import torch
from served import INTERPRETER, NEEDS_VLLM, PROMPT, ask, greedy, log_probs, network, play

from nbagent.models.vllm import VLLMModel
from nbagent.models.vllm_server import VLLMServer
from nbagent.rollouts import Rollouts
from nbagent.samples import samples
from nbagent_training.distill import FolderTeacher, ServerTeacher, open_teacher

pytestmark = NEEDS_VLLM


class AtPort(VLLMServer):
    """Somebody's server, as others find it: at a port. `start_again` is what its owner does."""

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def _command(self):
        command = super()._command()
        at = command.index("--uds")
        command[at : at + 2] = ["--host", "127.0.0.1", "--port", str(self.port)]
        return command

    def client(self, timeout_s=600.0):
        return httpx.Client(base_url=self.url, timeout=timeout_s, trust_env=False)


def untied(tokenizer, seed):
    """vLLM on the CPU keeps a tied output layer as it was when it is given new weights."""
    model = network(tokenizer, seed)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


@pytest.fixture(scope="module")
def rollouts():
    with Rollouts(4) as rollouts:
        yield rollouts


@pytest.fixture(scope="module")
def start(tokenizer):
    return untied(tokenizer, 3)


@pytest.fixture(scope="module")
def folder(start, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    start.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def owned(folder, tmp_path_factory):
    log = tmp_path_factory.mktemp("owned") / "log"
    server = AtPort(INTERPRETER, folder, log=log, dtype="float32")
    before = os.environ.get("NO_PROXY")
    os.environ["NO_PROXY"] = "127.0.0.1"
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.close()
        os.environ.pop("NO_PROXY")
        if before is not None:
            os.environ["NO_PROXY"] = before


def test_a_teachers_server_gives_the_log_probs_of_the_teacher_in_process(owned, folder, tokenizer):
    teacher = open_teacher(f"vllm:{owned.url}/v1", tokenizer)
    assert isinstance(teacher, ServerTeacher)
    rows = [([5, 9, 60], [77, 12]), ([8] * 200, [31] * 40), (list(PROMPT), list(range(100, 140))), ([200], [3])]
    for found, wanted in zip(teacher.logprobs(rows), FolderTeacher(folder, tokenizer).logprobs(rows), strict=True):
        assert found == pytest.approx(wanted, abs=2e-3)


def test_a_server_at_a_url_takes_weights_and_takes_them_again_after_its_owners_restart(
    rollouts, owned, start, tokenizer, tmp_path
):
    sampler = VLLMModel(tokenizer, "served", url=owned.url, place=tmp_path / "weights")
    newest = untied(tokenizer, 4)
    try:
        sampler.hold("start", start.save_pretrained)
        assert ask(rollouts, sampler, max_new_tokens=12, temperature=0.0)[0].ids == greedy(start, PROMPT, 12)
        sampler.save = newest.save_pretrained
        sampler.refresh(1)
        made = play(rollouts, sampler, tmp_path, 2, max_steps=1)
        rows = [row for trajectory in made for row in samples(trajectory)]
        assert {row.version for row in rows} == {1}
        gaps = [(log_probs(newest, r.prompt_ids, r.completion_ids) - torch.tensor(r.logprobs)).abs() for r in rows]
        assert torch.cat(gaps).mean() < 1e-3

        # Nobody asks it meanwhile, so no connection breaks.
        owned.start_again(owned.starts)
        calls = ask(rollouts, sampler, n=4, max_new_tokens=24)
        assert {c.version for c in calls} == {1}
        assert all((log_probs(newest, PROMPT, c.ids) - torch.tensor(c.logprobs)).abs().mean() < 1e-3 for c in calls)
        assert sampler._endpoint.retries >= 1
    finally:
        rollouts.call(sampler.close())
