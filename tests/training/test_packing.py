"""Tree rows: log-probs and gradients equal those of the separate rows."""

import random

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nbagent_training.packing import ancestors, collate, pack


def draw(seed, n=5, vocabulary=250):
    rng = random.Random(seed)

    def ids(k):
        return [rng.randrange(5, vocabulary) for _ in range(k)]

    task, cell = ids(rng.randint(1, 12)), ids(rng.randint(1, 9))
    stems = [task, task + cell, task + cell + ids(4)]
    return [(rng.choice(stems) + ids(rng.randint(0, 3)) + [3], ids(rng.randint(1, 8))) for _ in range(n)]


def separate_logps(model, prompt, completion):
    ids = torch.tensor([prompt + completion])
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(completion)[:, None])[:, 0]


def packed_logps(model, samples, pad_id):
    row = pack(samples)
    length = len(row) + 5
    batch = collate([row], pad_id, 2, length)
    labels = batch.pop("labels")
    logits = model(**batch, use_cache=False).logits[0]
    logp = torch.log_softmax(logits.float(), -1)
    out = []
    for start, end in row.leaves:
        target = torch.tensor(row.ids[start:end])
        assert labels[0, start:end].equal(target)
        out.append(logp[start - 1 : end - 1].gather(1, target[:, None])[:, 0])
    assert int((labels >= 0).sum()) == sum(end - start for start, end in row.leaves)
    return out


def test_logps_and_gradients_equal_those_of_separate_rows(tiny, tokenizer):
    for seed in range(4):
        samples = draw(seed)
        apart = torch.cat([separate_logps(tiny, p, c) for p, c in samples])
        tiny.zero_grad()
        F.softplus(-apart).sum().backward()
        wanted = [p.grad.clone() for p in tiny.parameters()]
        together = torch.cat(packed_logps(tiny, samples, tokenizer.pad_token_id))
        assert torch.allclose(apart, together, atol=2e-4)
        tiny.zero_grad()
        F.softplus(-together).sum().backward()
        for mine, other in zip((p.grad for p in tiny.parameters()), wanted, strict=True):
            assert torch.linalg.vector_norm(mine - other) <= 1e-4 * (1 + torch.linalg.vector_norm(other))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_each_sample_is_its_own_path(seed):
    samples = draw(seed)
    row = pack(samples)
    mask = ancestors(row)
    for (prompt, completion), (start, end) in zip(samples, row.leaves, strict=True):
        seen = [i for i in range(len(row)) if mask[end - 1, i]]
        assert [row.ids[i] for i in seen] == prompt + completion
        assert [row.positions[i] for i in seen] == list(range(len(prompt + completion)))
        assert all(row.trained[start:end])


def test_shared_prompts_are_stored_once():
    row = pack([([1, 2, 3, 9], [5]), ([1, 2, 3, 9], [6]), ([1, 2, 4, 9], [7])])
    assert row.ids == [1, 2, 3, 9, 5, 9, 6, 4, 9, 7]
