"""Log-probs at chosen tokens, a chunk at a time, and attention over forests by FlexAttention."""

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM

from nbagent.errors import UsageError
from nbagent_training.attention import forest_of, use_own_attention
from nbagent_training.packing import pack
from nbagent_training.scores import check_scores, scoring, token_scores, unseen

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 320, "pad_token_id": 0}


@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_chunks_give_the_scores_and_gradients_of_the_whole(entropy_gradient):
    torch.manual_seed(0)
    hidden, weight = (torch.randn(37, 16) / 4).requires_grad_(), torch.randn(50, 16, requires_grad=True)
    bias, targets, upstream = torch.randn(50, requires_grad=True), torch.randint(0, 50, (37,)), torch.randn(37, 2)
    logps = torch.log_softmax((hidden @ weight.T + bias) / 0.7, -1)
    entropy = -(logps.exp() * logps).sum(-1)
    wanted = torch.stack(
        [logps.gather(1, targets[:, None])[:, 0], entropy if entropy_gradient else entropy.detach()], 1
    )
    inputs = (hidden, weight, bias)
    wanted_gradients = torch.autograd.grad((wanted * upstream).sum(), inputs)
    for cells in (1, 50 * 10, 50 * 37):
        got = token_scores(*inputs, targets, 0.7, entropy_gradient=entropy_gradient, cells=cells)
        assert torch.allclose(got, wanted, atol=1e-5)
        for mine, other in zip(torch.autograd.grad((got * upstream).sum(), inputs), wanted_gradients, strict=True):
            assert torch.linalg.vector_norm(mine - other) <= 1e-5 * torch.linalg.vector_norm(other)


def forward(model, row, kernel):
    where = torch.tensor([place for path in row.paths for place in path[:-1]])
    targets = torch.tensor([row.ids[place] for path in row.paths for place in path[1:]])
    with torch.no_grad(), scoring(model, where, targets, 1.0):
        return model(
            input_ids=torch.tensor([row.ids]),
            attention_mask=unseen(torch.device("cpu")),
            position_ids=torch.tensor([row.positions]),
            use_cache=False,
            forest=forest_of(row, torch.device("cpu"), kernel),
        ).logits


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile.*")
def test_flex_attention_gives_the_same_log_probs(tiny):
    """Forward only: a CPU has no backward pass of it."""
    use_own_attention(tiny)
    stem = tuple(range(10, 200))
    row = pack([((*stem, 7), (8, 9)), ((*stem, 7, 8), (9, 5, 6)), (stem, (4,)), ((250, 251), (252,))], completions=True)
    assert len(row.segments) > 4
    assert torch.allclose(forward(tiny, row, "flex"), forward(tiny, row, "sdpa"), atol=1e-3)


def test_long_segments_are_attended_in_blocks(tiny, monkeypatch):
    use_own_attention(tiny)
    row = pack([(tuple(range(10, 80)), (8, 9)), ((*range(10, 60), 5, 6), tuple(range(5, 40)))], completions=True)
    whole = forward(tiny, row, "sdpa")
    monkeypatch.setattr("nbagent_training.attention.BLOCK", 16)
    assert len(forest_of(row, torch.device("cpu")).lengths) > 7
    assert torch.allclose(forward(tiny, row, "sdpa"), whole, atol=1e-3)


def test_scores_are_the_sampling_threads_only_while_scoring(tiny):
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = tiny(ids).logits
        with scoring(tiny, torch.tensor([0, 1]), torch.tensor([6, 7]), 1.0):
            assert tiny(ids).logits.shape == (2, 2)
        assert torch.equal(tiny(ids).logits, before)


def test_a_model_that_caps_its_logits_is_refused():
    config = Gemma2Config(**SMALL, final_logit_softcapping=0.5, sliding_window=4096)
    model = Gemma2ForCausalLM(config)
    use_own_attention(model)
    with pytest.raises(UsageError, match="Gemma2ForCausalLM: its log-probs cannot be computed"):
        check_scores(model)


def test_a_window_shorter_than_a_row_is_refused():
    model = MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4))
    use_own_attention(model)
    with pytest.raises(UsageError, match="within a window of 4 tokens"):
        forward(model, pack([(tuple(range(10)), (5,))]), "sdpa")
