"""Open a model by its name: a local folder, `vllm:FOLDER`, or `openai:URL#MODEL`. Heavy imports come late."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from nbagent.errors import ModelFolderError, UsageError
from nbagent.models.base import Model

REMOTE, SERVED = "openai:", "vllm:"


def is_remote(spec: str) -> bool:
    """True where the model is a chat endpoint, which has its own tokenizer and price."""
    return spec.startswith(REMOTE)


def model_folder(spec: str) -> Path | None:
    """The local folder that `spec` names, if any."""
    if is_remote(spec):
        return None
    place = spec.removeprefix(SERVED)
    if "://" in place:
        place = place.partition("#")[2]
    return Path(place) if place else None


def open_model(spec: str, **settings: Any) -> Model:
    """The model that `spec` names.

    Args:
        spec: the folder of a Hugging Face causal LM; `vllm:FOLDER` for the same at a vLLM server that is started for
            it, or `vllm:URL#FOLDER` at a running one, with its folder; or `openai:URL` or `openai:URL#MODEL` for an
            endpoint that speaks the chat-completions protocol (without `#MODEL` it must serve exactly one).
        settings: those of `OpenAIModel` (where `tokenizer` may be a folder) or of `HFModel`.

    Raises:
        ModelFolderError: the folder is missing, is no model, or is corrupt.
        UsageError: the URL cannot be used, or there is no vLLM.
        ModelError: vLLM could not be started.
    """
    if is_remote(spec):
        from nbagent.models.openai import OpenAIModel

        url, _, name = spec.removeprefix(REMOTE).partition("#")
        if isinstance(settings.get("tokenizer"), str):
            settings["tokenizer"] = open_tokenizer(Path(settings["tokenizer"]))
        return OpenAIModel(url, name, **settings)
    folder = model_folder(spec)
    if spec.startswith(SERVED):
        if folder is None:
            raise UsageError(
                f"{spec}: name the served model's folder too, for its tokenizer: {spec.rstrip('#')}#FOLDER"
            )
        return _open_served(spec, folder)
    if folder is None or "://" in spec:
        raise UsageError(f"{spec}: a model over HTTP is written openai:{spec}#MODEL")
    check_folder(folder)
    from nbagent.models.hf import HFModel

    return HFModel.load(folder, **settings)


def _open_served(spec: str, folder: Path) -> Model:
    from nbagent.models.vllm import VLLMModel
    from nbagent.models.vllm_server import VLLMServer, find_interpreter
    from nbagent.progress import progress_bar

    tokenizer = open_tokenizer(folder)
    url = spec.removeprefix(SERVED).partition("#")[0]
    if "://" in url:
        return VLLMModel(tokenizer, spec, url=url, folder=folder)
    check_folder(folder)
    interpreter = find_interpreter()
    # As for a model in this process.
    dtype = "float32" if interpreter.cpu else "bfloat16"
    server = VLLMServer(interpreter, folder.absolute(), dtype=dtype)
    try:
        with progress_bar("starting vLLM", None):
            return VLLMModel(tokenizer, spec, server=server)
    except BaseException:
        server.close()
        raise


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
    folder = model_folder(spec)
    if folder is None:
        return False
    recipe = folder.resolve().parent.parent / "recipe.toml"
    if folder.resolve().parent.name != "checkpoints" or not recipe.is_file():
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
