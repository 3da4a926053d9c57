"""LoRA: only adapters are trained and saved, and whoever samples sees them."""

import json

import pytest
import torch
from test_trainer import make_rows

from nbagent.errors import UsageError
from nbagent.models.hf import HFModel
from nbagent.models.merged import merged_state
from nbagent_training.groups import Batch
from nbagent_training.lora import add_lora
from nbagent_training.loss_settings import Lora, Loss
from nbagent_training.trainer import StepGRPOTrainer, settings


def adapters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def train(model, tokenizer, folder, steps, **loss):
    """The adapted model, its trainer and the adapters at the beginning of each update."""
    adapted, begun = add_lora(model, Lora(rank=4, alpha=16)), []
    config = settings(folder, steps=steps, seed=0, bf16=False, learning_rate=1e-2, save_steps=2, ignore_data_skip=True)

    def make_batch(update):
        begun.append(adapters(adapted))
        return Batch(make_rows(update, 5), {})

    trainer = StepGRPOTrainer(adapted, tokenizer, config, make_batch, token_budget=300, loss=Loss(**loss))
    trainer.train(resume_from_checkpoint=steps > 2)
    return adapted, trainer, begun


def test_only_adapters_are_trained_saved_and_resumed(tiny, tokenizer, tmp_path):
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    adapted, trainer, _ = train(tiny, tokenizer, tmp_path, 2, kl_coef=0.1)
    saved = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    assert "adapter_model.safetensors" in saved
    assert "model.safetensors" not in saved
    assert json.loads((tmp_path / "checkpoint-2" / "adapter_config.json").read_text())["r"] == 4
    frozen = {name: value for name, value in tiny.state_dict().items() if ".lora_" not in name}
    assert all(torch.equal(value, before[name.replace(".base_layer", "")]) for name, value in frozen.items())
    assert trainer.watched["kl"] > 0
    trained = adapters(adapted)
    adapted.unload()
    _, _, begun = train(tiny, tokenizer, tmp_path, 3)
    assert len(begun) == 1
    assert all(torch.equal(value, trained[name]) for name, value in begun[0].items())


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_the_sampler_samples_from_the_adapted_weights(tiny, tokenizer, tmp_path, dtype):
    sampler = HFModel(tiny, tokenizer, "tiny", sampling_dtype=dtype)
    adapted, _, _ = train(tiny, tokenizer, tmp_path, 2)
    ids = torch.randint(5, 250, (2, 9))
    with torch.no_grad():
        wanted, plain = adapted(input_ids=ids).logits, tiny.state_dict()
        got = sampler._weights()(input_ids=ids).logits.float()
        merged = adapted.merge_and_unload()
        assert torch.allclose(merged(input_ids=ids).logits, wanted, atol=1e-4)
    assert torch.allclose(got, wanted, atol=0.5 if dtype == torch.bfloat16 else 1e-4)
    assert any(".lora_" in name for name in plain)
    assert not any("lora" in name for name in merged.state_dict())


def test_merged_weights_have_the_names_of_the_plain_model(tiny):
    plain = dict(tiny.state_dict())
    add_lora(tiny, Lora(rank=2, targets=("q_proj", "down_proj")))
    assert set(merged_state(tiny)) == set(plain)


def test_unknown_targets_are_refused(tiny):
    with pytest.raises(UsageError, match=r"lora.targets: .*nothing"):
        add_lora(tiny, Lora(rank=2, targets=("nothing",)))


def test_the_output_layer_gets_no_adapter(tiny):
    tiny.config.tie_word_embeddings = False
    tiny.lm_head.weight = torch.nn.Parameter(tiny.lm_head.weight.detach().clone())
    with pytest.raises(UsageError, match=r"lora.targets: lm_head is the output layer, .* leave it out"):
        add_lora(tiny, Lora(rank=2, targets=("q_proj", "lm_head")))
