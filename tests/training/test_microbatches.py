"""Rows in micro-batches: within the budget, none lost, each token with its row's numbers."""

import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nbagent_training.groups import TrainingRow
from nbagent_training.microbatches import divide, micro_batch


def rows_of(seed, n):
    """Trees of depth 3 with branches of any length."""
    rng = random.Random(seed)

    def ids(high):
        return tuple(rng.randrange(4) for _ in range(rng.randint(1, high)))

    stems = [ids(150) for _ in range(3)]
    stems += [stem + ids(80) for stem in stems for _ in range(2)]
    return [
        TrainingRow(rng.choice(stems) + ids(60), completion := ids(30), (-1.0,) * len(completion), rng.gauss(0, 1), 0.1)
        for _ in range(n)
    ]


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from([100, 400, 5000]), st.integers(1, 3))
def test_chunks_keep_to_the_budget_and_lose_nothing(seed, n, budget, processes):
    rows = rows_of(seed, n)
    chunks = divide(rows, budget, processes)
    assert sorted(map(id, rows)) == sorted(id(row) for chunk in chunks for row in chunk)
    for chunk in chunks:
        assert len(chunk) == 1 or micro_batch(chunk, torch.device("cpu")).ids.numel() <= budget


def test_no_rows_are_no_chunks():
    assert divide([], 100) == []


def test_each_process_has_a_share():
    rows = [TrainingRow((i,) * 50, (i,) * 10, (0.0,) * 10, 1.0, 0.1) for i in range(8)]
    assert len(divide(rows, 10_000)) == 1
    assert [len(chunk) for chunk in divide(rows, 10_000, 4)] == [2, 2, 2, 2]


def test_tokens_have_the_numbers_of_their_rows():
    rows = rows_of(1, 9)
    batch = micro_batch(rows, torch.device("cpu"))
    for place, row in enumerate(rows):
        own = batch.row == place
        assert batch.targets[own].tolist() == list(row.completion_ids)
        assert batch.sampler[own].tolist() == list(row.logprobs)
        assert batch.weight[own].unique().tolist() == torch.tensor([row.weight]).tolist()
        assert batch.advantage[own].unique().tolist() == torch.tensor([row.advantage]).tolist()
        assert batch.ids[0, batch.where[own][0]] == row.prompt_ids[-1]
    assert batch.n_unpacked == sum(len(row.prompt_ids) + len(row.completion_ids) for row in rows)
