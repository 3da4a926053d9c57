"""What can be found wrong with a run before its first stage, so that nobody waits for hours to hear of a wrong name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from nbagent.errors import UsageError
from nbagent.models.opening import check_folder, open_tokenizer
from nbagent.prompts import PromptBuilder
from nbagent.runfolder import RunFolder
from nbagent.score_run import LEAST_PROMPT
from nbagent_context import policy
from nbagent_training.distill import check_teacher
from nbagent_training.lora import add_lora
from nbagent_training.recipe import TrainRecipe
from nbagent_training.recorded import check_kind
from nbagent_training.sampler_settings import Sampler
from nbagent_training.scratch import config_of
from nbagent_training.served_base import check_base

LENGTH = "--max-model-len"
"""vLLM's argument for the longest sequence."""


def check_ready(recipe: TrainRecipe, start: Path | None, *, over: bool = False) -> None:
    """Look at everything that later stages need. Loads no weights.

    Args:
        recipe: of the run.
        start: folder of the newest model that there is; None where it is yet to be made from scratch.
        over: GRPO is, so nothing that it needs is looked at.

    Raises:
        UsageError: a model, a run, a teacher or a context policy cannot be used, `flex` has no GPU, adapters fit no
            layer or belong to another model than a server has, or answers leave no room for a prompt.
        ModelError: the server of the teacher, or one that takes adapters, does not answer.
    """
    agent, grpo = recipe.agent, recipe.grpo
    try:
        policy(agent.policy, **agent.policy_options)
    except ValueError as error:
        raise UsageError(f"agent.policy: {error}") from None
    if start is not None:
        check_folder(start)
    tokenizer = open_tokenizer(start) if start is not None else None
    size = recipe.model.scratch
    # Which layers a model made from scratch has does not hang on how many ids its tokenizer will really have.
    config: Any = (
        AutoConfig.from_pretrained(start, local_files_only=True)
        if start is not None
        else config_of(size, size.vocabulary)
    )
    positions = int(config.max_position_embeddings)
    longest = _longest(recipe.sampler, positions)
    warmed = start is None or start != Path(recipe.model.folder)
    if recipe.warm_start.from_run and not warmed:
        check_kind(RunFolder.open(recipe.warm_start.from_run))
    practised = bool(grpo.updates) and not over
    if recipe.tasks.heldout or recipe.tasks.n_heldout or (practised and not grpo.from_run):
        _check_room(agent.max_new_tokens, longest or positions, tokenizer)
    if recipe.lora.rank and (practised or (recipe.warm_start.steps and not warmed)):
        # Neither memory nor random numbers are taken for a model on the device `meta`.
        with torch.random.fork_rng(), torch.device("meta"):
            add_lora(AutoModelForCausalLM.from_config(config), recipe.lora, recipe.seed)
    if not practised:
        return
    if grpo.attention == "flex" and not torch.cuda.is_available():
        raise UsageError('grpo.attention = "flex" needs a GPU; set it to "sdpa"')
    if grpo.from_run:
        check_kind(RunFolder.open(grpo.from_run))
    check_teacher(recipe.distill.teacher, tokenizer, longest)
    # Adapters belong to what the warm start makes, where there is one to come.
    known = not recipe.warm_start.steps or (warmed and start is not None and start.name == "warm")
    if recipe.lora.rank and recipe.sampler.url and start is not None and known:
        check_base(recipe.sampler.url, start, tokenizer)


def _longest(sampler: Sampler, positions: int) -> int | None:
    """Tokens that a row may have; None where only a server knows it that is not there yet."""
    if sampler.engine == "hf":
        return positions
    words = [word for argument in sampler.arguments for word in argument.split("=", 1)]
    if LENGTH not in words:
        return positions if not sampler.url else None
    # vLLM reads shorthands such as 8k as well.
    given = "".join(words[words.index(LENGTH) + 1 :][:1])
    return int(given) if given.isdigit() else None


def _check_room(max_new_tokens: int, longest: int, tokenizer: Any) -> None:
    left = PromptBuilder(tokenizer, longest, max_new_tokens).budget().tokens
    if left < LEAST_PROMPT:
        raise UsageError(
            f"agent.max_new_tokens {max_new_tokens}: leaves {max(left, 0)} of the model's {longest} tokens for the "
            "prompt; give a smaller number"
        )
