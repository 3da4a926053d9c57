"""Which parameters Muon takes: the matrices inside layers, however a model calls its layers."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from nbagent.errors import UsageError
from nbagent_training.optimizer import MuonAdamW


def taken(model):
    """Names of Muon's parameters, and that the rest is AdamW's."""
    names = {id(p): name for name, p in model.named_parameters()}
    optimizer = MuonAdamW(model, 0.01, 0.01)
    mine, others = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert mine | others == set(names.values())
    assert not mine & others
    return mine


def test_muon_takes_the_matrices_of_the_layers(tiny):
    wanted = {name for name, p in tiny.named_parameters() if p.ndim == 2 and name.startswith("model.layers.")}
    assert taken(tiny) == wanted
    assert len(wanted) == 2 * 7


def test_whatever_the_layers_are_called():
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=320, n_positions=64))
    parts = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert taken(model) == {f"transformer.h.{i}.{part}.weight" for i in range(2) for part in parts}


def test_a_model_without_layers_is_refused():
    with pytest.raises(UsageError, match="Linear has no matrices in numbered layers"):
        MuonAdamW(torch.nn.Linear(4, 4), 0.01, 0.01)
