"""Weights that are sent: what is refused, and over Gloo what arrives. To a real vLLM server: test_vllm.py.

NCCL needs GPUs, which machines that run this have none of. What is tested of it is what a user without one is told, and
that a meeting ends with its line, however NCCL waits: a group of ours stands in its place.
"""

import ctypes.util
import threading
import time
from pathlib import Path

import httpx
import pytest
import torch

from nbagent.errors import ModelError, RecipeError, UsageError
from nbagent.models.inside_vllm.gloo_group import meet
from nbagent.models.vllm_server import Interpreter
from nbagent.models.weight_transfer import Delivery
from nbagent.recipe import load_recipe
from nbagent_training.engine import Engine
from nbagent_training.nccl import LIBRARY
from nbagent_training.recipe import TrainRecipe
from nbagent_training.sampler_settings import Sampler
from nbagent_training.weight_lines import WAIT_S, GlooLine, NcclLine, Weights


def received(address, contents):
    """What a worker's end gets."""
    group = meet(address["store"], 1, address["world_size"], address["timeout_s"])
    found = {}
    for name, dtype, shape in zip(contents["names"], contents["dtype_names"], contents["shapes"], strict=True):
        found[name] = torch.empty(shape, dtype=getattr(torch, dtype))
        group.broadcast(found[name], 0).wait()
    return found


def test_what_was_taken_arrives_again_after_the_model_moved_on(tiny, tmp_path):
    weights = Weights(GlooLine(tmp_path), torch.bfloat16)
    weights.model, weights.duplicates = tiny, True
    weights.take()
    before = {name: p.detach().bfloat16() for name, p in tiny.named_parameters(remove_duplicate=False)}
    assert "lm_head.weight" in before, "tied, and sent under both names"
    with torch.no_grad():
        for p in tiny.parameters():
            p.zero_()
    for again, expected in ((True, before), (False, {name: torch.zeros_like(p) for name, p in before.items()})):
        address, got = weights.address(2), {}
        other = threading.Thread(target=lambda a=address, g=got: g.update(received(a, weights.contents())))
        other.start()
        weights.join()
        weights.send(again=again)
        other.join()
        weights.close()
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    assert not list(tmp_path.iterdir())


def test_closing_a_line_ends_a_meeting_that_nobody_else_comes_to(tmp_path):
    line, said = GlooLine(tmp_path), []

    def meets():
        try:
            line.join()
        except ModelError as error:
            said.append(str(error))

    line.address(2)
    joining = threading.Thread(target=meets)
    joining.start()
    line.close()
    joining.join(WAIT_S / 10)
    assert said == ["the line to vLLM was closed"]


@pytest.mark.parametrize("after_s", [0.0, 0.0005, 0.001, 0.01])
def test_closing_a_line_ends_a_send_that_nobody_takes(tiny, tmp_path, after_s):
    weights, said = Weights(GlooLine(tmp_path), torch.float32), []
    weights.model = tiny
    weights.take()
    address, there = weights.address(2), []
    other = threading.Thread(
        target=lambda: there.append(meet(address["store"], 1, address["world_size"], address["timeout_s"]))
    )
    other.start()
    weights.join()
    other.join()

    def sends():
        try:
            while True:
                weights.send(again=True)
        except (ModelError, RuntimeError) as error:
            said.append(error)

    sending = threading.Thread(target=sends)
    sending.start()
    time.sleep(after_s)
    weights.close()
    sending.join(WAIT_S / 10)
    assert said


def client(answers):
    """Of a server that gives these answers, in turn; one that is an event is waited for."""

    def answer(request):
        one = answers.pop(0)
        if isinstance(one, threading.Event):
            one.wait()
            raise httpx.ReadError("it died")
        return one

    return httpx.Client(transport=httpx.MockTransport(answer), base_url="http://vllm")


def test_a_server_that_dies_before_it_comes_to_the_meeting_is_not_waited_for(tiny, tmp_path):
    weights = Weights(GlooLine(tmp_path), torch.float32)
    weights.model = tiny
    delivery, died = Delivery(weights), threading.Event()
    delivery.take()
    begin = time.monotonic()
    died.set()
    with client([httpx.Response(200, json={"world_size": 1}), died]) as asked, pytest.raises(ModelError, match="died"):
        delivery.bring(asked)
    assert time.monotonic() - begin < WAIT_S / 10


def test_the_late_end_of_a_request_that_was_given_up_ends_no_later_group(tmp_path):
    line, died, closed, before = GlooLine(tmp_path), threading.Event(), [], threading.enumerate()
    delivery = Delivery(line)
    line.close = lambda: closed.append(True)

    def breaks():
        raise RuntimeError("the line broke")

    with client([died]) as asked:
        with pytest.raises(RuntimeError, match="the line broke"):
            delivery._both(asked, "/update_weights", {}, breaks)
        died.set()
        for thread in set(threading.enumerate()) - set(before):
            thread.join()
    assert not closed


class Waiting:
    """In place of NCCL's group: one that waits, on entering it or in its first operation, until it may go on."""

    def __init__(self, where="", error=None):
        self.where, self.error = where, error
        self.reached, self.on, self.done = threading.Event(), threading.Event(), []

    def __call__(self, identity, rank, n):
        assert rank == 0
        self.passes("entering")
        if self.error:
            raise self.error
        return self

    def passes(self, place):
        if place == self.where:
            self.reached.set()
            assert self.on.wait(WAIT_S / 10)
        self.done.append(place)

    def all_reduce(self, tensor):
        self.done.append("sum")

    def wait(self):
        self.passes("operation")

    def broadcast(self, tensor, root):
        self.done.append("broadcast")

    def abort(self):
        self.done.append("abort")
        if self.where == "operation":
            self.on.set()


class LineOfNobody(NcclLine):
    """Tensors stay where they are."""

    device = "cpu"


@pytest.mark.parametrize("where", ["entering", "operation"])
def test_closing_a_line_ends_a_meeting_inside_nccl(where):
    group, said, before = Waiting(where), [], set(threading.enumerate())
    line = LineOfNobody(group)

    def meets():
        try:
            line.join()
        except ModelError as error:
            said.append(str(error))

    joining = threading.Thread(target=meets)
    joining.start()
    assert group.reached.wait(WAIT_S / 10)
    line.close()
    joining.join(WAIT_S / 10)
    assert said == ["the line to vLLM was closed"]
    # Should the others come after all, nobody stays in the group.
    group.on.set()
    for thread in set(threading.enumerate()) - before:
        thread.join()
    expected = ["entering", "abort"] if where == "entering" else ["entering", "sum", "abort", "operation"]
    assert group.done == expected
    with pytest.raises(ModelError, match="the line to vLLM was closed"):
        line.broadcast(torch.zeros(1))


def test_a_meeting_inside_nccl_is_entered_and_left_and_its_failure_is_said():
    group = Waiting()
    line = LineOfNobody(group)
    line.join()
    line.broadcast(torch.zeros(1))
    line.close()
    line.close()
    assert group.done == ["entering", "sum", "operation", "broadcast", "abort"]
    with pytest.raises(ModelError, match="NCCL: ncclCommInitRank: unhandled"):
        LineOfNobody(Waiting(error=ModelError("NCCL: ncclCommInitRank: unhandled system error"))).join()


def test_a_pytorch_without_nccl_is_named():
    if ctypes.util.find_library("nccl"):
        pytest.skip("this machine has NCCL")
    with pytest.raises(ModelError, match=f"{LIBRARY} cannot be loaded"):
        NcclLine().address(2)


def test_a_server_on_the_trainers_own_gpu_is_refused(tmp_path, monkeypatch):
    found = Interpreter(Path("python"), "0.31.0", cpu=False)
    monkeypatch.setattr("nbagent_training.engine.find_interpreter", lambda named: found)
    with pytest.raises(UsageError, match=r"set sampler\.devices to one that does not train"):
        Engine(Sampler(engine="vllm", weights="sent"), tmp_path, None, bf16=True, starting=lambda name: None)


def test_recipes_that_cannot_send_are_refused(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[model]\nfolder = "m"\n[sampler]\nengine = "vllm"\nweights = "sent"\n[lora]\nrank = 8\n')
    with pytest.raises(RecipeError, match=r"sampler\.weights: adapters come to the server by files"):
        load_recipe(path, TrainRecipe)
    path.write_text('[model]\nfolder = "m"\n[sampler]\nweights = "sent"\n')
    with pytest.raises(RecipeError, match='weights are for engine = "vllm"'):
        load_recipe(path, TrainRecipe)
