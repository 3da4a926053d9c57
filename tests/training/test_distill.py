"""On-policy distillation: a student that comes to write as its teacher does."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from nbagent.errors import ModelError, RecipeError, UsageError
from nbagent.models.sampler import sample_batch
from nbagent.recipe import load_recipe
from nbagent.rollouts import Group
from nbagent.tasks import Task
from nbagent_training.distill import PROBE, FolderTeacher, ServerTeacher, distillation_batch, open_teacher
from nbagent_training.recipe import TrainRecipe
from nbagent_training.scratch import Size, make_model, make_tokenizer
from nbagent_training.trainer import StepGRPOTrainer, settings

SIZE = Size(vocabulary=320, hidden=32, layers=2, heads=4, intermediate=64)


@pytest.fixture
def folder(tokenizer, tmp_path):
    """A teacher with sure opinions, none of them the student's."""
    model = make_model(tokenizer, SIZE, 11)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2.0)
    model.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def scores(model, prompt, completion):
    """(log-probs of the completion, all log-probs), by a plain forward pass."""
    with torch.no_grad():
        every = model.eval()(torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
    own = every[len(prompt) - 1 : len(prompt) + len(completion) - 1]
    return own.gather(1, torch.tensor(completion)[:, None]).squeeze(1).tolist(), own


class Call:
    """One model call with its whole prompt."""

    def __init__(self, prompt, made):
        self.prompt_ids = prompt
        ids, logprobs = list(made.ids), list(made.logprobs)
        self.event = {"completion_ids": ids, "logprobs": logprobs, "call_kind": "action"}
        self.event |= {"version": 0, "state_key": "", "step": 0}


class Written:
    """A finished trajectory as samples() reads one."""

    def __init__(self, name, prompt, made):
        self.rollout_id, self.task_id, self.reward, self.truncated = name, "t", 0.0, False
        self.events = []
        self._calls = [Call(prompt, one) for one in made]

    def calls(self):
        return iter(self._calls)


def rollouts(model, tokenizer, n, seed):
    prompt = tuple(tokenizer("import pandas as pd\nprint(df")["input_ids"])
    made = sample_batch(
        model.eval(),
        [prompt] * n,
        max_new_tokens=[12] * n,
        temperatures=[1.0] * n,
        seeds=range(seed, seed + n),
        stop_ids=frozenset([tokenizer.eos_token_id]),
        pad_id=tokenizer.pad_token_id,
    )
    return prompt, made


def groups(model, tokenizer, n, seed):
    prompt, made = rollouts(model, tokenizer, n, seed)
    return [Group(Task("t", "?", Path(), None), [Written(f"t-{i}", prompt, [one]) for i, one in enumerate(made)])]


def test_a_teacher_in_process_gives_the_log_probs_of_a_plain_forward_pass(folder, tokenizer):
    teacher = FolderTeacher(folder, tokenizer)
    rows = [([5, 9, 60], [77, 12]), ([8] * 20, [31] * 7), ([200], [3, 4, 5, 6])]
    for (prompt, completion), found in zip(rows, teacher.logprobs(rows), strict=True):
        assert found == pytest.approx(scores(teacher._model, prompt, completion)[0], abs=1e-4)


def test_a_tokens_advantage_is_the_teachers_log_prob_minus_its_own_and_rollouts_weigh_alike(folder, tiny, tokenizer):
    teacher = FolderTeacher(folder, tokenizer)
    prompt, made = rollouts(tiny, tokenizer, 3, 0)
    group = Group(Task("t", "?", Path(), None), [Written("a", prompt, made[:2]), Written("b", prompt, made[2:])])
    batch = distillation_batch([group], teacher)
    for row, one in zip(batch.rows, made, strict=True):
        wanted = [t - s for t, s in zip(scores(teacher._model, prompt, one.ids)[0], one.logprobs, strict=True)]
        assert row.token_advantages == pytest.approx(wanted, abs=1e-4)
    shares = [row.weight * len(row.completion_ids) for row in batch.rows]
    assert (sum(shares[:2]), shares[2]) == (pytest.approx(0.5), pytest.approx(0.5))
    assert batch.stats["teacher_kl"] > 0


@pytest.mark.slow
def test_the_students_divergence_from_its_teacher_falls(folder, tiny, tokenizer, tmp_path):
    teacher = FolderTeacher(folder, tokenizer)

    def divergence():
        """KL(student ‖ teacher), summed over the vocabulary, mean over places that the student itself reaches."""
        prompt, made = rollouts(tiny, tokenizer, 16, 10_000)
        found = []
        for one in made:
            (_, own), (_, theirs) = scores(tiny, prompt, one.ids), scores(teacher._model, prompt, one.ids)
            found += (own.exp() * (own - theirs)).sum(-1).tolist()
        return sum(found) / len(found)

    before = divergence()
    trainer = StepGRPOTrainer(
        tiny,
        tokenizer,
        settings(tmp_path / "out", steps=40, seed=0, bf16=False, learning_rate=5e-3, save_strategy="no"),
        lambda update: distillation_batch(groups(tiny, tokenizer, 32, 32 * update), teacher),
        token_budget=4096,
    )
    trainer.train()
    after = divergence()
    assert after < 0.5 * before, (before, after)


@pytest.fixture
def server(folder, tokenizer):
    """An HTTP server that answers as vLLM does, its numbers from the teacher."""
    model = FolderTeacher(folder, tokenizer)._model
    state = {"tokenizer": tokenizer, "asked": [], "broken": False, "room": None}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            self.answer({"data": [{"id": "teacher", "max_model_len": state["room"]}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/tokenize":
                return self.answer({"tokens": state["tokenizer"](body["prompt"])["input_ids"]})
            state["asked"].append(body)
            ids = body["prompt"]
            found, _ = scores(model, ids[:1], ids[1:])
            entries = [None, *({str(i): {"logprob": p, "rank": 1}} for i, p in zip(ids[1:], found, strict=True))]
            return self.answer({"choices": [{"text": "", "prompt_logprobs": None if state["broken"] else entries}]})

        def answer(self, what):
            data = json.dumps(what).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    state["url"] = f"http://127.0.0.1:{running.server_port}/v1"
    yield state
    running.shutdown()
    thread.join()
    running.server_close()


def test_a_teachers_server_is_asked_by_ids_and_gives_what_the_folder_gives(server, folder, tokenizer, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    rows = [([5, 9, 60], [77, 12]), ([8] * 20, [31] * 7)]
    teacher = open_teacher(f"vllm:{server['url']}", tokenizer)
    assert isinstance(teacher, ServerTeacher)
    for found, wanted in zip(teacher.logprobs(rows), FolderTeacher(folder, tokenizer).logprobs(rows), strict=True):
        assert found == pytest.approx(wanted, abs=1e-4)
    assert {tuple(body["prompt"]) for body in server["asked"]} == {(*p, *c) for p, c in rows}
    server["broken"] = True
    with pytest.raises(ModelError, match="no log-probs of the prompt's ids"):
        teacher.logprobs(rows)


def test_a_teachers_server_has_room_for_the_longest_row_and_the_token_that_it_writes(server, tokenizer, monkeypatch):
    """Else it would be asked about a row without its beginning, and judge the student in another context."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server["room"] = 100
    said = r"100 tokens, and rows may have 100 and a server writes 1 more; serve it with --max-model-len 101 or .* 99"
    with pytest.raises(UsageError, match=said):
        open_teacher(f"vllm:{server['url']}", tokenizer, 100)
    teacher = open_teacher(f"vllm:{server['url']}", tokenizer, 99)
    prompt, completion = list(range(3, 92)), [5] * 10
    (found,) = teacher.logprobs([(prompt, completion)])
    assert len(found) == 10
    assert server["asked"][-1]["prompt"] == [*prompt, *completion]
    with pytest.raises(UsageError, match=said):
        open_teacher(f"vllm:{server['url']}", tokenizer).logprobs([([3, *prompt], completion)])


def test_a_teacher_of_another_tokenizer_is_refused(server, folder, tokenizer, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    other = make_tokenizer(["for x in range(9): pass\n" * 9], 280)
    assert other(PROBE)["input_ids"] != tokenizer(PROBE)["input_ids"]
    for named in (str(folder), f"vllm:{server['url']}"):
        with pytest.raises(UsageError, match="tokenizer is not the student's"):
            open_teacher(named, other)
    assert open_teacher("", tokenizer) is None


@pytest.mark.parametrize("grpo", ["temperature = 0.7", 'grouping = "state"', 'normalisation = "token_mean"'])
def test_what_does_not_go_with_a_teacher_is_refused(grpo, tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(f'[model]\nfolder = "m"\n[distill]\nteacher = "t"\n[grpo]\n{grpo}\n')
    with pytest.raises(RecipeError, match=r"distill\.teacher"):
        load_recipe(path, TrainRecipe)
