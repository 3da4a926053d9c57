"""All attacks, one after the other, from one sandbox, with a second one beside it that must not notice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from nbagent.sandbox.attacks import ATTACKS, LIMITS, Attack, Facts, Surrounding
from nbagent.sandbox.watch import Ground, printed, watch
from nbagent_images import Image, profile
from nbagent_images.engine import engine
from nbagent_kernels import Session, SessionSpec, open_session
from nbagent_kernels.errors import KernelError
from nbagent_kernels.types import ContainerSettings

BACKEND = "docker"
ANSWER_S = 30.0
"""For either sandbox to answer after an attack."""
CANARY = "nbagent-canary-"
HELD = "held: "
RUNSC = "runsc"
"""Name of gVisor's program."""
BESIDE = (
    "import os, subprocess, sys\n"
    "kept = {secret!r}\n"
    "open('kept.txt', 'w').write(kept)\n"
    "beside = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)', {mark!r}])"
)
KEPT = "print(kept, open('kept.txt').read(), beside.poll())"


@dataclass(frozen=True, slots=True)
class Observed:
    """What came of one attack."""

    attack: Attack
    """Which."""
    held: bool
    """False where it got through, or could not be tried."""
    text: str
    """What was seen."""
    seconds: float
    """How long it took."""
    known: str = ""
    """Why, where it got through in a way that it is known to get through in."""

    @property
    def open(self) -> bool:
        """Whether it shows a hole that is not known."""
        return not (self.held or self.known)


def spec_of(image: Image, run: str) -> SessionSpec:
    """Of a sandbox as any run has it, with little memory and disk, so that they are soon full."""
    settings = ContainerSettings(image.id, profile(), work_bytes=256 << 20, tmp_bytes=128 << 20, run=run)
    return SessionSpec(container=settings)


async def battery(
    spec: SessionSpec,
    attacks: Sequence[Attack] = ATTACKS,
    told: Callable[[Observed], None] = lambda _: None,
) -> list[Observed]:
    """Run the attacks in fresh containers, for nothing else may hold them; `told` hears of each as it is over.

    Args:
        spec: of the sandboxes; limits and capsule are the battery's own.

    Raises:
        KernelStartError: no sandbox came up, or the spec names no container.
        ImageError: the engine does not answer.
    """
    with host() as (folder, facts):
        capsule = folder / "capsule"
        capsule.mkdir()
        (capsule / "counts.csv").write_text("gene,count\nTP53,7\n")
        spec = replace(spec, capsule=capsule, limits=LIMITS, preload=())
        async with sandboxes(spec, facts) as (session, beside):
            ground = Ground(session, capsule, facts, lambda: open_session(spec, BACKEND))
            around = await asyncio.to_thread(surroundings, spec)
            observed = []
            for attack in attacks:
                observed.append(await attacked(attack, ground, beside, around))
                told(observed[-1])
            return observed


def surroundings(spec: SessionSpec) -> frozenset[Surrounding]:
    """What the engine has, for containers of this spec, that some attacks are known to get through in.

    Raises:
        ImageError: it does not answer.
    """
    assert spec.container is not None
    with engine() as client:
        told = client.info()
    runtime = spec.container.runtime or told.get("DefaultRuntime", "")
    path = told.get("Runtimes", {}).get(runtime, {}).get("path", "")
    found: list[Surrounding] = []
    if str(told.get("CgroupVersion", "")) == "1":
        found.append("control groups of version 1")
    if RUNSC in (runtime, Path(path).name):
        found.append("gVisor")
    return frozenset(found)


def known(attack: Attack, text: str, around: Set[Surrounding]) -> str:
    """Why an attack got through, where that is known of it in these surroundings; '' where it is not."""
    return next((one.why for one in attack.known if one.where in around and re.fullmatch(one.says, text)), "")


async def attacked(attack: Attack, ground: Ground, beside: Session, around: Set[Surrounding]) -> Observed:
    """Run one attack, then have both sandboxes answer."""
    begun = time.monotonic()
    try:
        text = await watch(attack, ground)
        if text.startswith(HELD) or known(attack, text, around):
            text = await answers(ground.session) or await untouched(beside, ground.facts) or text
    except (KernelError, OSError, TimeoutError) as error:
        text = f"{type(error).__name__}: {error}"
    held = text.startswith(HELD)
    return Observed(attack, held, text.removeprefix(HELD), time.monotonic() - begun, known(attack, text, around))


async def answers(session: Session) -> str:
    """What is wrong with a session that was attacked from; '' where it answers."""
    for _ in range(2):  # what was forged or broken may end the first
        result = await session.execute("6 * 7", timeout=ANSWER_S)
        if result.status == "ok":
            break
    shown = [output["data"].get("text/plain") for output in result.outputs if output["output_type"] == "execute_result"]
    if result.status != "ok" or shown != ["42"]:
        return f"through: the session then answers {result.status} {result.cause} {str(result.outputs)[:200]}"
    return ""


async def untouched(beside: Session, facts: Facts) -> str:
    """What happened to the sandbox that did nothing; '' where its variables, files and processes are as they were."""
    result = await beside.execute(KEPT, timeout=ANSWER_S)
    if printed(result) == f"{beside_secret(facts)} {beside_secret(facts)} None":
        return ""
    return f"through: the other sandbox then answers {result.status} {result.cause} {printed(result)}"


def beside_secret(facts: Facts) -> str:
    """What the other sandbox keeps in a variable and in a file."""
    return CANARY + facts.mark.removeprefix("nbagent-beside-")


@contextlib.contextmanager
def host() -> Iterator[tuple[Path, Facts]]:
    """A folder of the host's with a secret in it, which is also in this process's environment."""
    with tempfile.TemporaryDirectory(prefix="nbagent-attacked-") as name:
        folder = Path(name)
        # Only the sandbox keeps it from being read.
        folder.chmod(0o755)
        secret = folder / "secret"
        secret.write_text(CANARY + secrets.token_hex(16))
        own, other = (secrets.token_hex(16) for _ in range(2))
        variable = f"NBAGENT_ATTACKED_{own}"
        os.environ[variable] = secret.read_text()
        try:
            yield folder, Facts(name, str(secret), CANARY + own, f"nbagent-beside-{other}")
        finally:
            del os.environ[variable]


@contextlib.asynccontextmanager
async def sandboxes(spec: SessionSpec, facts: Facts) -> AsyncIterator[tuple[Session, Session]]:
    """The one to attack from and the one beside it, closed at the end."""
    async with contextlib.AsyncExitStack() as stack:
        opened = []
        for _ in range(2):
            opened.append(await open_session(spec, BACKEND))
            stack.push_async_callback(opened[-1].close)
        session, beside = opened
        await session.execute(f"_ = open('own.txt', 'w').write({facts.ours!r})", timeout=ANSWER_S)
        await beside.execute(BESIDE.format(secret=beside_secret(facts), mark=facts.mark), timeout=ANSWER_S)
        yield session, beside
