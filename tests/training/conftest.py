"""A random Qwen3 small enough for gradient comparisons, with its tokenizer."""

import pytest


@pytest.fixture(scope="session")
def tokenizer():
    from nbagent_training.scratch import make_tokenizer

    return make_tokenizer(["import pandas as pd\nprint(df.shape)\n<answer>42</answer>"] * 20, 320)


@pytest.fixture
def tiny(tokenizer):
    import torch

    from nbagent_training.scratch import Size, make_model

    model = make_model(tokenizer, Size(vocabulary=320, hidden=32, layers=2, heads=4, intermediate=64), 3)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3.0)
    return model


@pytest.fixture
def base(tiny, tokenizer, tmp_path):
    """A folder with a small model and its tokenizer."""
    tiny.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"
