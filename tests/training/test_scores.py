"""Log-probs at chosen tokens, a chunk at a time, and attention over forests by FlexAttention."""

import pytest
import torch
from transformers import (
    AttentionInterface,
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from nbagent.errors import UsageError
from nbagent_training.attention import NAME, forest_attention, forest_of, use_own_attention
from nbagent_training.packing import pack
from nbagent_training.scores import check_lengths, check_scores, scoring, token_scores, unseen

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


def with_own_attention(model, sharp=1.0):
    """Weights of a new model are so small that it hardly attends; made larger, differences show."""
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(sharp)
    use_own_attention(model)
    return model


def test_a_model_that_caps_its_logits_is_refused():
    config = Gemma2Config(**SMALL, final_logit_softcapping=0.5, attn_logit_softcapping=None, sliding_window=4096)
    with pytest.raises(UsageError, match="Gemma2ForCausalLM: its log-probs cannot be computed"):
        check_scores(with_own_attention(Gemma2ForCausalLM(config)))


def test_capped_attention_is_refused():
    config = Gemma2Config(**SMALL, final_logit_softcapping=None, attn_logit_softcapping=50.0, sliding_window=4096)
    model = with_own_attention(Gemma2ForCausalLM(config))
    with pytest.raises(UsageError, match="Gemma2Attention asks for softcap in its attention"):
        check_scores(model)
    with pytest.raises(UsageError, match="asks for softcap"):
        model(torch.tensor([[5, 6, 7]]))


def test_attention_sinks_are_refused():
    config = GptOssConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2, sliding_window=4096)
    with pytest.raises(UsageError, match="GptOssAttention asks for s_aux in its attention"):
        check_scores(with_own_attention(GptOssForCausalLM(config)))


@pytest.mark.parametrize("sharp", [1.0, 6.0])
@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (Qwen3Config(**SMALL), Qwen3ForCausalLM),
        (LlamaConfig(**SMALL), LlamaForCausalLM),
        (MistralConfig(**SMALL, sliding_window=64), MistralForCausalLM),
        (Gemma2Config(**SMALL, final_logit_softcapping=None, attn_logit_softcapping=None), Gemma2ForCausalLM),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_models_with_plain_attention_pass(config, kind, sharp):
    torch.manual_seed(0)
    model = with_own_attention(kind(config), sharp)
    check_scores(model)
    assert (model.training, model.config._attn_implementation) == (True, "nbagent")


@pytest.mark.parametrize("sharp", [1.0, 6.0])
def test_attention_is_compared_with_the_models_own(sharp):
    """Not with itself: attention that is wrong in the same way for rows alone and rows packed is found."""
    torch.manual_seed(0)
    model = with_own_attention(Qwen3ForCausalLM(Qwen3Config(**SMALL)), sharp)

    def twice(module, query, key, value, mask, scaling, **more):
        return forest_attention(module, query, key, value, mask, 2 * scaling, **more)

    try:
        AttentionInterface.register(NAME, twice)
        with pytest.raises(UsageError, match="its log-probs cannot be computed"):
            check_scores(model)
    finally:
        use_own_attention(model)
    check_scores(model)


@pytest.mark.parametrize(
    "positions",
    [
        {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
        {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [8.0] * 4, "rope_theta": 1e4}
        | {"original_max_position_embeddings": 64, "factor": 4.0},
    ],
    ids=lambda positions: positions["rope_type"],
)
def test_positions_that_change_with_the_longest_row_are_refused(positions):
    model = with_own_attention(Qwen3ForCausalLM(Qwen3Config(**SMALL, rope_parameters=positions)))
    with pytest.raises(UsageError, match=f"its positions \\({positions['rope_type']}\\) change"):
        check_scores(model)


def test_a_window_is_held_against_rows_and_not_against_what_is_packed():
    model = with_own_attention(MistralForCausalLM(MistralConfig(**SMALL, sliding_window=16)))
    rows = [(tuple(range(i, i + 10)), (5, 6)) for i in range(10, 60, 10)]
    assert len(pack(rows)) > 2 * 16
    forward(model, pack(rows), "sdpa")
    with pytest.raises(UsageError, match=r"within a window of 16 tokens, .* a row has 21"):
        forward(model, pack([*rows, (tuple(range(20)), (5,))]), "sdpa")


def test_a_window_that_a_row_may_exceed_is_refused_before_training():
    model = MistralForCausalLM(MistralConfig(**SMALL, sliding_window=64))
    check_lengths(model, 64)
    check_lengths(model)
    with pytest.raises(UsageError, match=r"window of 64 tokens, .* rows may have 65.*--max-model-len 64"):
        check_lengths(model, 65)
    check_lengths(Qwen3ForCausalLM(Qwen3Config(**SMALL, sliding_window=64)), 4096)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_adapters_on_the_output_layer_are_refused():
    from peft import LoraConfig, get_peft_model

    for tied, targets, named in ((False, ["lm_head"], "lm_head"), (True, ["embed_tokens"], "embed_tokens")):
        model = with_own_attention(Qwen3ForCausalLM(Qwen3Config(**SMALL, tie_word_embeddings=tied)))
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=[*targets, "q_proj"], task_type="CAUSAL_LM"))
        with pytest.raises(UsageError, match=f"lora.targets: {named} is the output layer"):
            check_scores(adapted)
