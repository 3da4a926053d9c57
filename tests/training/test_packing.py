"""Tree rows: log-probs and gradients equal those of the separate rows."""

import random
from itertools import pairwise

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
    for path in row.paths:
        assert path == list(range(path[0], path[-1] + 1))
        target = torch.tensor([row.ids[i] for i in path[1:]])
        assert labels[0, path[1:]].equal(target)
        out.append(logp[path[:-1]].gather(1, target[:, None])[:, 0])
    assert int((labels >= 0).sum()) == sum(len(path) - 1 for path in row.paths)
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


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([1, 4, 1000]))
def test_each_sample_is_its_own_path(seed, completions, least):
    samples = draw(seed)
    if completions:
        prompt, completion = samples[0]
        samples += [(prompt + completion + [4], completion), (prompt, completion)]
    row = pack(samples, completions=completions, least=least)
    mask = ancestors(row)
    assert row.segments[0].start == 0
    assert row.segments[-1].end == len(row)
    assert all(one.end == other.start for one, other in pairwise(row.segments))
    for (prompt, completion), path in zip(samples, row.paths, strict=True):
        assert len(path) == len(completion) + 1
        seen = [i for i in range(len(row)) if mask[path[-1], i]]
        assert [row.ids[i] for i in seen] == prompt + completion
        assert [row.positions[i] for i in seen] == list(range(len(prompt + completion)))
        assert seen[len(prompt) - 1 :] == path
    if least == 1000:
        assert len(row) == sum(len(p) + len(c) for p, c in samples)


def test_shared_prompts_are_stored_once():
    row = pack([([1, 2, 3, 9], [5]), ([1, 2, 3, 9], [6]), ([1, 2, 4, 9], [7])])
    assert row.ids == [1, 2, 3, 9, 5, 9, 6, 4, 9, 7]


def test_a_history_that_only_grows_is_stored_once():
    row = pack([([1, 2], [3, 4]), ([1, 2, 3, 4, 8], [5]), ([1, 2, 3, 4, 8], [6])], completions=True)
    assert row.ids == [1, 2, 3, 4, 8, 5, 6]
    assert row.paths == [[1, 2, 3], [4, 5], [4, 6]]


def test_a_prefix_is_shared_where_that_saves_enough():
    samples = [([1, 2, 3, 4, 5], [6]), ([1, 2, 3, 4, 7], [6]), ([1, 8], [6])]
    sizes = [len(pack(samples, completions=True, least=least)) for least in (1, 3, 5)]
    assert sizes == [10, 11, 15]
