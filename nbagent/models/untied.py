"""A checkpoint whose output layer is its embedding, made one in which both are written out.

vLLM 0.31 packs the output layer's weights for the CPU when it loads a model, and where they are tied to the embedding,
a reload changes the embedding and leaves the packed copy: the server would go on with half of the old model.
"""

from __future__ import annotations

import json
from pathlib import Path

from nbagent.errors import ModelFolderError

OVERRIDE = '{"tie_word_embeddings": false}'
"""Of the model's configuration, for a server of such checkpoints."""
_NAME, _FILE = "lm_head.weight", "lm_head.safetensors"


def is_tied(folder: Path) -> bool:
    """Whether the model's configuration ties its output layer to its embedding."""
    return bool(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings"))


def untie(folder: Path) -> None:
    """Write the embedding once more, as the output layer, into a file beside the others.

    Raises:
        ModelFolderError: no file has an embedding.
    """
    for weights in sorted(folder.glob("*.safetensors")):
        with weights.open("rb") as file:
            start = 8 + (length := int.from_bytes(file.read(8), "little"))
            header = json.loads(file.read(length))
            entry = next((entry for name, entry in header.items() if name.endswith("embed_tokens.weight")), None)
            if entry is None or weights.name == _FILE:
                continue
            begin, end = entry["data_offsets"]
            own = json.dumps({_NAME: {**entry, "data_offsets": [0, end - begin]}}).encode()
            with (folder / _FILE).open("wb") as made:
                made.write(len(own).to_bytes(8, "little") + own)
                file.seek(start + begin)
                made.write(file.read(end - begin))
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            listed = json.loads(index.read_text(encoding="utf-8"))
            listed["weight_map"][_NAME] = _FILE
            index.write_text(json.dumps(listed), encoding="utf-8")
        return
    raise ModelFolderError(f"{folder}: none of its *.safetensors has an embedding (…embed_tokens.weight)")
