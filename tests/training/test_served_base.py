"""Adapters at a server of somebody's own: one with another model is refused, as far as it says what it has.

The server is an imitation, which answers as vLLM 0.31 does.
"""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from nbagent.errors import ModelError, UsageError
from nbagent.models.hf import load
from nbagent_training.engine import Engine
from nbagent_training.lora import add_lora
from nbagent_training.loss_settings import Lora
from nbagent_training.readiness import check_ready
from nbagent_training.recipe import TrainRecipe
from nbagent_training.scratch import make_tokenizer
from nbagent_training.served_base import check_base


class Server(ThreadingHTTPServer):
    """Says that it serves `root`, and tokenizes as `tokenizer` does."""

    def __init__(self):
        server, self.root, self.room, self.tokenizer = self, "", 1024, None

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def answer(self, status, body):
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self):
                base = {"id": "served", "root": server.root, "parent": None, "max_model_len": server.room}
                adapter = {"id": "v1", "root": "/adapters/v1", "parent": "served", "max_model_len": None}
                self.answer(200, {"data": [adapter, base]})

            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert (self.path, asked["model"]) == ("/tokenize", "served")
                if server.tokenizer is None:
                    return self.answer(404, {})
                return self.answer(200, {"tokens": server.tokenizer(asked["prompt"])["input_ids"]})

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def warmed(base, tiny, tmp_path):
    """The same model after some training: only its weights tell it apart."""
    shutil.copytree(base, tmp_path / "warmed")
    with torch.no_grad():
        tiny.model.norm.weight.add_(0.01)
    tiny.save_pretrained(tmp_path / "warmed")
    return tmp_path / "warmed"


def test_the_model_itself_by_another_name_or_a_copy_of_it_passes(server, base, tokenizer, tmp_path):
    (tmp_path / "link").symlink_to(base)
    shutil.copytree(base, tmp_path / "copy")
    for name in ("base", "link", "copy"):
        server.root = str(tmp_path / name)
        check_base(server.url, base, tokenizer)


def test_other_weights_of_the_same_shape_are_refused(server, base, warmed, tokenizer):
    server.root, server.tokenizer = str(base), tokenizer
    with pytest.raises(UsageError, match=rf"serves {base}, .* whose weights are others; start it with {warmed}"):
        check_base(server.url, warmed, tokenizer)


@pytest.mark.parametrize("root", ["someone/some-model", "/somewhere/else", "base", ""])
def test_of_a_model_that_is_not_here_tokenizer_and_length_are_compared(server, base, tokenizer, root, monkeypatch):
    monkeypatch.chdir(base.parent)
    server.root = root
    check_base(server.url, base, tokenizer)
    server.tokenizer = tokenizer
    check_base(server.url, base, tokenizer)
    server.room = 4096
    with pytest.raises(UsageError, match="which has 1024 positions and not 4096; start it with"):
        check_base(server.url, base, tokenizer)
    server.room, server.tokenizer = 512, make_tokenizer(["for x in range(9): pass\n" * 9], 280)
    with pytest.raises(UsageError, match="whose tokenizer gives other ids"):
        check_base(server.url, base, tokenizer)


def test_it_is_said_before_the_first_stage_and_after_a_warm_start(server, base, warmed, tokenizer, tmp_path):
    tables = {"model": {"folder": str(warmed)}, "lora": {"rank": 2}, "agent": {"max_new_tokens": 16}}
    tables |= {"tasks": {"n_heldout": 0}, "sampler": {"engine": "vllm", "url": server.url}}
    server.root = str(base)
    with pytest.raises(UsageError, match="whose weights are others"):
        check_ready(TrainRecipe.model_validate(tables), warmed)
    # What a warm start will make is not there yet, so whoever serves it cannot be asked.
    coming = TrainRecipe.model_validate({**tables, "warm_start": {"steps": 2}})
    check_ready(coming, warmed)
    made = shutil.copytree(warmed, tmp_path / "checkpoints" / "warm")
    with pytest.raises(UsageError, match=f"start it with {made}"):
        check_ready(coming, made)
    adapted = add_lora(load(made)[0], Lora(rank=2))
    engine = Engine(coming.sampler, tmp_path, None, bf16=False, starting=lambda name: pytest.MonkeyPatch.context())
    with pytest.raises(UsageError, match=f"start it with {made}"):
        engine.of(adapted, tokenizer, "m")


def test_nobody_there(base, tokenizer):
    with pytest.raises(ModelError, match="no vLLM server answers there"):
        check_base("http://127.0.0.1:9/v1", base, tokenizer)
