"""How an agent acts: what training fixes, scoring takes over, and a model folder carries along."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from nbagent.env import EnvLimits
from nbagent.models.base import SamplingParams
from nbagent.models.opening import model_folder
from nbagent.recipe import Recipe, load_recipe, write_recipe
from nbagent.rollout import RolloutSettings

FILE = "agent.toml"
"""Beside a model's weights: how the agent acted when they were trained."""


class Agent(Recipe):
    """How the model acts in its notebook."""

    action_format: Literal["hermes", "fenced", "native"] = "hermes"
    """`hermes`: JSON tool calls as Qwen models write them; `fenced`: short, for models made from scratch; `native`: the
    endpoint's own tool calls."""
    policy: str = "drop"
    """Context policy by name."""
    policy_options: dict[str, Any] = Field(default_factory=dict)
    """Options of the context policy."""
    max_steps: int = Field(default=20, ge=1)
    """Model calls an attempt may take; the published agents take 20."""
    warn_steps: int = Field(default=3, ge=0)
    """The agent is told to submit when so many steps are left; demonstrations show the same notice."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """Tokens one answer of the model may take."""
    cell_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds a cell may run."""
    backend: str = Field(default="fork", pattern=r"^(fork|local|docker(:[^\s,]+)?)(,(memory|cpus|work)=[\d.]+)*$")
    """Where the kernel sessions run: fork, local, docker or docker:IMAGE; `docker` for a foreign model. What a session
    may use can follow: docker,memory=8,cpus=2,work=4 gives it 8 GiB of memory (4 otherwise, with fork and local too),
    2 processors (1 otherwise) and 4 GiB of files (1 otherwise), which count as memory."""
    artefact_bytes: int = Field(default=0, ge=0)
    """Bytes of the files an attempt wrote that are kept in the run folder, below artefacts/; 0: none are kept."""
    images: bool = False
    """Show images of the newest cell to an endpoint that sees them, scaled and capped; otherwise images are named.
    Scoring only: training on images is not supported."""

    def limits(self) -> EnvLimits:
        """Limits of one attempt."""
        return EnvLimits(max_steps=self.max_steps, cell_timeout_s=self.cell_timeout_s, warn_steps=self.warn_steps)

    def rollouts(self, temperature: float, run_seed: int) -> RolloutSettings:
        """Settings of rollouts of this agent."""
        return RolloutSettings(
            action_format=self.action_format,
            policy=self.policy,
            policy_options=dict(self.policy_options),
            limits=self.limits(),
            sampling=SamplingParams(max_new_tokens=self.max_new_tokens, temperature=temperature),
            backend=self.backend,
            run_seed=run_seed,
            images=self.images,
            artefact_bytes=self.artefact_bytes,
        )

    def write_beside(self, folder: Path) -> None:
        """Put `agent.toml` into a model folder."""
        write_recipe(self, folder / FILE)


def agent_beside(model: str) -> Agent:
    """The agent whose settings lie in a model folder; the defaults for a folder without, and for endpoints.

    Raises:
        RecipeError: the file there is damaged.
    """
    folder = model_folder(model)
    path = folder / FILE if folder is not None else None
    return load_recipe(path, Agent) if path is not None and path.is_file() else Agent()
