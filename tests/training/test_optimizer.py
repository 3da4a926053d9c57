"""Which parameters Muon takes: the matrices inside layers, however a model calls its layers."""

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from nbagent.errors import UsageError
from nbagent_training.optimizer import Float32Muon, MuonAdamW


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


def stepped(kind, shapes, like=None):
    """Matrices after three steps with given gradients, and the optimizer, which takes on the state of `like`."""
    torch.manual_seed(0)
    matrices = [torch.nn.Parameter(torch.randn(shape) / 10) for shape in shapes]
    optimizer = kind(matrices, lr=0.02, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    if like is not None:
        optimizer.load_state_dict(copy.deepcopy(like.state_dict()))
    for _ in range(3):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape)
        optimizer.step()
    return [matrix.detach() for matrix in matrices], optimizer


@pytest.mark.parametrize("resumed", [False, True])
def test_without_bfloat16_muons_steps_are_pytorchs_but_for_rounding(resumed):
    shapes = [(8, 24), (24, 8), (16, 16)]
    before = stepped(torch.optim.Muon, shapes)[1] if resumed else None
    theirs, ours = (stepped(kind, shapes, before)[0] for kind in (torch.optim.Muon, Float32Muon))
    start = stepped(lambda *args, **kw: torch.optim.SGD(args[0], lr=0.0), shapes)[0]
    for one, other, begun in zip(ours, theirs, start, strict=True):
        assert (one - other).norm() < 0.02 * (other - begun).norm()
