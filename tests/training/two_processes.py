"""Gradients of the trainer, alone or as one of several processes: run by `accelerate launch` in test_processes.py."""

import sys
import tempfile
from pathlib import Path

import torch
from test_trainer import make_rows

from nbagent_training.groups import Batch
from nbagent_training.lora import add_lora
from nbagent_training.loss_settings import Lora, Loss
from nbagent_training.scratch import Size, make_model, make_tokenizer
from nbagent_training.trainer import StepGRPOTrainer, settings

CASES = {
    "uneven": ({"old": "sampler"}, 9, 130, 0),
    "fewer rows than processes": ({}, 1, 4096, 0),
    "sequence, entropy, KL": ({"ratio": "sequence", "old": "sampler", "entropy_coef": 0.1, "kl_coef": 0.1}, 7, 300, 0),
    "two passes": ({"passes": 2}, 6, 150, 0),
    "LoRA": ({"kl_coef": 0.1, "kl": "k2"}, 6, 150, 4),
}
"""Name: settings of the loss, rows, token budget, rank of the adapters."""


def gradients():
    """For each case the gradients and what was watched; the main process makes two thirds of the rows."""
    tokenizer = make_tokenizer(["import pandas as pd\nprint(df.shape)\n<answer>42</answer>"] * 20, 320)
    made = {}
    for name, (loss, n, budget, rank) in CASES.items():
        model = make_model(tokenizer, Size(vocabulary=320, hidden=32, layers=2, heads=4, intermediate=64), 3)
        adapted = add_lora(model, Lora(rank=rank))
        rows = make_rows(1, n)
        got = []

        class Watched(StepGRPOTrainer):
            def training_step(self, model, inputs, num_items_in_batch=None):
                loss = super().training_step(model, inputs, num_items_in_batch)
                got.extend(p.grad.clone() for p in model.parameters() if p.requires_grad)  # noqa: B023
                return loss

        with tempfile.TemporaryDirectory() as folder:
            arguments = settings(Path(folder), steps=1, seed=0, bf16=False, save_strategy="no", max_grad_norm=1.0)
            first, rest = rows[: -(-2 * n // 3)], rows[-(-2 * n // 3) :]

            def share(update, first=first, rest=rest, arguments=arguments):
                if arguments.world_size == 1:
                    return Batch([*first, *rest], {})
                return Batch(first if arguments.process_index == 0 else rest, {})

            trainable = [p for p in adapted.parameters() if p.requires_grad]
            trainer = Watched(
                adapted,
                tokenizer,
                arguments,
                share,
                token_budget=budget,
                loss=Loss(**loss),
                optimizers=(torch.optim.SGD(trainable, lr=1e-3), None),
            )
            trainer.train()
        made[name] = (got, trainer.watched)
    return made


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = gradients()
    import torch.distributed

    if torch.distributed.get_rank() == 0:
        torch.save(result, sys.argv[1])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
