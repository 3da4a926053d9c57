"""Whether this machine computes in bfloat16, or only imitates it."""

from __future__ import annotations

import torch

SLOW = "no bfloat16 on this machine: computes in float32"


def has_bfloat16() -> bool:
    """Whether matrices in bfloat16 are multiplied by fast code here: on the GPU, or without one on the processor.

    On a processor without AVX-512 (x86) or BF16 (Arm) PyTorch has a plain loop only, some 90 times as slow as float32.
    """
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
