"""The loss from its definitions: what a row has of its own, what a token has, and what is counted."""

import pytest
import torch

from nbagent_training.loss_settings import Loss
from nbagent_training.losses import Tokens, loss_and_sums

ROWS = torch.tensor([0, 0, 0, 1, 1])


def tokens(logp, *, old=None, sampler=None, advantage=None, reference=None):
    """Two rows, of three tokens and of two; what is not given is on-policy."""
    here = logp.detach()
    return Tokens(
        logp=logp,
        entropy=torch.zeros_like(here),
        sampler=here if sampler is None else sampler,
        old=here if old is None else old,
        advantage=torch.ones_like(here) if advantage is None else advantage,
        weight=torch.full_like(here, 0.2),
        row=ROWS,
        n_rows=2,
        reference=reference,
    )


def test_a_sequence_ratio_is_corrected_by_that_of_its_row():
    logp = torch.tensor([-1.0, -2.0, -3.0, -1.5, -2.5], requires_grad=True)
    here = logp.detach()
    old = here - torch.tensor([0.1, -0.2, 0.05, 0.1, 0.1])
    sampler = old - torch.tensor([0.0, 5.0, -0.5, -0.3, 0.1])
    settings = Loss(ratio="sequence", correction="truncate", correction_high=2.0, clip_low=1.0, clip_high=9.0, passes=2)
    loss, _ = loss_and_sums(tokens(logp, old=old, sampler=sampler), settings)
    wanted = 0.0
    for own in (slice(0, 3), slice(3, 5)):
        length = own.stop - own.start
        s = ((logp[own] - old[own]).sum() / length).exp()
        c = ((old[own] - sampler[own]).sum() / length).exp().clamp(max=2.0)
        wanted = wanted - 0.2 * length * c * s
    mine, other = (torch.autograd.grad(value, logp)[0] for value in (loss, wanted))
    assert torch.allclose(mine, other, atol=1e-6)


def test_a_masked_token_has_no_gradient():
    logp = torch.tensor([-1.0, -2.0, -3.0, -1.5, -2.5], requires_grad=True)
    sampler = logp.detach() - torch.tensor([0.0, 5.0, 0.0, 0.0, -5.0])
    loss, _ = loss_and_sums(tokens(logp, sampler=sampler), Loss(correction="mask"))
    assert (torch.autograd.grad(loss, logp)[0] == 0).tolist() == [False, True, False, False, True]


@pytest.mark.parametrize("kl", ["k1", "k2"])
def test_the_expected_gradient_of_an_estimator_is_that_of_the_divergence(kl):
    """The expectation is a sum over the vocabulary: every token as the one sampled, by its probability."""
    torch.manual_seed(0)
    logits, others = torch.randn(11, dtype=torch.float64, requires_grad=True), torch.randn(11, dtype=torch.float64)
    theirs = others.log_softmax(-1)
    (wanted,) = torch.autograd.grad((logits.softmax(-1) * (logits.log_softmax(-1) - theirs)).sum(), logits)
    logp = logits.log_softmax(-1)
    here = logp.detach()
    sampled = Tokens(
        logp=logp,
        entropy=torch.zeros_like(here),
        sampler=here,
        old=here,
        advantage=torch.zeros_like(here),
        weight=here.exp(),
        row=torch.arange(11),
        n_rows=11,
        reference=theirs,
    )
    loss, _ = loss_and_sums(sampled, Loss(kl_coef=1.0, kl=kl))
    assert torch.allclose(torch.autograd.grad(loss, logits)[0], wanted, atol=1e-12)


def test_cispo_caps_the_ratio_whatever_the_advantage_is_and_counts_so():
    old = torch.full((5,), -2.0)
    logp = (old + torch.tensor([0.5, 0.5, -0.5, -0.5, 0.0])).requires_grad_()
    given = tokens(logp, old=old, sampler=old, advantage=torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]))
    _, capped = loss_and_sums(given, Loss(kind="cispo", passes=2))
    _, clipped = loss_and_sums(given, Loss(passes=2))
    names = ("clip_low_share", "clip_high_share")
    assert [float(capped[name]) for name in names] == [2, 2]
    assert [float(clipped[name]) for name in names] == [1, 1]
