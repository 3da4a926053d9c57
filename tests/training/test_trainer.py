"""The contract of the trainer: its gradients are those of a reference written by hand, one row at a time."""

import copy
import random

import pytest
import torch
from accelerate import Accelerator, DistributedType
from transformers import GPT2Config, GPT2LMHeadModel

from nbagent.errors import UsageError
from nbagent_training.groups import Batch, TrainingRow
from nbagent_training.loss_settings import Loss
from nbagent_training.trainer import StepGRPOTrainer, settings

TEMPERATURE = 0.8


def make_rows(seed, n, model=None):
    """Rows of which some begin alike, with the sampler's log-probs near the model's (or anywhere, without a model)."""
    rng = random.Random(seed)

    def ids(low, high):
        return tuple(rng.randrange(5, 250) for _ in range(rng.randint(low, high)))

    stem, out = ids(60, 60), []
    for i in range(n):
        prompt = stem + ids(1, 9) if i % 3 else ids(1, 40)
        if out and i % 4 == 0:
            prompt = (*out[-1].prompt_ids, *out[-1].completion_ids, *ids(1, 5))
        completion = ids(1, 20)
        logps = [rng.uniform(-8, -4) for _ in completion]
        if model is not None:
            with torch.no_grad():
                logps = [logp + rng.gauss(0, 0.4) for logp in log_probs(model, prompt, completion)[0].tolist()]
        # Numbers that float32 has, so that whoever computes with them sees the same.
        advantage, weight, *logps = torch.tensor([rng.gauss(0, 1), rng.uniform(0.001, 0.05), *logps]).tolist()
        out.append(TrainingRow(prompt, completion, tuple(logps), advantage, weight))
    return out


def log_probs(model, prompt, completion):
    logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
    all_logps = torch.log_softmax(logits / TEMPERATURE, -1)
    return all_logps.gather(1, torch.tensor(completion)[:, None])[:, 0], -(all_logps.exp() * all_logps).sum(-1)


def row_loss(row, logp, entropy, old, reference, s):
    """Σ_t ℓ of one row, token by token from the papers' formulas."""
    behaviour = torch.tensor(row.logprobs)
    against = behaviour if s.old == "sampler" else old
    total = 0.0
    mean_ratio = torch.exp((logp - against).sum() / len(logp))
    mean_mismatch = torch.exp((old - behaviour).sum() / len(logp))
    for t in range(len(logp)):
        ratio = mean_ratio if s.ratio == "sequence" else torch.exp(logp[t] - against[t])
        bounded = torch.clamp(ratio, 1 - s.clip_low, 1 + s.clip_high)
        advantage = row.advantage
        if s.kind == "cispo":
            token = -bounded.detach() * advantage * logp[t]
        else:
            surrogate = torch.min(ratio * advantage, bounded * advantage)
            if s.dual_clip is not None and advantage < 0:
                surrogate = torch.max(surrogate, torch.tensor(s.dual_clip * advantage))
            token = -surrogate
        mismatch = mean_mismatch if s.ratio == "sequence" else torch.exp(old[t] - behaviour[t])
        if s.correction == "truncate":
            token = token * min(float(mismatch), s.correction_high)
        if s.correction == "mask":
            token = token * (float(mismatch) if s.correction_low <= mismatch <= s.correction_high else 0.0)
        if s.kl_coef:
            d = logp[t] - reference[t]
            k = {"k1": d.detach() * torch.exp(logp[t] - old[t]), "k2": d * d / 2, "k3": torch.exp(-d) - 1 + d}[s.kl]
            token = token + s.kl_coef * k
        total = total + token - s.entropy_coef * entropy[t]
    return total


def reference_gradients(model, rows, s, start, reference):
    """Gradients of Σ_rows weight · row_loss, at the model's weights; `start` had them when the update began."""
    model.zero_grad()
    for row in rows:
        with torch.no_grad():
            old = log_probs(start, row.prompt_ids, row.completion_ids)[0]
            referred = log_probs(reference, row.prompt_ids, row.completion_ids)[0]
        logp, entropy = log_probs(model, row.prompt_ids, row.completion_ids)
        (row.weight * row_loss(row, logp, entropy, old, referred, s)).backward()
    return [p.grad.clone() for p in model.parameters()]


def gradients(model, tokenizer, folder, rows, s, *, budget, referred=None, lr=0.0, bf16=False, **more):
    """The trainer's gradients in its last pass, and the trainer."""
    got = []

    class Watched(StepGRPOTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = super().training_step(model, inputs, num_items_in_batch)
            got.extend(p.grad.clone() for p in model.parameters())
            return loss

    more = {"max_grad_norm": 0.0, "save_strategy": "no", **more}
    arguments = settings(folder, steps=1, seed=0, bf16=bf16, **more)
    trainer = Watched(
        model,
        tokenizer,
        arguments,
        lambda update: Batch(rows, {}),
        token_budget=budget,
        loss=s,
        temperature=TEMPERATURE,
        optimizers=(torch.optim.SGD(model.parameters(), lr=lr), None),
    )
    if referred is not None:
        trainer.reference.load_state_dict(referred.state_dict())
    trainer.train()
    return got, trainer


def error(got, wanted):
    """Relative error of the whole gradient."""
    off = sum((a - b).double().square().sum() for a, b in zip(got, wanted, strict=True))
    return float((off / sum(b.double().square().sum() for b in wanted)).sqrt())


MODES = [
    {},
    {"clip_low": 0.1, "clip_high": 0.28, "old": "sampler"},
    {"dual_clip": 1.5, "old": "sampler"},
    {"kind": "cispo", "old": "sampler", "clip_low": 1.0},
    {"kind": "cispo", "correction": "truncate", "passes": 2, "clip_low": 3e-3, "clip_high": 3e-3},
    {"ratio": "sequence", "clip_low": 0.02, "clip_high": 0.03, "old": "sampler"},
    {"correction": "truncate", "correction_high": 1.1},
    {"correction": "mask", "correction_low": 0.7, "correction_high": 1.4},
    {"kl_coef": 0.3, "kl": "k1"},
    {"kl_coef": 0.3, "kl": "k2"},
    {"kl_coef": 0.3, "kl": "k3"},
    {"entropy_coef": 0.2},
    {"passes": 2, "clip_low": 3e-3, "clip_high": 3e-3, "correction": "mask"},
    {"passes": 2, "ratio": "sequence", "clip_low": 0.01, "clip_high": 0.01},
    {"ratio": "sequence", "correction": "truncate", "correction_high": 1.05},
    {"passes": 2, "kl_coef": 0.3, "kl": "k1"},
    {"passes": 2, "kl_coef": 0.3, "kl": "k2"},
    {"passes": 2, "kl_coef": 0.3, "kl": "k3"},
]


def words(mode):
    return "-".join(f"{k}={v}" for k, v in mode.items()) or "default"


def norm(gradient):
    return float(sum(g.double().square().sum() for g in gradient) ** 0.5)


def compare(model, tokenizer, folder, s, budget, most=None):
    """Relative error of the trainer's gradients in its last pass, and the trainer; with an SGD step between passes.

    Steps take gradients of a norm of at most `most` times that of the first.
    """
    rows = make_rows(1, 9, model)
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for p in reference.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(7)))
    start, stepped, lr = copy.deepcopy(model), copy.deepcopy(model), 1e-3
    wanted = reference_gradients(stepped, rows, s, start, reference)
    bound = (most or 1e9) * norm(wanted)
    for _ in range(s.passes - 1):
        share = min(1.0, bound / norm(wanted))
        with torch.no_grad():
            for p, gradient in zip(stepped.parameters(), wanted, strict=True):
                p.sub_(lr * share * gradient)
        wanted = reference_gradients(stepped, rows, s, start, reference)
    referred = reference if s.kl_coef else None
    more = {"budget": budget, "referred": referred, "lr": lr, "max_grad_norm": bound if most else 0.0}
    got, trainer = gradients(model, tokenizer, folder, rows, s, **more)
    assert trainer.watched["tokens_trained"] == sum(len(row.completion_ids) for row in rows)
    return error(got, wanted), trainer


@pytest.mark.parametrize("mode", MODES, ids=words)
@pytest.mark.parametrize("budget", [130, 4096])
def test_gradients_equal_the_reference(tiny, tokenizer, tmp_path, mode, budget):
    s = Loss(**mode)
    with torch.no_grad():
        for p in tiny.parameters():
            p.mul_(0.6)  # Less sharp: rounding in the first of two passes is not magnified in the second.
    off, trainer = compare(tiny, tokenizer, tmp_path, s, budget)
    assert off < 1e-5
    if mode.get("old") == "sampler" or s.passes > 1:
        assert trainer.watched["clip_low_share"] + trainer.watched["clip_high_share"] > 0


@pytest.mark.parametrize("mode", [mode for mode in MODES if "passes" in mode], ids=words)
def test_in_double_precision_all_passes_equal_the_reference(tiny, tokenizer, tmp_path, monkeypatch, mode):
    """In float32, and with weights as sharp as these, the second pass is off by up to 5e-5: that is rounding."""
    tiny.double()
    # Transformers' own rounds to float32 in between.
    monkeypatch.setattr(
        type(tiny.model.norm),
        "forward",
        lambda self, x: torch.nn.functional.rms_norm(x, x.shape[-1:], self.weight, self.variance_epsilon),
    )
    off, _ = compare(tiny, tokenizer, tmp_path, Loss(**mode), 4096)
    assert off < 1e-9


def test_shared_prefixes_are_computed_once(tiny, tokenizer, tmp_path):
    rows = make_rows(3, 12)
    _, trainer = gradients(tiny, tokenizer, tmp_path, rows, Loss(), budget=4096)
    assert trainer.watched["tokens_rows"] == sum(len(row.prompt_ids) + len(row.completion_ids) for row in rows)
    assert trainer.watched["tokens_computed"] < 0.7 * trainer.watched["tokens_rows"]
    assert trainer.watched["micro_batches"] == 1


def test_between_passes_gradients_are_clipped(tiny, tokenizer, tmp_path):
    with torch.no_grad():
        for p in tiny.parameters():
            p.mul_(0.6)
    whole = copy.deepcopy(tiny)
    s = Loss(passes=2)
    off, trainer = compare(tiny, tokenizer, tmp_path / "clipped", s, 4096, most=0.1)
    assert off < 1e-5
    unclipped, other = compare(whole, tokenizer, tmp_path / "whole", s, 4096)
    assert unclipped < 1e-5
    assert abs(trainer.watched["ratio_max"] - other.watched["ratio_max"]) > 1e-3, "the bound holds"


def test_in_bf16_rows_packed_and_rows_apart_give_the_gradients_of_fp32(tiny, tokenizer, tmp_path):
    with torch.no_grad():
        for p in tiny.parameters():
            p.mul_(0.4)  # As sharp as a new model: bf16 alone is then off by less than half a per cent.
    rows = make_rows(1, 9, tiny)
    start = copy.deepcopy(tiny)
    s = Loss(entropy_coef=0.1)
    wanted = reference_gradients(copy.deepcopy(tiny), rows, s, start, start)
    for name, budget in (("packed", 4096), ("apart", 30)):
        got, trainer = gradients(copy.deepcopy(tiny), tokenizer, tmp_path / name, rows, s, budget=budget, bf16=True)
        assert trainer.watched["micro_batches"] == (1 if name == "packed" else len(rows))
        assert 0 < error(got, wanted) < 1e-2, name


def test_recomputing_activations_changes_no_gradient(tiny, tokenizer, tmp_path):
    rows = make_rows(4, 6, tiny)
    wanted = reference_gradients(copy.deepcopy(tiny), rows, Loss(), tiny, tiny)
    calls = []
    tiny.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(None))
    counts = {}
    for recompute in (False, True):
        calls.clear()
        more = {"budget": 100, "gradient_checkpointing": recompute}
        got, trainer = gradients(tiny, tokenizer, tmp_path / str(recompute), rows, Loss(), **more)
        assert error(got, wanted) < 1e-5
        counts[recompute] = len(calls)
    assert trainer.watched["micro_batches"] > 1
    assert counts[True] - counts[False] == trainer.watched["micro_batches"], "each layer is computed once more"


def with_dropout(kind, tiny):
    if kind == "GPT2":
        return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=320, n_positions=256))
    config = copy.deepcopy(tiny.config)
    config.attention_dropout = 0.5
    return type(tiny)(config)


@pytest.mark.parametrize("kind", ["GPT2", "Qwen3"])
def test_nothing_is_dropped_so_passes_and_kl_compare_equal_things(kind, tiny, tokenizer, tmp_path):
    model = with_dropout(kind, tiny)
    rows = make_rows(1, 5)
    _, trainer = gradients(model, tokenizer, tmp_path, rows, Loss(passes=2, kl_coef=0.1), budget=150)
    assert trainer.watched["micro_batches"] > 1
    assert trainer.watched["ratio_max"] == pytest.approx(1, abs=1e-5)
    assert trainer.watched["kl"] == pytest.approx(0, abs=1e-9)
    assert model.training


def test_in_bf16_the_reference_is_computed_as_the_policy_is(tiny, tokenizer, tmp_path):
    """Without adapters it is a copy, which nobody but the trainer puts under autocast."""
    rows = make_rows(1, 3)
    _, trainer = gradients(tiny, tokenizer, tmp_path, rows, Loss(kl_coef=0.1), budget=4096, bf16=True)
    assert trainer.watched["kl"] == 0
    assert trainer.watched["logp_gap"] > 0


def trainer_of(model, tokenizer, folder, make_batch, loss=None, **more):
    arguments = settings(folder, seed=0, bf16=False, **more)
    return StepGRPOTrainer(model, tokenizer, arguments, make_batch, token_budget=256, loss=loss)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has it")
def test_flex_attention_is_refused_without_a_gpu(tiny, tokenizer, tmp_path):
    with pytest.raises(UsageError, match=r"flex.* needs a GPU"):
        StepGRPOTrainer(
            tiny, tokenizer, settings(tmp_path, steps=1, seed=0, bf16=False), dict, token_budget=256, kernel="flex"
        )


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_weights_in_shards_are_refused(tiny, tokenizer, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType(kind))
    with pytest.raises(
        UsageError, match=f"^accelerate: {kind} is not supported: [^\n]* `accelerate launch --multi_gpu`"
    ):
        trainer_of(tiny, tokenizer, tmp_path, dict, steps=1)


@pytest.mark.parametrize("passes", [1, 2])
def test_an_update_without_a_gradient_changes_nothing(tiny, tokenizer, tmp_path, passes):
    """Not even by the momentum of the update before it."""
    begun = []

    def make_batch(update):
        begun.append([p.detach().clone() for p in tiny.parameters()])
        return Batch([] if update else make_rows(1, 4, tiny), {"reward": 0.0})

    more = {"steps": 2, "learning_rate": 1e-2, "weight_decay": 0.1, "save_strategy": "no"}
    trainer_of(tiny, tokenizer, tmp_path, make_batch, loss=Loss(passes=passes), **more).train()
    first, second = begun
    assert not any(torch.equal(p, q) for p, q in zip(first, second, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(tiny.parameters(), second, strict=True))


def test_checkpoint_and_resume_go_on_at_the_next_update(tiny, tokenizer, tmp_path):
    seen = []

    def make(update):
        seen.append(update)
        return Batch(make_rows(update, 4), {})

    def trainer(steps):
        return trainer_of(
            tiny,
            tokenizer,
            tmp_path,
            make,
            steps=steps,
            learning_rate=1e-3,
            save_strategy="steps",
            save_steps=2,
            ignore_data_skip=True,
        )

    trainer(2).train()
    trainer(4).train(resume_from_checkpoint=True)
    assert seen == [0, 1, 2, 3]


def test_what_is_watched_is_logged(tiny, tokenizer, tmp_path):
    lines = []
    rows = make_rows(1, 5, tiny)
    with torch.no_grad():
        logps = torch.cat([log_probs(tiny, row.prompt_ids, row.completion_ids)[0] for row in rows])
    trainer = StepGRPOTrainer(
        tiny,
        tokenizer,
        settings(tmp_path, steps=1, seed=0, bf16=False, save_strategy="no"),
        lambda update: Batch(rows, {"reward": 0.5}),
        token_budget=256,
        temperature=TEMPERATURE,
        report=lambda update, logs: lines.append(logs),
    )
    trainer.train()
    first = lines[0]
    gap = logps - torch.tensor([logp for row in rows for logp in row.logprobs])
    assert first["logp_gap"] == pytest.approx(float(gap.abs().mean()), rel=1e-3)
    assert first["ratio_mean"] == first["ratio_max"] == 1
    assert {"reward", "loss", "grad_norm", "learning_rate", "entropy", "logp_gap_k3", "clip_low_share"} <= set(first)
    assert "reward" not in lines[-1]
