"""A small language model made from nothing: a byte-level BPE tokenizer and a Qwen3 of a few million parameters.

The tokenizer splits numbers and single spaces off, so that a number or a name has the same tokens wherever it stands:
a model this small learns to copy only then. Two digits make a token: with one each it often copied digits in the
wrong order (training/LOG.md). Runs of code such as `pd.read_csv(` may become one token.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

PAD, END, ASK, ASSISTANT, SYSTEM = "<|pad|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>"
SPLIT = (
    r"```[a-z]*|</?[a-z]+>|(?:from [a-z]+ )?import [a-z]+(?: as [a-z]+)?\n"
    r"|\.?[A-Za-z_]+(?:[._][A-Za-z]+)*[(\[]*|\d{1,2}|\s|[^\sA-Za-z\d<]+|<"
)
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class Size(BaseModel):
    """Shape of the model; the defaults make about 3 million parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    vocabulary: int = 1200
    """Entries of the tokenizer."""
    hidden: int = 256
    """Width."""
    layers: int = 4
    """Depth; wide and shallow learns to copy sooner than narrow and deep (training/LOG.md)."""
    heads: int = 8
    """Query heads."""
    kv_heads: int = 2
    """Key and value heads."""
    intermediate: int = 640
    """Width of the feed-forward layers."""
    positions: int = 1024
    """Longest context, tokens."""


def make_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `texts`, with a chat template of one token per role."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END, ASK, ASSISTANT, SYSTEM],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def config_of(size: Size, n_ids: int, *, pad_id: int | None = None, end_id: int | None = None) -> Qwen3Config:
    """The architecture of a model of that shape whose tokenizer has `n_ids` ids."""
    return Qwen3Config(
        vocab_size=n_ids,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.hidden // size.heads,
        max_position_embeddings=size.positions,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        pad_token_id=pad_id,
        eos_token_id=end_id,
        bos_token_id=None,
        attn_implementation="sdpa",
    )


def make_model(tokenizer: Any, size: Size, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights in fp32."""
    torch.manual_seed(seed)
    ids = {"pad_id": tokenizer.pad_token_id, "end_id": tokenizer.eos_token_id}
    return Qwen3ForCausalLM(config_of(size, len(tokenizer), **ids))
