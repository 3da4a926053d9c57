"""A vLLM server of this program's own: started, watched, started again where it dies, ended with its owner.

It listens on a Unix socket in this process's private folder and on no port: two runs cannot meet there, and the
endpoints that swap weights, which know no password, answer nobody else's programs.

What is not covered: vLLM's own processes talk with each other over sockets of vLLM's making; and a server that is given
by its URL is whatever its owner made it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from nbagent.errors import ModelError, UsageError
from nbagent.models.untied import OVERRIDE, is_tied, untie
from nbagent_kernels.environment import TAG
from nbagent_kernels.guard import Guard
from nbagent_kernels.workspace import process_root

SERVED = "nbagent"
"""The model's name at our own servers."""
START_S = 900.0
"""Seconds a start may take: large weights and compiled kernels take minutes."""
DEATHS, WITHIN_S = 3, 600.0
"""A server that dies more often than this within so many seconds is given up."""
END_S = 10.0
"""Seconds between asking a server to end and killing it."""
POLL_S = 0.1
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks of adapters for which vLLM 0.31 sets room aside."""
_DEFAULTS = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1"}
_FIXED = {"HF_HUB_OFFLINE": "1", "VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
_ASK_VERSIONS = (
    "import importlib.metadata as m, json\n"
    "names = ('vllm', 'vllm-cpu')\n"
    "print(json.dumps({d.metadata['Name']: d.version for d in m.distributions() if d.metadata['Name'] in names}))"
)
INSIDE = Path(__file__).with_name("inside_vllm")
"""What the server's own interpreter imports of this program."""
_numbers = itertools.count(1)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Interpreter:
    """The Python of an environment that has vLLM."""

    python: Path
    version: str
    """Of vLLM."""
    cpu: bool
    """The build for machines without a GPU."""


def find_interpreter(named: str = "") -> Interpreter:
    """The interpreter to start servers with.

    Args:
        named: its path; empty: NBAGENT_VLLM_PYTHON, then this interpreter where it has vLLM, then
            `.venv-vllm/bin/python` in the working directory.

    Raises:
        UsageError: there is none, or it has no vLLM.
    """
    named = named or os.environ.get("NBAGENT_VLLM_PYTHON", "")
    if not named and importlib.util.find_spec("vllm") is not None:
        named = sys.executable
    python = Path(named or ".venv-vllm/bin/python").expanduser().absolute()
    if not python.is_file():
        raise UsageError(
            f"{python}: no Python with vLLM; `make vllm` builds .venv-vllm for machines without a GPU; "
            "else name one: sampler.python in a recipe, or the variable NBAGENT_VLLM_PYTHON"
        )
    try:
        asked = subprocess.run(
            [str(python), "-c", _ASK_VERSIONS], capture_output=True, text=True, check=True, timeout=60, cwd="/"
        )
        versions = json.loads(asked.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise UsageError(f"{python}: cannot be run as a Python ({type(error).__name__})") from None
    if not versions:
        raise UsageError(f"{python}: this Python has no vLLM; name one that has it, or build one with `make vllm`")
    name, version = next(iter(versions.items()))
    return Interpreter(python, version, name == "vllm-cpu")


class VLLMServer:
    """One supervised server.

    Attributes:
        model: folder whose weights a start serves.
        lora_rank: largest rank of adapters; 0 where none are served.
        adapters: folders of the LoRA adapters that a start loads, by name.
        prepare: called with a client each time it answers after a start, before anybody else may ask; what it raises
            counts as a death.
        untied: its output layer has weights of its own, though the model's configuration ties it to the embedding.
        starts: how often a start has succeeded.
        failure: why it is not started again; empty while it may be.
        uds: its socket.
        log: what it writes.
    """

    def __init__(
        self,
        interpreter: Interpreter,
        model: Path,
        *,
        tokenizer: Path | None = None,
        log: Path | None = None,
        dtype: str = "auto",
        lora_rank: int = 0,
        swaps: bool = False,
        transfer: str = "",
        devices: str = "",
        arguments: Sequence[str] = (),
    ) -> None:
        """Nothing is started before `start`.

        Args:
            interpreter: the Python of an environment that has vLLM.
            model: folder with config and weights.
            tokenizer: folder of the tokenizer; None: the model's.
            log: file for what the server writes; None: one in this process's private folder.
            dtype: of the served weights, by vLLM's name for it.
            lora_rank: largest rank of adapters; 0 serves none.
            swaps: new weights will come; the folders, `model` too, are then this program's own and may be added to.
            transfer: what its workers receive weights with that come past any file, by vLLM's name, or `gloo` for this
                program's own; empty: they come by files.
            devices: CUDA_VISIBLE_DEVICES of the server; empty: this process's.
            arguments: more of vLLM's own arguments.
        """
        self.lora_rank = lora_rank
        self.untied = swaps and interpreter.cpu and is_tied(model)
        self.hold(model)
        self.prepare: Callable[[httpx.Client], None] | None = None
        self.adapters: Mapping[str, Path] = {}
        self.starts = 0
        self.failure = ""
        self._interpreter, self._tokenizer = interpreter, tokenizer or model
        self._tag = f"vllm-{os.getpid()}-{next(_numbers)}"
        self.uds = process_root() / f"{self._tag}.sock"
        self.log = log or process_root() / f"{self._tag}.log"
        self._dtype, self._devices, self._arguments = dtype, devices, tuple(arguments)
        self._transfer = transfer
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._ready, self._closing, self._lock = threading.Event(), threading.Event(), threading.Lock()

    def hold(self, folder: Path) -> None:
        """A start serves the weights of this folder from now on."""
        if self.untied:
            untie(folder)
        self.model = folder

    def start(self) -> None:
        """Begin to start it; `wait` says when it answers."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="nbagent-vllm", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Until it answers.

        Raises:
            ModelError: it was given up or closed.
        """
        while not self._ready.wait(POLL_S):
            if self.failure:
                raise ModelError(self.failure)

    async def answers(self) -> None:
        """As `wait`, without holding up the event loop. Raises ModelError."""
        while not self._ready.is_set():
            if self.failure:
                raise ModelError(self.failure)
            await asyncio.sleep(POLL_S)

    def start_again(self, start: int) -> None:
        """End start number `start`, if it still runs, and wait until another answers.

        Raises:
            ModelError: it was given up or closed.
        """
        with self._lock:
            if self.starts == start and self._process is not None:
                _signal_group(self._process.pid, signal.SIGKILL)
        while self.starts == start and not self.failure:
            time.sleep(POLL_S)
        self.wait()

    def close(self) -> None:
        """End it with all its processes."""
        self._closing.set()
        with self._lock:
            process = self._process
        if process is not None:
            _signal_group(process.pid, signal.SIGTERM)
        if self._thread is not None:
            self._thread.join()
        self.failure = self.failure or "the vLLM server was closed"

    def _run(self) -> None:
        try:
            self._supervise()
        except Exception as error:
            self.failure = f"vLLM cannot be looked after: {type(error).__name__}: {error}"
            _log.exception("the thread that looks after vLLM ended")

    def _supervise(self) -> None:
        deaths: list[float] = []
        while (process := self._launch()) is not None:
            why = self._until_ready(process) or self._prepared()
            if not why:
                self.starts += 1
                self._ready.set()
                why = f"ended with exit code {process.wait()}"
                self._ready.clear()
            self._end(process)
            if self._closing.is_set():
                return
            deaths = [*(died for died in deaths if died > time.monotonic() - WITHIN_S), time.monotonic()]
            if not self.starts or len(deaths) > DEATHS:
                often = f", {len(deaths)} times within {WITHIN_S:.0f} s" if self.starts else " before it answered"
                self.failure = f"vLLM {why}{often}; its log {self.log} ends: {self._last_words()}"
                return
            _log.warning("vLLM %s; it is started again (%d of %d)", why, len(deaths), DEATHS)

    def _launch(self) -> subprocess.Popen[bytes] | None:
        with self._lock, self.log.open("ab") as sink:
            if self._closing.is_set():
                return None
            self.uds.unlink(missing_ok=True)
            environment = {**_DEFAULTS, **os.environ, **_FIXED, TAG: self._tag}
            if self._devices:
                environment["CUDA_VISIBLE_DEVICES"] = self._devices
            if self._transfer == "gloo":
                environment["PYTHONPATH"] = os.pathsep.join(
                    [str(INSIDE), *filter(None, [os.environ.get("PYTHONPATH")])]
                )
            guard = Guard.of_this_process()
            # Its own process group: Ctrl-C at the terminal is this program's to handle.
            process = subprocess.Popen(
                self._command(), stdout=sink, stderr=sink, stdin=subprocess.DEVNULL, env=environment, process_group=0
            )
            guard.watch(process.pid, self._tag)
            self._process = process
            return process

    def _command(self) -> list[str]:
        command = [str(self._interpreter.python), "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", str(self.model), "--tokenizer", str(self._tokenizer), "--served-model-name", SERVED]
        command += ["--uds", str(self.uds), "--uvicorn-log-level", "warning", "--dtype", self._dtype]
        # Behaviour log-probs are those of the distribution sampled from; a folder's own top-p would bend it.
        command += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm", "--enable-prefix-caching"]
        if self._interpreter.cpu:
            command += ["--enforce-eager", "--block-size", "32"]
            # vLLM 0.31 on the CPU dies where a prompt is read in chunks and its call has a seed: CPU generators have no
            # offset to be set back.
            command += ["--no-enable-chunked-prefill"]
        if self.untied:
            command += ["--hf-overrides", OVERRIDE]
        if self._transfer:
            command += ["--weight-transfer-config", json.dumps({"backend": self._transfer})]
        if self._transfer == "gloo":
            command += ["--worker-extension-cls", "gloo_weights.Worker"]
        if self.lora_rank:
            rank = next((rank for rank in RANKS if rank >= self.lora_rank), self.lora_rank)
            # Two: calls under way keep the adapter that they began with.
            command += ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", "2", "--max-cpu-loras", "2"]
            if self.adapters:
                command += ["--lora-modules", *(f"{name}={folder}" for name, folder in self.adapters.items())]
        return [*command, *self._arguments]

    def client(self, timeout_s: float = 600.0) -> httpx.Client:
        """A client of this server for one thread. Raises httpx.ConnectError where nobody listens."""
        # httpcore leaves a Unix socket open that it could not connect.
        with socket.socket(socket.AF_UNIX) as tried:
            try:
                tried.connect(str(self.uds))
            except OSError as error:
                raise httpx.ConnectError(f"{self.uds}: {error}") from error
        # A proxy of the environment is for other machines, never for a socket on this one.
        transport = httpx.HTTPTransport(uds=str(self.uds))
        return httpx.Client(transport=transport, base_url="http://vllm", timeout=timeout_s, trust_env=False)

    def _until_ready(self, process: subprocess.Popen[bytes]) -> str:
        """Empty once it answers; else what went wrong."""
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if process.poll() is not None:
                return f"ended with exit code {process.returncode}"
            try:
                with self.client() as client:
                    if client.get("/health").is_success:
                        check_log_probs(client, SERVED)
                        return ""
            except httpx.TransportError:
                pass
            except ModelError as error:
                return str(error)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)
        return f"did not answer within {START_S:.0f} s"

    def _prepared(self) -> str:
        """Empty once it may be asked; else what went wrong."""
        try:
            if self.prepare is not None:
                with self.client() as client:
                    self.prepare(client)
        except (ModelError, httpx.TransportError) as error:
            return f"answered, but {error}"
        return ""

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Its group too: vLLM's engine is a process of its own."""
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()
        # Killed processes give their memory back before they are gone.
        end = time.monotonic() + END_S
        while _signal_group(process.pid, signal.SIGKILL) and time.monotonic() < end:
            time.sleep(POLL_S)
        Guard.of_this_process().unwatch(process.pid)

    def _last_words(self) -> str:
        """The last line of the log that names an error, else its last."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "Error" in line]
        return (errors or lines or ["it is empty"])[-1][-300:]


def check_log_probs(client: httpx.Client, model: str) -> None:
    """Ask for a token at two temperatures; log-probs that do not move with the temperature are not of what is sampled.

    A server's first request also compiles its kernels, so one that answered this is warm.

    Raises:
        ModelError: they do not move, or it cannot be asked.
    """
    gaps = []
    for temperature in (1.0, 0.5):
        body: dict[str, Any] = {"model": model, "prompt": [1, 2, 3], "max_tokens": 1, "temperature": temperature}
        answer = client.post("/v1/completions", json={**body, "logprobs": 2, "return_token_ids": True})
        if answer.status_code != 200:
            raise ModelError(f"vLLM refused a first request: HTTP {answer.status_code}: {answer.text[:200]}")
        best = sorted(answer.json()["choices"][0]["logprobs"]["top_logprobs"][0].values(), reverse=True)
        gaps.append(best[0] - best[1])
    # The gap between the two likeliest doubles at half the temperature. A tie would say nothing.
    if gaps[0] > 1e-6 and gaps[1] < 1.5 * gaps[0]:
        raise ModelError("this vLLM returns raw log-probs; start it with --logprobs-mode processed_logprobs")


def _signal_group(pid: int, number: signal.Signals) -> bool:
    """Whether anybody was there."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return False
    return True
