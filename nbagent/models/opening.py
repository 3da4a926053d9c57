"""Open a model by its name: a local folder, or `openai:URL#MODEL`. Heavy imports come late."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from nbagent.errors import ModelFolderError, UsageError
from nbagent.models.base import Model

REMOTE = "openai:"


def is_remote(spec: str) -> bool:
    """True where the model is asked over HTTP."""
    return spec.startswith(REMOTE)


def open_model(spec: str, **settings: Any) -> Model:
    """The model that `spec` names.

    Args:
        spec: the folder of a Hugging Face causal LM, or `openai:URL` or `openai:URL#MODEL` for an endpoint
            that speaks the chat-completions protocol (without `#MODEL` it must serve exactly one).
        settings: those of `OpenAIModel` (where `tokenizer` may be a folder) or of `HFModel`.

    Raises:
        ModelFolderError: the folder is missing, is no model, or is corrupt.
        UsageError: the URL cannot be used.
    """
    if is_remote(spec):
        from nbagent.models.openai import OpenAIModel

        url, _, name = spec.removeprefix(REMOTE).partition("#")
        if isinstance(settings.get("tokenizer"), str):
            settings["tokenizer"] = open_tokenizer(Path(settings["tokenizer"]))
        return OpenAIModel(url, name, **settings)
    if "://" in spec:
        raise UsageError(f"{spec}: a model over HTTP is written openai:{spec}#MODEL")
    folder = Path(spec)
    check_folder(folder)
    from nbagent.models.hf import HFModel

    return HFModel.load(folder, **settings)


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer of a local folder. Raises UsageError where there is none."""
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; --tokenizer takes the folder of a Hugging Face tokenizer")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise UsageError(f"{folder}: not the folder of a Hugging Face tokenizer ({reason})") from error


def is_ours(spec: str) -> bool:
    """True for a checkpoint in a run folder whose model was made from nothing: it knows only what the run taught it.

    A foreign model stays foreign when it is trained further.
    """
    recipe = Path(spec).resolve().parent.parent / "recipe.toml"
    if is_remote(spec) or Path(spec).resolve().parent.name != "checkpoints" or not recipe.is_file():
        return False
    try:
        table = tomllib.loads(recipe.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return False
    model = table.get("model")
    return isinstance(model, dict) and model.get("folder") == ""


def check_folder(folder: Path) -> None:
    """Look at a model folder before anything heavy is imported.

    Raises:
        ModelFolderError: the folder, its config.json, its weights or its tokenizer is missing or broken.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "no such model folder"
        raise ModelFolderError(f"{folder}: {what}; give a local folder of a Hugging Face causal LM, or openai:URL")
    config = folder / "config.json"
    if not config.is_file():
        raise ModelFolderError(f"{folder}: not a model folder, it has no config.json; give the folder with it")
    try:
        known = isinstance(json.loads(config.read_text(encoding="utf-8")), dict)
    except (ValueError, OSError):
        known = False
    if not known:
        raise ModelFolderError(f"{config}: is not JSON that can be read; copy the model folder again")
    for weights in sorted(folder.glob("*.safetensors")):
        _check_safetensors(weights)
    if not any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "*.bin")):
        raise ModelFolderError(f"{folder}: has no weights (*.safetensors); copy the model folder again")


def _check_safetensors(weights: Path) -> None:
    """Compare the file's length with what its header promises: a cut-off copy is the commonest damage."""
    size = weights.stat().st_size
    with weights.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        try:
            if not 2 <= header_bytes <= size - 8:
                raise ValueError("its header is cut off")
            header = json.loads(file.read(header_bytes))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            expected = 8 + header_bytes + max(ends, default=0)
            if size != expected:
                raise ValueError(f"{size} bytes where its header promises {expected}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = str(error) if type(error) is ValueError else "its header is damaged"
            raise ModelFolderError(f"{weights}: corrupt weights, {why}; copy the model folder again") from error
