"""The contract with TRL's private surface: gradients of StepGRPOTrainer equal a hand-written reference."""

import random

import pytest
import torch

from nbagent_training.errors import TrainingDiverged
from nbagent_training.groups import Batch, TrainingRow
from nbagent_training.trainer import StepGRPOTrainer, microbatches, settings


def make_rows(seed, n):
    rng = random.Random(seed)
    out = []
    for _ in range(n):
        prompt = tuple(rng.randrange(5, 250) for _ in range(rng.randint(1, 40)))
        completion = tuple(rng.randrange(5, 250) for _ in range(rng.randint(1, 20)))
        logps = tuple(rng.uniform(-8, -4) for _ in completion)
        out.append(TrainingRow(prompt, completion, logps, rng.gauss(0, 1), rng.uniform(0.001, 0.05)))
    return out


def reference_gradient(model, rows, tis_cap=None):
    """−Σ rows weight · A · Σ tokens (ρ) · log π, one row at a time, written from the formula in groups.py.

    On-policy, the ratio is 1 and its gradient is that of log π.
    """
    model.zero_grad()
    for row in rows:
        ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
        logits = model(input_ids=ids).logits[0, len(row.prompt_ids) - 1 : -1].float()
        logp = torch.log_softmax(logits, -1).gather(1, torch.tensor(row.completion_ids)[:, None])[:, 0]
        rho = torch.ones_like(logp)
        if tis_cap is not None:
            rho = torch.exp(logp.detach() - torch.tensor(row.logprobs)).clamp(max=tis_cap)
        (-(row.weight * row.advantage * rho * logp).sum()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("loss", "tis_cap", "budget"), [("dapo", None, 128), ("dapo", 2.0, 128), ("cispo", None, 4096)]
)
def test_gradients_equal_the_reference(tiny, tokenizer, tmp_path, loss, tis_cap, budget):
    tiny.eval()
    batches = [make_rows(1, 13), make_rows(2, 6), make_rows(3, 1)]
    start = {name: p.detach().clone() for name, p in tiny.named_parameters()}
    wanted = [reference_gradient(tiny, rows, tis_cap) for rows in batches]
    tiny.zero_grad()
    got = []

    class Watched(StepGRPOTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = super().training_step(model, inputs, num_items_in_batch)
            got.append({name: p.grad.clone() for name, p in model.named_parameters()})
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.copy_(start[name])
            return loss

    trainer = Watched(
        tiny,
        tokenizer,
        settings(
            tmp_path,
            steps=3,
            seed=0,
            bf16=False,
            loss_type=loss,
            # TRL takes this for CISPO's cap of the ratio itself, and for 1 + epsilon otherwise.
            epsilon_high=5.0 if loss == "cispo" else 0.2,
            learning_rate=0.0,
            save_strategy="no",
            max_grad_norm=0.0,
        ),
        lambda update: Batch(batches[update], {}),
        token_budget=budget,
        tis_cap=tis_cap,
    )
    trainer.train()
    assert len(got) == 3
    for mine, reference in zip(got, wanted, strict=True):
        for name, gradient in reference.items():
            error = torch.linalg.vector_norm(mine[name] - gradient) / (torch.linalg.vector_norm(gradient) + 1e-12)
            assert error < 1e-4, (name, float(error))


def test_an_update_without_a_gradient_changes_nothing(tiny, tokenizer, tmp_path):
    before = [p.detach().clone() for p in tiny.parameters()]
    trainer = StepGRPOTrainer(
        tiny,
        tokenizer,
        settings(tmp_path, steps=1, seed=0, bf16=False, learning_rate=1.0, save_strategy="no", weight_decay=0.0),
        lambda update: Batch([], {"reward": 0.0}),
        token_budget=256,
    )
    trainer.train()
    assert all(torch.equal(p, q) for p, q in zip(tiny.parameters(), before, strict=True))


def test_a_loss_that_is_no_number_stops_the_run(tiny, tokenizer, tmp_path):
    with torch.no_grad():
        next(tiny.parameters())[7] = float("nan")
    row = TrainingRow((5, 7, 9), (10, 11), (0.0, 0.0), 1.0, 0.5)
    trainer = StepGRPOTrainer(
        tiny,
        tokenizer,
        settings(tmp_path, steps=1, seed=0, bf16=False, save_strategy="no"),
        lambda update: Batch([row], {}),
        token_budget=256,
    )
    with pytest.raises(TrainingDiverged, match="update 1: the loss is nan"):
        trainer.train()


def test_checkpoint_and_resume_go_on_at_the_next_update(tiny, tokenizer, tmp_path):
    seen = []

    def make(update):
        seen.append(update)
        return Batch(make_rows(update, 4), {})

    def trainer(steps):
        config = settings(
            tmp_path,
            steps=steps,
            seed=0,
            bf16=False,
            learning_rate=1e-3,
            save_strategy="steps",
            save_steps=2,
            ignore_data_skip=True,
        )
        return StepGRPOTrainer(tiny, tokenizer, config, make, token_budget=256)

    trainer(2).train()
    trainer(4).train(resume_from_checkpoint=True)
    assert seen == [0, 1, 2, 3]


def test_microbatches_keep_to_the_budget_and_lose_nothing():
    rows = make_rows(5, 50)
    chunks = microbatches(rows, 256)
    assert sorted(map(id, rows)) == sorted(id(r) for c in chunks for r in c)
    for chunk in chunks:
        longest = max(len(r.prompt_ids) + len(r.completion_ids) for r in chunk)
        assert len(chunk) == 1 or len(chunk) * (-(-longest // 32) * 32) <= 256
