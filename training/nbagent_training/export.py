"""A trained checkpoint as a plain model folder: adapters merged, tokenizer and agent beside the weights. Needs torch.

Merged weights are W + (alpha / rank) · B A (Hu et al. 2021, arXiv 2106.09685, section 4.1), computed in fp32 and then
rounded once to the precision asked for; so the folder's outputs are the adapted model's up to that rounding.
"""

from __future__ import annotations

import json
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from nbagent.agent import FILE as AGENT_FILE
from nbagent.agent import Agent
from nbagent.errors import ModelFolderError, RunFolderError, UsageError
from nbagent.models.hf import load
from nbagent.models.opening import check_folder
from nbagent.runfolder import RunFolder

ADAPTER = "adapter_config.json"
"""What marks a folder of adapters."""
STAGES = ("untrained", "warm", "final")
"""Folders under a run's checkpoints/ that hold whole models."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class _Run:
    """What an export needs of a training run."""

    path: Path
    model: str
    """The recipe's `model.folder`; '' for a model made from scratch."""
    warmed: bool
    """It has a warm start, so that GRPO's adapters belong to what that left."""
    agent: Agent


def export(source: Path, out: Path, *, checkpoint: str = "", dtype: str = "") -> Path:
    """Write a checkpoint as a model folder that `nbagent score --model` and vLLM take.

    Args:
        source: a run folder of `nbagent train` or `nbagent demo`, or the folder of a checkpoint.
        out: the folder to make; it must not exist, or be empty.
        checkpoint: of a run: a folder under its checkpoints/, e.g. `warm` or `grpo/checkpoint-40`; empty: the last
            stage that ended.
        dtype: float32, bfloat16 or float16; empty: as the checkpoint holds them.

    Returns:
        The folder.

    Raises:
        RunFolderError: no run, or no such checkpoint; or `out` holds something.
        ModelFolderError: the checkpoint, or the model that its adapters belong to, cannot be loaded.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise RunFolderError(f"{out}: is there already; give a new folder as --out")
    if dtype and dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}: there are {', '.join(DTYPES)}")
    transformers_logging.disable_progress_bar()
    run = _run(source)
    folder = _checkpoint(source, checkpoint) if run is not None else source
    if (folder / ADAPTER).is_file():
        base = _base(folder, run if run is not None else _run_around(source))
        model, tokenizer = _merged(folder, base)
    else:
        base = folder
        check_folder(folder)
        model, tokenizer = load(folder)
    model = model.to(DTYPES[dtype or _saved_dtype(base)])
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    if (folder / AGENT_FILE).is_file():
        shutil.copy(folder / AGENT_FILE, part / AGENT_FILE)
    elif run is not None:
        run.agent.write_beside(part)
    else:
        Agent().write_beside(part)
    if out.is_dir():
        out.rmdir()
    part.rename(out)
    return out


def _run(source: Path) -> _Run | None:
    """What is needed of a training run; None for a folder that is no run.

    Nothing else of the recipe is looked at, and settings of the agent that are not known are passed over: a run of an
    older or newer program is exported too.
    """
    if not (source / "recipe.toml").is_file():
        if not (source / "config.json").is_file() and not (source / ADAPTER).is_file():
            raise RunFolderError(f"{source}: neither a run of `nbagent train` nor a checkpoint's folder")
        return None
    path = RunFolder.open(source).recipe
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
        if "grpo" not in recipe:
            raise RunFolderError(f"{source}: no run of `nbagent train`, so there is nothing to export")
        agent = {name: value for name, value in recipe.get("agent", {}).items() if name in Agent.model_fields}
        model = str(recipe.get("model", {}).get("folder", ""))
        return _Run(source, model, bool(recipe.get("warm_start", {}).get("steps")), Agent.model_validate(agent))
    except RunFolderError:
        raise
    except ValueError as error:
        raise RunFolderError(f"{path}: its agent cannot be read ({' '.join(str(error).split())})") from None


def _checkpoint(run: Path, named: str) -> Path:
    root = run / "checkpoints"
    names = [named] if named else ["final", "warm", "untrained"]
    for name in names:
        if (root / name / "config.json").is_file() or (root / name / ADAPTER).is_file():
            return root / name
    there = sorted(str(path.parent.relative_to(root)) for mark in ("config.json", ADAPTER) for path in root.rglob(mark))
    known = f"there are: {', '.join(dict.fromkeys(there))}" if there else "it has none yet"
    raise RunFolderError(f"{run}: no {'checkpoint ' + named if named else 'stage has ended'}; {known}")


def _run_around(checkpoint: Path) -> _Run | None:
    """The run in whose checkpoints/ a folder lies; None where it lies in no run's."""
    for folder in checkpoint.resolve().parents:
        if folder.name == "checkpoints" and (folder.parent / "recipe.toml").is_file():
            return _run(folder.parent)
    return None


def _base(folder: Path, run: _Run | None) -> Path:
    """The model that adapters belong to: a stage of their own run, or where they say, else the recipe's.

    A stage is looked for in the run itself, never where the adapters say: that path is as it was given to the run, and
    leads nowhere, or to another run, once the run was moved or the command is given in another folder.
    """
    said = json.loads((folder / ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path") or ""
    if run is not None and (stage := _own_stage(folder, said, run)):
        base = run.path / "checkpoints" / stage
        if not (base / "config.json").is_file():
            raise ModelFolderError(f"{base}: is not there, and the adapters of {folder} belong to it; put it there")
        return base
    if said and Path(said).is_dir():
        return Path(said)
    if run is None or not run.model:
        raise ModelFolderError(f"{folder / ADAPTER}: the model of its adapters ({said}) is not there; put it there")
    check_folder(Path(run.model))
    return Path(run.model)


def _own_stage(folder: Path, said: str, run: _Run) -> str:
    """The stage of its run that adapters belong to; '' where that is the model that the run was given."""
    root = run.path / "checkpoints"
    # Those of a warm start are added to the model that it begins with.
    if run.warmed and root.resolve() / "sft" not in folder.resolve().parents:
        return "warm"
    place = Path(said)
    of_a_run = place.parent.name == "checkpoints" and place.name in STAGES
    return place.name if of_a_run and (not run.model or place != Path(run.model)) else ""


def _merged(folder: Path, base: Path) -> tuple[Any, Any]:
    """The base model with the adapters in its weights, and its tokenizer."""
    from peft import PeftModel

    model, tokenizer = load(base)
    try:
        merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (ValueError, RuntimeError, OSError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise ModelFolderError(f"{folder}: its adapters do not fit {base} ({reason})") from error
    if (folder / "tokenizer_config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return merged, tokenizer


def _saved_dtype(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    named = str(config.get("dtype") or config.get("torch_dtype"))
    return named if named in DTYPES else "float32"
