"""The warm start: it learns, and a stopped one goes on where it was."""

import copy
import random

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from nbagent.errors import UsageError
from nbagent.runfolder import RunFolder
from nbagent_training.checkpoints import last_whole_checkpoint
from nbagent_training.journal import Journal
from nbagent_training.loss_settings import Lora
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


def run(model, tokenizer, out, steps, until=None, examples=None, **more):
    folder = RunFolder.create(out.with_suffix(".run"), "", resume=True)

    def show(lines, alarms):
        if lines[-1]["step"] == until:
            raise KeyboardInterrupt

    warm_start(
        model,
        tokenizer,
        examples or rows(),
        out=out,
        steps=steps,
        tokens=256,
        muon_lr=0.02,
        adamw_lr=0.01,
        seed=0,
        bf16=False,
        journal=Journal(folder, "sft", show),
        save_steps=20,
        **more,
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
    assert last_whole_checkpoint(tmp_path / "b") == str(tmp_path / "b" / "checkpoint-40")
    got = run(again, tokenizer, tmp_path / "b", 60)
    assert got == wanted
    assert sorted(got) == [20, 40, 60]
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
def test_one_interrupted_amid_a_step_saves_that_step_and_goes_on_to_the_same_weights(tiny, tokenizer, tmp_path, lora):
    """Steps since the last checkpoint may be hours: "what is done is saved"."""
    torch.set_num_threads(1)
    whole, again = copy.deepcopy(tiny), copy.deepcopy(tiny)
    run(whole, tokenizer, tmp_path / "a", 40, lora=lora)
    forwards = iter(range(1, 1000))

    def cut(module, args, kwargs):
        if next(forwards) == 34:
            raise KeyboardInterrupt

    with tiny.model.layers[1].register_forward_pre_hook(cut, with_kwargs=True), pytest.raises(KeyboardInterrupt):
        run(tiny, tokenizer, tmp_path / "b", 40, lora=lora)
    assert last_whole_checkpoint(tmp_path / "b") == str(tmp_path / "b" / "checkpoint-33")
    run(again, tokenizer, tmp_path / "b", 40, lora=lora)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_one_interrupted_between_the_optimizers_halves_keeps_the_last_checkpoint(
    tiny, tokenizer, tmp_path, monkeypatch
):
    steps, step = iter(range(1, 1000)), torch.optim.AdamW.step

    def cut(optimizer, *args):
        if next(steps) == 34:
            raise KeyboardInterrupt
        return step(optimizer, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", cut)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, tokenizer, tmp_path / "b", 40)
    assert last_whole_checkpoint(tmp_path / "b") == str(tmp_path / "b" / "checkpoint-20")


def test_with_lora_only_adapters_are_trained_and_end_in_the_weights(tiny, tokenizer, tmp_path):
    names = [name for name, _ in tiny.named_parameters()]
    before = copy.deepcopy(tiny)
    losses = run(tiny, tokenizer, tmp_path / "sft", 80, lora=Lora(rank=8))
    assert losses[80] < 0.7 * losses[20]
    assert [name for name, _ in tiny.named_parameters()] == names, "a plain model again"
    changed = {n for n, p in tiny.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    assert changed == {name for name in names if "proj" in name}, "no norm, no embedding"


@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
def test_activations_computed_again_give_the_same_weights(tiny, tokenizer, tmp_path, lora):
    torch.set_num_threads(1)
    again = copy.deepcopy(tiny)
    run(tiny, tokenizer, tmp_path / "a", 4, lora=lora)
    run(again, tokenizer, tmp_path / "b", 4, lora=lora, recompute=True)
    for one, other in zip(tiny.parameters(), again.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_rows_longer_than_a_models_window_are_refused_before_anything_is_trained(tokenizer, tmp_path, lora):
    """The trees' mask knows no window: the model would be trained with full attention, and nobody told."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=len(tokenizer), num_key_value_heads=2, sliding_window=16, **shape)
    model = MistralForCausalLM(config)
    shared = list(range(20, 30))
    within = pack([([*shared, n], [n] * 5) for n in range(30, 34)])
    assert len(within) > 2 * 16, "what is packed may be longer than the window, and so it is"
    run(model, tokenizer, tmp_path / "a", 2, examples=[within])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    over = pack([([*shared, 30], [30] * 6)])
    with pytest.raises(UsageError, match=r"window of 16 tokens, .* rows have 17; .* prompts and answers of 16"):
        run(model, tokenizer, tmp_path / "b", 2, examples=[within, over], lora=lora)
    assert not (tmp_path / "b").exists()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
