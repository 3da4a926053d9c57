"""Dense attention computes what PyTorch's fused one does, forward and backward."""

import copy

import torch

from nbagent_training.attention import dense_attention, use_own_attention


def test_equals_scaled_dot_product_attention():
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, heads, 17, 8, requires_grad=True) for heads in (6, 2, 2))
    seen = torch.rand(3, 1, 17, 17) < 0.6
    seen |= torch.eye(17, dtype=torch.bool)
    mask = torch.zeros(seen.shape).masked_fill(~seen, -1e4)
    got, _ = dense_attention(None, q, k, v, mask, scaling=0.3)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=0.3, enable_gqa=True)
    assert torch.allclose(got, wanted.transpose(1, 2), atol=1e-6)
    weight = torch.randn_like(got)
    mine = torch.autograd.grad((got * weight).sum(), (q, k, v))
    other = torch.autograd.grad((wanted.transpose(1, 2) * weight).sum(), (q, k, v))
    for a, b in zip(mine, other, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_model_gives_the_same_logits_with_left_padding(tiny):
    fast = copy.deepcopy(tiny)
    use_own_attention(fast)
    assert fast.config._attn_implementation == "nbagent"
    ids = torch.randint(5, 250, (4, 12))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    mask[3, :11] = 0
    with torch.autocast("cpu", torch.bfloat16):
        loss = fast(input_ids=ids, attention_mask=mask).logits[mask.bool()].float().square().mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in fast.parameters())
    with torch.no_grad():
        a, b = tiny(input_ids=ids, attention_mask=mask).logits, fast(input_ids=ids, attention_mask=mask).logits
    assert torch.allclose(a[mask.bool()], b[mask.bool()], atol=1e-4)
