"""The in-process model: exact log-probs, seeded noise, batches that do not change a row's tokens."""

import asyncio

import pytest
import torch

from nbagent.errors import ModelError, ModelFolderError
from nbagent.models.base import Prompt, SamplingParams
from nbagent.models.hf import HFModel
from nbagent.models.sampler import sample_batch
from nbagent_training.scratch import Size, make_model, make_tokenizer

STOP = 1


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(["import pandas as pd\nprint(df.mean())\n12.5 genes"] * 30, 340)


@pytest.fixture(scope="module")
def network(tokenizer):
    model = make_model(tokenizer, Size(vocabulary=340, hidden=32, layers=2, heads=4, intermediate=64), 1)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4.0)
    return model.eval()


def draw(network, prompts, seeds, temperature=1.0, new=12):
    return sample_batch(
        network,
        prompts,
        max_new_tokens=[new] * len(prompts),
        temperatures=[temperature] * len(prompts),
        seeds=seeds,
        stop_ids=frozenset([STOP]),
        pad_id=0,
    )


def prompts(n):
    rng = torch.Generator().manual_seed(n)
    return [torch.randint(5, 250, (int(k),), generator=rng).tolist() for k in torch.randint(1, 40, (n,), generator=rng)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_one_forward_pass(network, temperature):
    asked = prompts(20)
    for prompt, got in zip(asked, draw(network, asked, list(range(20)), temperature), strict=True):
        ids = torch.tensor([prompt + list(got.ids)])
        logits = network(input_ids=ids).logits[0, len(prompt) - 1 : -1].double() / temperature
        wanted = torch.log_softmax(logits, -1).gather(1, torch.tensor(got.ids)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(got.logprobs, dtype=torch.double), wanted, atol=1e-4)
        assert got.stopped == (got.ids[-1] == STOP)
        assert len(got.ids) <= 12


def test_a_rows_tokens_do_not_depend_on_its_batch(network):
    asked = prompts(40)
    together = draw(network, asked, list(range(100, 140)))
    for k in (0, 7, 39):
        assert draw(network, [asked[k]], [100 + k])[0].ids == together[k].ids
    assert draw(network, asked, list(range(100, 140))) == together
    assert [s.ids for s in draw(network, asked, list(range(200, 240)))] != [s.ids for s in together]


def test_greedy_takes_the_likeliest_token(network):
    prompt = prompts(3)[1]
    got = draw(network, [prompt], [5], temperature=0.0)[0]
    ids = torch.tensor([prompt + list(got.ids)])
    assert network(input_ids=ids).logits[0, len(prompt) - 1 : -1].argmax(-1).tolist() == list(got.ids)


def test_sampling_follows_the_distribution(network):
    prompt = [7, 8, 9]
    n = 4000
    first = [s.ids[0] for s in draw(network, [prompt] * n, list(range(n)), new=1)]
    wanted = torch.softmax(network(input_ids=torch.tensor([prompt])).logits[0, -1].double(), -1)
    top = wanted.topk(5)
    for value, p in zip(top.indices.tolist(), top.values.tolist(), strict=True):
        assert first.count(value) / n == pytest.approx(p, abs=4 * (p * (1 - p) / n) ** 0.5)


@pytest.mark.parametrize("lockstep", [False, True])
async def test_concurrent_calls_are_merged_and_keep_their_own_answer(network, tokenizer, lockstep):
    model = HFModel(network, tokenizer, "tiny", max_batch=8, lockstep=lockstep)
    asked = prompts(20)
    if lockstep:
        for _ in asked:
            model.enter()
    params = [SamplingParams(max_new_tokens=6, seed=k) for k in range(20)]
    got = await asyncio.gather(*(model.sample(Prompt((), ids=p), s) for p, s in zip(asked, params, strict=True)))
    for prompt, seed, completion in zip(asked, range(20), got, strict=True):
        alone = draw(network, [prompt], [seed], new=6)[0]
        assert completion.ids == alone.ids
        assert completion.finish == ("stop" if alone.stopped else "length")
        assert completion.text == tokenizer.decode(alone.ids[:-1] if alone.stopped else alone.ids)
    await model.close()


async def test_new_weights_are_taken_at_refresh(network, tokenizer):
    model = HFModel(network, tokenizer, "tiny", sampling_dtype=torch.bfloat16)
    prompt, params = Prompt((), ids=[7, 8, 9]), SamplingParams(max_new_tokens=8, temperature=0.0)
    before = await model.sample(prompt, params)
    kept = network.lm_head.weight.detach().clone()
    with torch.no_grad():
        network.lm_head.weight.copy_(kept.roll(1, 0))
    try:
        assert (await model.sample(prompt, params)).ids == before.ids
        model.refresh(1)
        assert (await model.sample(prompt, params)).ids != before.ids
    finally:
        with torch.no_grad():
            network.lm_head.weight.copy_(kept)
    await model.close()


async def test_prompts_that_cannot_be_sampled_are_refused(network, tokenizer):
    model = HFModel(network, tokenizer, "tiny")
    with pytest.raises(ModelError, match="needs prompt ids"):
        await model.sample(Prompt(()), SamplingParams())
    with pytest.raises(ModelError, match="do not fit into 1024 positions"):
        await model.sample(Prompt((), ids=[5] * 1000), SamplingParams(max_new_tokens=100))
    await model.close()


def test_folders_that_are_no_models_are_named(tmp_path, network, tokenizer):
    with pytest.raises(ModelFolderError, match="no such model folder"):
        HFModel.load(tmp_path / "nothing")
    with pytest.raises(ModelFolderError, match=r"no config\.json"):
        HFModel.load(tmp_path)
    folder = tmp_path / "model"
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert HFModel.load(folder).context_length == 1024
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelFolderError, match="cannot be loaded"):
        HFModel.load(folder)
