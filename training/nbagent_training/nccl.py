"""NCCL as far as weights are sent by it: a group, a sum and a broadcast, through the library that PyTorch brings.

PyTorch's own process groups meet by a store of PyTorch's, and a vLLM server by an id of NCCL's; hence the library
itself. Functions and numbers are those of nccl.h (NVIDIA's NCCL documentation, "NCCL API").
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch

from nbagent.errors import ModelError

ID_BYTES = 128
SUM = 0
TYPES = {torch.float16: 6, torch.float32: 7, torch.bfloat16: 9}
LIBRARY = "libnccl.so.2"


class Id(ctypes.Structure):
    """What a group is met by."""

    _fields_ = [("internal", ctypes.c_byte * ID_BYTES)]


@functools.cache
def library() -> Any:
    """Raises ModelError: PyTorch's build has no NCCL, as those without CUDA."""
    try:
        found = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise ModelError(
            f"{LIBRARY} cannot be loaded ({error}); weights are sent by a PyTorch built for CUDA"
        ) from error
    stream = communicator = buffer = ctypes.c_void_p
    number, count = ctypes.c_int, ctypes.c_size_t
    signatures = {
        "ncclGetUniqueId": [ctypes.POINTER(Id)],
        "ncclCommInitRank": [ctypes.POINTER(communicator), number, Id, number],
        "ncclAllReduce": [buffer, buffer, count, number, number, communicator, stream],
        "ncclBroadcast": [buffer, buffer, count, number, number, communicator, stream],
        "ncclCommGetAsyncError": [communicator, ctypes.POINTER(number)],
        "ncclCommAbort": [communicator],
    }
    for name, arguments in signatures.items():
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, number
    found.ncclGetErrorString.argtypes, found.ncclGetErrorString.restype = [number], ctypes.c_char_p
    return found


def unique_id() -> bytes:
    """A new id for a group. Raises ModelError."""
    made = Id()
    _check("ncclGetUniqueId", library().ncclGetUniqueId(ctypes.byref(made)))
    return bytes(made)


class Communicator:
    """One rank of a group, on the current GPU. Raises ModelError with NCCL's words."""

    def __init__(self, identity: bytes, rank: int, n: int) -> None:
        """Blocks until all n ranks have come."""
        self._handle = ctypes.c_void_p()
        of = Id.from_buffer_copy(identity)
        _check("ncclCommInitRank", library().ncclCommInitRank(ctypes.byref(self._handle), n, of, rank))

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Sum over the ranks, in place, on the current stream."""
        at, stream = tensor.data_ptr(), torch.cuda.current_stream().cuda_stream
        kind = TYPES[tensor.dtype]
        done = library().ncclAllReduce(at, at, tensor.numel(), kind, SUM, self._handle, stream)
        _check("ncclAllReduce", done)

    def broadcast(self, tensor: torch.Tensor, root: int) -> None:
        """From `root` to all, on the current stream; contiguous."""
        at, stream = tensor.data_ptr(), torch.cuda.current_stream()
        # The allocator may give its memory away once nobody here holds it, and the GPU is not there yet.
        tensor.record_stream(stream)
        done = library().ncclBroadcast(
            at, at, tensor.numel(), TYPES[tensor.dtype], root, self._handle, stream.cuda_stream
        )
        _check("ncclBroadcast", done)

    def wait(self) -> None:
        """Until what was begun has left."""
        torch.cuda.current_stream().synchronize()
        found = ctypes.c_int()
        _check("ncclCommGetAsyncError", library().ncclCommGetAsyncError(self._handle, ctypes.byref(found)))
        _check("an operation", found.value)

    def abort(self) -> None:
        """Give up what is under way, and end it. Idempotent."""
        handle, self._handle = self._handle, ctypes.c_void_p()
        if handle:
            library().ncclCommAbort(handle)


def _check(what: str, result: int) -> None:
    if result:
        words = library().ncclGetErrorString(result).decode()
        raise ModelError(f"NCCL: {what}: {words}; NCCL_DEBUG=WARN in the environment says more")
