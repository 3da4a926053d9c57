"""Whether a vLLM server at a URL has the very model that a run's adapters belong to, as far as it can be asked.

It names what it was started with, and its tokenizer can be tried. What is not covered: a server that names its model by
the hub, or by a folder that is not here (in a container, say), may have other weights of the same family, or a
quantised copy; `logp_gap` shows that in the first update. Nor is it asked again after its owner has started it again.
"""

from __future__ import annotations

import filecmp
from pathlib import Path
from typing import Any

import httpx
from transformers import AutoConfig

from nbagent.errors import UsageError
from nbagent.models.endpoint import UnreachableError
from nbagent_training.distill import PROBE


def check_base(url: str, base: Path, tokenizer: Any) -> None:
    """Compare what is served with a run's own model.

    Args:
        url: the server's, with or without `/v1`.
        base: folder of the model that the adapters belong to.
        tokenizer: its tokenizer.

    Raises:
        UsageError: it serves another model: its folder is here and has other weights, it takes longer sequences than
            the model has positions for, or its tokenizer gives other ids.
        ModelError: it does not answer.
    """
    address = url.rstrip("/").removesuffix("/v1")
    try:
        with httpx.Client(base_url=address, timeout=60.0) as client:
            served = next(model for model in client.get("/v1/models").json()["data"] if not model.get("parent"))
            asked = {"model": served["id"], "prompt": PROBE, "add_special_tokens": False}
            answer = client.post("/tokenize", json=asked)
            ids = answer.json()["tokens"] if answer.is_success else None
    except (httpx.HTTPError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise UnreachableError(f"{address}: no vLLM server answers there ({type(error).__name__})") from error
    root = str(served.get("root") or "")
    said = f"{address}: serves {root or served['id']}, and the run's adapters belong to {base.absolute()}"
    start = f"start it with {base.absolute()}"
    # A relative one is the server's, whose working folder is not known.
    if Path(root).is_absolute() and Path(root).is_dir():
        if not _same_weights(Path(root), base):
            raise UsageError(f"{said}, whose weights are others; {start}")
        return
    config = AutoConfig.from_pretrained(base, local_files_only=True)
    positions, room = getattr(config, "max_position_embeddings", None), served.get("max_model_len")
    # vLLM takes more only where positions are scaled, or where it is made to.
    scaled = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") != "default"
    if positions and room and room > positions and not scaled:
        raise UsageError(f"{said}, which has {positions} positions and not {room}; {start}")
    if ids is not None and list(ids) != list(tokenizer(PROBE, add_special_tokens=False)["input_ids"]):
        raise UsageError(f"{said}, whose tokenizer gives other ids; {start}")


def _same_weights(one: Path, other: Path) -> bool:
    if one.samefile(other):
        return True
    names, others = ({path.name for path in folder.glob("*.safetensors")} for folder in (one, other))
    return (
        bool(names) and names == others and all(filecmp.cmp(one / name, other / name, shallow=False) for name in names)
    )
