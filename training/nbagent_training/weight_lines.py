"""The trainer's end of a weight transfer: NCCL to a server on GPUs of its own, Gloo to one without a GPU."""

from __future__ import annotations

import base64
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch

from nbagent.errors import ModelError
from nbagent.models.inside_vllm.gloo_group import meet
from nbagent.models.weight_transfer import in_thread
from nbagent_training.nccl import Communicator, unique_id

CLOSED = "the line to vLLM was closed"
POLL_S = 0.02
WAIT_S = 300.0
"""Longest that one member of a Gloo group waits for another, seconds."""


class Line(Protocol):
    """Tensors from rank 0, the trainer, to all others of a group."""

    backend: str
    device: str
    """Where tensors are sent from."""

    def address(self, n: int) -> dict[str, Any]:
        """Where n members meet, in the words of vLLM's engine."""
        ...

    def join(self) -> None:
        """Meet there."""
        ...

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Send one; all members are in the same call."""
        ...

    def flush(self) -> None:
        """Wait until all that was sent has left."""
        ...

    def close(self) -> None:
        """End the group; calls under way raise. Idempotent."""
        ...


class GlooLine:
    """To vLLM's workers on this machine without a GPU; they receive with inside_vllm/gloo_weights.py.

    Args:
        place: folder for the files that members meet by.
    """

    backend, device = "gloo", "cpu"

    def __init__(self, place: Path) -> None:
        self._place, self._numbers = place.absolute(), itertools.count()
        self._store, self._n = self._place, 0
        self._group: Any = None
        self._closed = threading.Event()

    def address(self, n: int) -> dict[str, Any]:
        """A file that was never met by."""
        self.close()
        self._place.mkdir(parents=True, exist_ok=True)
        self._store, self._n = self._place / f"meeting-{next(self._numbers)}", n
        self._store.unlink(missing_ok=True)  # of a run that was killed
        self._closed = threading.Event()
        return {"store": str(self._store), "world_size": n, "timeout_s": WAIT_S}

    def join(self) -> None:
        """Raises RuntimeError where the others do not come, ModelError where the line is closed meanwhile."""
        closed = self._closed
        # Gloo waits for those who will not come any more, and nothing ends that.
        met = in_thread(lambda: meet(str(self._store), 0, self._n, WAIT_S))
        while not met.done():
            if closed.wait(POLL_S):
                raise ModelError(CLOSED)
        self._group = met.result()

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Raises RuntimeError where another has left, ModelError where the line is closed meanwhile."""
        closed, group = self._closed, self._group
        if group is None:
            raise ModelError(CLOSED)
        work = group.broadcast(tensor, 0)
        while not work.is_completed():
            if closed.is_set():
                # Gloo may miss that it was aborted and wait until its deadline. So would who drops the group's last
                # reference, which is this thread's then.
                in_thread(lambda: _hold(group, work))
                raise ModelError(CLOSED)
            with contextlib.suppress(RuntimeError):
                work.wait(timedelta(seconds=POLL_S))
        work.wait()

    def flush(self) -> None:
        """Each was waited for."""

    def close(self) -> None:
        """The others see the connection end."""
        self._closed.set()
        if (group := self._group) is not None:
            group.abort()
        self._group = None
        if self._n:
            self._store.unlink(missing_ok=True)


def _hold(group: Any, work: Any) -> None:
    """Until it is over; not by waiting in C++, where an interpreter that ends would abort."""
    while not work.is_completed():
        time.sleep(1)
    del group


class NcclLine:
    """To vLLM's workers on other GPUs than the trainer's, of this machine or another: NCCL takes one rank a GPU.

    The group is met by an id of NCCL's that the server is told, which vLLM 0.31 has for trainers without vLLM.
    """

    backend, device = "nccl", "cuda"

    def __init__(self, communicator: Callable[[bytes, int, int], Communicator] = Communicator) -> None:
        """`communicator`: enters a group by its id, as a rank of n."""
        self._communicator = communicator
        self._id, self._n = b"", 0
        self._group: Communicator | None = None
        self._closed, self._lock = threading.Event(), threading.Lock()

    def address(self, n: int) -> dict[str, Any]:
        """A new id. Raises ModelError where NCCL is missing."""
        self.close()
        self._id, self._n = unique_id(), n
        self._closed = threading.Event()
        return {"nccl_unique_id_b64": base64.b64encode(self._id).decode(), "rank_offset": 1, "world_size": n}

    def join(self) -> None:
        """Raises ModelError with NCCL's words, or where the line is closed meanwhile.

        Then a thread is left that waits inside NCCL for those who do not come; should they, it gives the group up.
        """
        closed, identity, n = self._closed, self._id, self._n
        gpu = torch.cuda.current_device() if torch.cuda.is_available() else -1
        met = in_thread(lambda: self._meet(identity, n, gpu, closed))
        while not met.done():
            if closed.wait(POLL_S):
                raise ModelError(CLOSED)
        if closed.is_set():
            raise ModelError(CLOSED)
        met.result()

    def _meet(self, identity: bytes, n: int, gpu: int, closed: threading.Event) -> None:
        # Which GPU is the current one is each thread's own.
        with torch.cuda.device(gpu):
            group = self._communicator(identity, 0, n)
            with self._lock:
                late = closed.is_set()
                if not late:
                    self._group = group
            if late:
                group.abort()
                return
            # vLLM's end warms up by the sum of one number, which all have to join.
            group.all_reduce(torch.zeros(1, device=self.device))
            group.wait()

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Put on the current stream. Raises ModelError with NCCL's words."""
        if (group := self._group) is None:
            raise ModelError(CLOSED)
        group.broadcast(tensor.contiguous(), 0)

    def flush(self) -> None:
        """Raises ModelError where a member has left."""
        if self._group is not None:
            self._group.wait()

    def close(self) -> None:
        """What is under way on the GPU is given up."""
        self._closed.set()
        with self._lock:
            group, self._group = self._group, None
        if group is not None:
            group.abort()


class Weights:
    """The WeightSender of the model that is trained.

    Attributes:
        model: whose weights are taken.
        duplicates: send a tensor under each of its names, for a server whose output layer is not tied.
    """

    def __init__(self, line: Line, dtype: torch.dtype) -> None:
        self.model: Any = None
        self.duplicates = False
        self.backend = line.backend
        self._line, self._dtype = line, dtype
        self._kept: dict[str, torch.Tensor] = {}

    def take(self) -> None:
        """Copy them, in the server's dtype, to this machine's memory: a server that starts again is given these."""
        for name, p in self._named():
            if name not in self._kept or self._kept[name].shape != p.shape:
                # Memory that a GPU can reach by itself, several times as fast.
                self._kept[name] = torch.empty(p.shape, dtype=self._dtype, pin_memory=p.is_cuda)
            self._kept[name].copy_(p.detach())

    def address(self, n: int) -> dict[str, Any]:
        """Where n members meet."""
        return self._line.address(n)

    def join(self) -> None:
        """Meet the server's workers."""
        self._line.join()

    def contents(self) -> dict[str, Any]:
        """Names, dtypes and shapes as vLLM's engines want them."""
        return {
            "names": list(self._kept),
            "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in self._kept.values()],
            "shapes": [list(tensor.shape) for tensor in self._kept.values()],
        }

    def send(self, again: bool) -> None:
        """One tensor after the other, from the model itself where it is still what was taken."""
        source = self._kept.items() if again else self._named()
        for _, tensor in source:
            self._line.broadcast(tensor.detach().to(self._line.device, self._dtype))
        self._line.flush()

    def close(self) -> None:
        """Leave the group."""
        self._line.close()

    def _named(self) -> Iterator[tuple[str, torch.Tensor]]:
        named: Iterator[tuple[str, torch.Tensor]] = self.model.named_parameters(remove_duplicate=not self.duplicates)
        return named
