"""A vLLM server given by its URL: what it must be like, and what becomes of its faults. The real one: test_vllm.py."""

import asyncio
import json

import pytest

from nbagent.agent import Agent, agent_beside
from nbagent.errors import ModelError, UsageError
from nbagent.models.base import Prompt, SamplingParams
from nbagent.models.endpoint import RefusedError, UnreachableError
from nbagent.models.opening import model_folder, open_model
from nbagent.models.scripted import ByteTokenizer
from nbagent.models.vllm import VLLMModel

TOKENIZER = ByteTokenizer()
END = TOKENIZER.eos_token_id


def answer(ids, logprobs=None, finish="stop", top=(-0.1, -3.1)):
    found = {"token_logprobs": [-0.5] * len(ids) if logprobs is None else logprobs}
    found["top_logprobs"] = [{"a": top[0], "b": top[1]}]
    return json.dumps({"choices": [{"token_ids": ids, "logprobs": found, "finish_reason": finish}]})


def opened(endpoint, *script, **more):
    """A model at the endpoint, past the two requests that look at its log-probs."""
    endpoint.script[:] = [answer([7]), answer([7], top=(-0.01, -6.01)), *script]
    model = VLLMModel(TOKENIZER, "m", url=endpoint.url, **more)
    model._endpoint._backoff_s = 0.001
    return model


async def sampled(model, prompt=(5, 6, 7), **params):
    try:
        return await model.sample(Prompt([], ids=prompt), SamplingParams(**{"max_new_tokens": 4, **params}))
    finally:
        await model.close()


async def test_what_is_sent_and_what_comes_back(endpoint):
    model = opened(endpoint, answer([104, 105, END], [-1.0, -2.0, -0.5]))
    assert model.context_length == 64
    model.version = 3
    made = await sampled(model, temperature=0.5, seed=2**62)
    assert (made.text, made.finish, made.ids) == ("hi", "stop", (104, 105, END))
    assert made.logprobs == (-1.0, -2.0, -0.5)
    assert made.version == 3
    _, path, _, body = endpoint.requests[-1]
    assert path == "/v1/completions"
    assert (body["prompt"], body["temperature"], body["seed"]) == ([5, 6, 7], 0.5, 2**62)
    assert body["stop_token_ids"] == [END]
    assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1, 0, 0, 1)


def test_raw_log_probs_are_refused(endpoint):
    endpoint.script[:] = [answer([7]), answer([7])]
    with pytest.raises(ModelError, match="--logprobs-mode processed_logprobs"):
        VLLMModel(TOKENIZER, "m", url=endpoint.url)


def test_a_server_of_two_models_is_refused(endpoint):
    endpoint.models.append({"id": "other", "max_model_len": 9})
    with pytest.raises(UsageError, match="serves 2 models"):
        VLLMModel(TOKENIZER, "m", url=endpoint.url)


def test_adapters_of_the_model_are_no_models(endpoint):
    endpoint.models.append({"id": "v1", "max_model_len": 64, "parent": "tiny"})
    opened(endpoint)


def test_nobody_there(endpoint):
    endpoint.close()
    with pytest.raises(UnreachableError, match="no vLLM server answers there"):
        VLLMModel(TOKENIZER, "m", url=endpoint.url)


async def test_passing_faults_are_asked_again(endpoint):
    model = opened(endpoint, "hang up", (503, "busy"), answer([7], finish="abort"), answer([104, END]))
    assert (await sampled(model)).text == "h"
    assert len(endpoint.requests) == 6


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ((400, '{"error": "too long"}'), "too long"),
        (json.dumps({"choices": [{"text": "h", "finish_reason": "stop"}]}), "no token ids"),
        (answer([104, END], [-1.0]), "no token ids"),
    ],
)
async def test_an_answer_that_cannot_be_trained_on_is_an_error(endpoint, said, why):
    with pytest.raises(ModelError, match=why):
        await sampled(opened(endpoint, said))


async def test_a_prompt_needs_ids_that_fit(endpoint):
    with pytest.raises(ModelError, match="do not fit into 64 positions"):
        await sampled(opened(endpoint), prompt=[5] * 61)
    with pytest.raises(ModelError, match="token ids"):
        await sampled(opened(endpoint), prompt=None)


class Weights:
    """The far side's weights: it forgets new ones, and their mark, when it is started again."""

    def __init__(self, endpoint, lora=None):
        self.start_again()
        model = self

        class Handler(endpoint.server.RequestHandlerClass):
            def do_GET(self):
                if self.path == "/weight_info":
                    return self.send(200, json.dumps({"weight_version": model.mark}))
                if self.path.startswith("/server_info"):
                    return self.send(200, json.dumps({"vllm_config": {"lora_config": lora}}))
                return super().do_GET()

            def do_POST(self):
                if self.path == "/v1/completions":
                    return super().do_POST()
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/collective_rpc":
                    model.folder = body["kwargs"]["weights_path"]
                model.mark = body.get("new_version", model.mark)
                return self.send(200, '{"success": true}')

        endpoint.server.RequestHandlerClass = Handler

    def start_again(self):
        self.mark, self.folder = "default", "start"


@pytest.mark.parametrize("amid_a_call", [False, True])
async def test_a_server_that_its_owner_started_again_is_given_the_weights_again(endpoint, tmp_path, amid_a_call):
    far = Weights(endpoint)
    model = opened(endpoint, place=tmp_path)
    model.hold("m", lambda folder: folder.mkdir())
    model.refresh(5)
    newest = far.folder
    assert newest != "start"
    endpoint.script[:] = [*(["hang up"] if amid_a_call else []), answer([104, END]), answer([105, END])]
    far.start_again()
    made = await sampled(model)
    assert (made.text, made.version) == ("i", 5), "what the start's weights said is thrown away"
    assert far.folder == newest


async def test_many_calls_at_once_notice_a_server_that_was_started_again(endpoint, tmp_path):
    far = Weights(endpoint)
    model = opened(endpoint, place=tmp_path)
    model.hold("m", lambda folder: folder.mkdir())
    newest, prompt = far.folder, Prompt([], ids=(5, 6))
    far.start_again()
    endpoint.script[:] = [answer([104, END])] * 30
    made = await asyncio.gather(*(model.sample(prompt, SamplingParams(max_new_tokens=4)) for _ in range(8)))
    assert len(made) == 8
    assert far.folder == newest
    await model.close()


async def test_a_server_that_another_program_gives_weights_is_refused(endpoint, tmp_path):
    far = Weights(endpoint)
    model = opened(endpoint, place=tmp_path)
    model.hold("m", lambda folder: folder.mkdir())
    far.mark = "nbagent-other-1"
    endpoint.script[:] = [answer([104, END])]
    with pytest.raises(ModelError, match="holds weights of another program; a run needs a server of its own"):
        await sampled(model)


async def test_a_server_of_adapters_is_given_no_whole_weights(endpoint, tmp_path):
    far = Weights(endpoint, lora={"max_loras": 2})
    model = opened(endpoint, place=tmp_path)
    with pytest.raises(ModelError, match="does not take whole weights there"):
        model.hold("m", lambda folder: folder.mkdir())
    assert far.folder == "start"
    await model.close()


async def test_an_adapter_that_a_server_lost_is_loaded_again(endpoint, tmp_path):
    model = opened(endpoint, "{}", place=tmp_path)

    def save(folder):
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")

    model.hold("m", save)
    gone = (404, '{"error": "The model does not exist."}')
    endpoint.script[:] = [gone, "{}", answer([104, END])]
    assert (await sampled(model)).text == "h"
    paths = [path for _, path, _, _ in endpoint.requests[-4:]]
    load, call = "/v1/load_lora_adapter", "/v1/completions"
    assert paths == [load, call, load, call]
    assert endpoint.requests[-4][3] == endpoint.requests[-2][3]


async def test_a_model_that_is_not_there_is_no_passing_fault(endpoint):
    with pytest.raises(RefusedError, match="404"):
        await sampled(opened(endpoint, (404, "{}")))


async def test_a_server_that_takes_no_adapters_says_what_it_needs(endpoint, tmp_path):
    model = opened(endpoint, (404, "{}"), place=tmp_path)

    def save(folder):
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")

    with pytest.raises(ModelError, match="--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        model.hold("m", save)
    await model.close()


async def test_a_server_that_takes_no_weights_says_what_it_needs(endpoint, tmp_path):
    model = opened(endpoint, (404, "{}"))
    model._place, model.save = tmp_path, lambda folder: folder.mkdir()
    with pytest.raises(ModelError, match="VLLM_SERVER_DEV_MODE=1"):
        model.refresh(1)
    await model.close()


@pytest.mark.parametrize(
    ("spec", "folder"),
    [
        ("models/m", "models/m"),
        ("vllm:models/m", "models/m"),
        ("vllm:http://host:8000#models/m", "models/m"),
        ("vllm:http://host:8000", None),
        ("openai:http://host/v1#m", None),
    ],
)
def test_the_folder_in_a_models_name(spec, folder):
    found = model_folder(spec)
    assert (str(found) if found else None) == folder


def test_a_served_folder_keeps_its_agents_settings(tmp_path):
    Agent(max_steps=7).write_beside(tmp_path)
    assert agent_beside(f"vllm:{tmp_path}").max_steps == 7


def test_a_url_without_the_folder_is_refused():
    with pytest.raises(UsageError, match="#FOLDER"):
        open_model("vllm:http://localhost:8000")


class Sender:
    """Sends nothing: a server that has no endpoints for it is met before."""

    backend = "nccl"

    def take(self):
        pass

    def close(self):
        pass


async def test_a_server_without_endpoints_for_weights_is_named(endpoint):
    model = opened(endpoint, sender=Sender())
    with pytest.raises(ModelError, match=r"vLLM/\S+: HTTP 404.*started with VLLM_SERVER_DEV_MODE=1"):
        model.hold("m", lambda folder: None)
    await model.close()
