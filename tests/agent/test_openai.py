import asyncio
import json
import pickle
import time
from email.utils import formatdate

import pytest
from chat_endpoint import answer

from nbagent.errors import ModelError, ModelFolderError, UsageError
from nbagent.models.base import Model, Prompt, SamplingParams
from nbagent.models.openai import CostCapError, OpenAIModel
from nbagent.models.opening import open_model

PROMPT = Prompt(
    messages=[
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "How many"}, {"type": "text", "text": " rows?"}],
        },
    ],
    tools=[{"type": "function", "function": {"name": "run_cell", "parameters": {"type": "object"}}}],
)


@pytest.fixture
async def model(endpoint):
    model = OpenAIModel(endpoint.url, "tiny", backoff_s=0.01, timeout_s=5)
    yield model
    await model.close()


async def test_asks_and_answers_in_the_protocol(endpoint, model, monkeypatch):
    completion = await model.sample(PROMPT, SamplingParams(max_new_tokens=7, temperature=0.5, seed=11))
    assert completion.text == "42 rows"
    assert (completion.finish, completion.ids, completion.logprobs) == ("stop", None, None)
    assert completion.usage == {"prompt_tokens": 100, "completion_tokens": 20}
    ((_, path, headers, body),) = endpoint.requests
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    assert body == {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "How many rows?"},
        ],
        "max_tokens": 7,
        "temperature": 0.5,
        "seed": 11,
        "tools": list(PROMPT.tools),
    }
    assert isinstance(model, Model)
    assert (model.name, model.tokenizer) == ("tiny", None)


async def test_tool_calls_come_back_as_they_are(endpoint, model):
    call = {"id": "1", "type": "function", "function": {"name": "run_cell", "arguments": '{"code": "1"}'}}
    endpoint.script = [answer(None, "tool_calls", tool_calls=[call])]
    completion = await model.sample(PROMPT, SamplingParams())
    assert (completion.text, completion.finish, completion.tool_calls) == ("", "tool_calls", (call,))


@pytest.mark.parametrize("variable", ["NBAGENT_API_KEY", "OPENAI_API_KEY"])
async def test_the_key_comes_from_the_environment_and_the_only_model_is_found(endpoint, monkeypatch, variable):
    monkeypatch.setenv(variable, "secret-1")
    model = open_model(f"openai:{endpoint.url}/chat/completions")
    await model.sample(PROMPT, SamplingParams())
    await model.close()
    _, _, headers, body = endpoint.requests[0]
    assert headers["Authorization"] == "Bearer secret-1"
    assert body["model"] == model.name == "tiny"


@pytest.mark.parametrize(
    "trouble",
    [
        (500, "oops"),
        (503, json.dumps({"error": {"message": "loading"}})),
        (429, "{}"),
        (200, "this is not json"),
        (200, "[1, 2]"),
        "hang up",
    ],
)
async def test_passing_trouble_is_asked_again(endpoint, model, trouble):
    endpoint.script = [trouble, trouble]
    assert (await model.sample(PROMPT, SamplingParams())).text == "42 rows"
    assert (model.retries, model.calls, len(endpoint.requests)) == (2, 1, 3)


async def test_retry_after_is_honoured(endpoint, model):
    endpoint.script = [(429, "{}", [("Retry-After", "0.4")])]
    await model.sample(PROMPT, SamplingParams())
    first, second = (request[0] for request in endpoint.requests)
    assert second - first >= 0.4


async def test_a_wait_beyond_the_bound_fails_with_the_servers_words(endpoint, model):
    later = formatdate(time.time() + 3600, usegmt=True)
    endpoint.script = [(429, json.dumps({"error": {"message": "quota\nused up"}}), [("Retry-After", later)])]
    with pytest.raises(ModelError, match=r"HTTP 429 Too Many Requests: quota used up .*asks to wait 3\d\d\d s"):
        await model.sample(PROMPT, SamplingParams())
    assert len(endpoint.requests) == 1


async def test_silence_times_out_and_retries_are_bounded(endpoint):
    model = OpenAIModel(endpoint.url, "tiny", timeout_s=0.1, max_retries=2, backoff_s=0.01)
    endpoint.script = ["hang"] * 9
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"no answer within 0.1 s \(gave up after 3 tries\)"):
        await model.sample(PROMPT, SamplingParams())
    assert time.monotonic() - start < 3
    assert len(endpoint.requests) == 3
    await model.close()


async def test_nobody_there_is_a_model_error():
    model = OpenAIModel("http://127.0.0.1:9/v1", "tiny", max_retries=1, backoff_s=0.01)
    with pytest.raises(ModelError, match=r"ConnectError.*gave up after 2 tries"):
        await model.sample(PROMPT, SamplingParams())
    await model.close()


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            (401, json.dumps({"error": {"message": "no key"}})),
            "HTTP 401 Unauthorized: no key; set NBAGENT_API_KEY",
        ),
        ((404, json.dumps({"error": "no such model"})), "HTTP 404 Not Found: no such model"),
        ((200, json.dumps({"object": "list"})), "holds no message; it has: object"),
        ((200, json.dumps({"choices": []})), "holds no message"),
    ],
)
async def test_what_asking_again_cannot_mend_fails_at_once(endpoint, model, reply, message):
    endpoint.script = [reply] * 3
    with pytest.raises(ModelError, match=message):
        await model.sample(PROMPT, SamplingParams())
    assert len(endpoint.requests) == 1


async def test_the_cost_is_added_up_and_the_cap_stops_before_it_is_passed(endpoint):
    model = OpenAIModel(endpoint.url, "tiny", price_in=1000, price_out=10_000, max_cost=2.5)
    completion = await model.sample(PROMPT, SamplingParams(max_new_tokens=50))
    assert completion.usage["cost"] == pytest.approx(0.3)
    results = await asyncio.gather(
        *(model.sample(PROMPT, SamplingParams(max_new_tokens=50)) for _ in range(8)), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, CostCapError)]
    assert refused
    assert len(refused) < 8
    assert model.cost == pytest.approx(0.3 * (9 - len(refused)))
    assert model.cost <= 2.5
    assert str(pickle.loads(pickle.dumps(refused[0]))) == str(refused[0])
    assert "the cap is 2.5" in str(refused[0])
    await model.close()


async def test_without_counts_the_cap_counts_the_most_a_call_can_cost(endpoint):
    endpoint.script = [answer(usage=None)]
    model = OpenAIModel(endpoint.url, "tiny", price_in=0, price_out=10_000, max_cost=1)
    completion = await model.sample(PROMPT, SamplingParams(max_new_tokens=50))
    assert completion.usage == {"cost": 0.5}
    await model.close()


async def test_no_more_calls_at_once_than_allowed(endpoint):
    endpoint.script = ["slow"] * 8
    model = OpenAIModel(endpoint.url, "tiny", concurrency=2)
    await asyncio.gather(*(model.sample(PROMPT, SamplingParams()) for _ in range(8)))
    assert endpoint.busiest == 2
    await model.close()


@pytest.mark.parametrize("url", ["", "ftp://host/v1", "localhost:8000", "http://", "http://[::1"])
def test_an_address_that_cannot_be_is_said_at_once(url):
    with pytest.raises(UsageError, match=r"write openai:https://HOST/v1#MODEL"):
        open_model(f"openai:{url}")


def test_a_cap_without_prices_is_refused():
    with pytest.raises(UsageError, match="needs both prices"):
        OpenAIModel("http://localhost/v1", max_cost=3)


def broken_header(folder):
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0" + b"?" * 64)


def cut_off(folder):
    (folder / "config.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder.rmdir(), "no such model folder"),
        (lambda folder: None, "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: is not JSON"),
        (lambda folder: (folder / "config.json").write_text("{}"), "has no weights"),
        (broken_header, "corrupt weights, its header is damaged"),
        (cut_off, r"corrupt weights, \d+ bytes where its header promises \d+"),
    ],
)
def test_a_model_folder_that_is_none_is_one_line(tmp_path, make, message):
    folder = tmp_path / "model"
    folder.mkdir()
    make(folder)
    with pytest.raises(ModelFolderError, match=message) as caught:
        open_model(str(folder))
    assert "\n" not in str(caught.value)


def test_a_bare_url_is_told_how_to_be_written():
    with pytest.raises(UsageError, match="written openai:http://host/v1#MODEL"):
        open_model("http://host/v1")
