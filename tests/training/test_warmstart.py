"""The warm start: it learns, and a stopped one goes on where it was."""

import copy
import random

import pytest
import torch

from nbagent.runfolder import RunFolder
from nbagent_training.journal import Journal
from nbagent_training.packing import pack
from nbagent_training.warmstart import Batches, warm_start


def rows(n=40):
    """A lesson to be learned: the completion repeats the prompt's last word."""
    rng = random.Random(0)
    made = []
    for _ in range(n):
        word = rng.randrange(20, 30)
        made.append(pack([([7, 8, word, 3], [word, 1]), ([7, 9, word, 3], [word, word, 1])]))
    return made


def run(model, tokenizer, out, steps, until=None):
    folder = RunFolder.create(out.with_suffix(".run"), "", resume=True)

    def show(lines, alarms):
        if lines[-1]["step"] == until:
            raise KeyboardInterrupt

    warm_start(
        model,
        tokenizer,
        rows(),
        out=out,
        steps=steps,
        tokens=256,
        muon_lr=0.02,
        adamw_lr=0.01,
        seed=0,
        bf16=False,
        journal=Journal(folder, "sft", show),
        save_steps=20,
    )
    return {line["step"]: line["loss"] for line in folder.read_metrics()}


def test_batches_hold_every_row_once_an_epoch_within_the_tokens():
    trees = rows(50)
    seen = 0
    for batch in Batches(trees, 256, 0, seed=1):
        assert batch["input_ids"].numel() <= 256
        seen += int((batch["labels"] == 1).any(1).sum())
        if seen >= 50:
            break
    assert seen == 50


def test_it_learns(tiny, tokenizer, tmp_path):
    losses = run(tiny, tokenizer, tmp_path / "sft", 80)
    assert losses[80] < 0.5 * losses[20]


def test_a_stopped_warm_start_goes_on_to_the_same_weights(tiny, tokenizer, tmp_path):
    torch.set_num_threads(1)
    whole, cut, again = copy.deepcopy(tiny), copy.deepcopy(tiny), copy.deepcopy(tiny)
    wanted = run(whole, tokenizer, tmp_path / "a", 60)
    with pytest.raises(KeyboardInterrupt):
        run(cut, tokenizer, tmp_path / "b", 60, until=40)
    assert [path.name for path in (tmp_path / "b").glob("checkpoint-*")] == ["checkpoint-20"]
    got = run(again, tokenizer, tmp_path / "b", 60)
    assert got == wanted
    assert sorted(got) == [20, 40, 60]
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
