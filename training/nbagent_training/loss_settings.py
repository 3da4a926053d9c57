"""Settings of the loss and of LoRA; what does not go together is refused when the recipe is read. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from nbagent.recipe import Recipe

Kernel = Literal["sdpa", "flex"]


def changed(settings: Recipe, *names: str) -> list[str]:
    """Which of these settings are not at their default. A resolved recipe names the defaults too, and must load."""
    return [name for name in names if getattr(settings, name) != type(settings).model_fields[name].default]


class Loss(Recipe):
    """What is minimised at each completion token; the formulas and their sources are in losses.py."""

    kind: Literal["clip", "cispo"] = "clip"
    """`clip`: the clipped ratio times the advantage (PPO, GRPO). `cispo`: the clipped ratio is a mere weight of the
    log-prob, so that no token loses its gradient."""
    ratio: Literal["token", "sequence"] = "token"
    """Ratio of each token, or one a completion, the geometric mean of its tokens' (GSPO). With `sequence` a completion
    is clipped and corrected whole, so nothing that is of single tokens goes with it."""
    clip_low: float = Field(default=0.2, ge=0, le=1)
    """The ratio is clipped below 1 - clip_low; 1 for no lower bound. GSPO's authors take 3e-4 for both."""
    clip_high: float = Field(default=0.2, gt=0)
    """The ratio is clipped above 1 + clip_high; more than clip_low (DAPO: 0.28) lets rare tokens rise."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Where the advantage is negative, the loss of a token is at most this many times its size; None: no bound."""
    old: Literal["trainer", "sampler"] = "trainer"
    """The ratio's denominator: the trainer's own log-probs when the update begins, or the sampler's. In the first pass
    of `trainer` the ratio is 1, and nothing is clipped."""
    passes: int = Field(default=1, ge=1)
    """Optimizer steps on the same rows."""
    correction: Literal["none", "truncate", "mask"] = "none"
    """For what the trainer's log-probs at the update's beginning and the sampler's differ by (other kernels, older
    weights): weigh each token with their ratio, cut to correction_high (`truncate`; with the ratio of its completion
    under ratio = "sequence"), or leave the token out where the ratio is outside [correction_low, correction_high]
    (`mask`)."""
    correction_low: float = Field(default=0.5, ge=0, le=1)
    """Smallest ratio that `mask` keeps."""
    correction_high: float = Field(default=2.0, ge=1)
    """Largest ratio."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the divergence from the model that training began with; 0 needs no second model."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the divergence."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus."""

    @model_validator(mode="after")
    def _together(self) -> Loss:
        if self.kind == "cispo" and self.ratio == "sequence":
            raise ValueError(
                'kind = "cispo" weighs each token by its own ratio; set ratio = "token", or kind = "clip" for GSPO'
            )
        if self.kind == "cispo" and self.dual_clip is not None:
            raise ValueError('kind = "cispo" bounds its ratio already; leave dual_clip out')
        if self.dual_clip is not None and self.dual_clip <= 1 + self.clip_high:
            raise ValueError(f"dual_clip must be above 1 + clip_high = {1 + self.clip_high:g}")
        if self.old == "sampler" and self.correction != "none":
            raise ValueError(
                'old = "sampler" has the difference from the sampler in its ratio already; set correction = "none"'
            )
        if self.ratio == "sequence" and self.correction == "mask":
            raise ValueError(
                'correction = "mask" leaves single tokens out, which ratio = "sequence" would bring back; set '
                'correction = "truncate", or ratio = "token"'
            )
        return self

    @model_validator(mode="after")
    def _each_does_something(self) -> Loss:
        bounds = changed(self, "clip_low", "clip_high", "dual_clip", "kind")
        if self.correction == "none":
            # Otherwise a completion is corrected whole from the first pass on.
            bounds += changed(self, "ratio")
        if bounds and self.old == "trainer" and self.passes == 1:
            raise ValueError(
                f'{bounds[0]} does nothing: with old = "trainer" and passes = 1 the ratio is 1; set passes = 2 or '
                f'old = "sampler", or leave {bounds[0]} out'
            )
        if self.correction != "mask" and changed(self, "correction_low"):
            raise ValueError('correction_low does nothing: set correction = "mask", or leave it out')
        if self.correction == "none" and changed(self, "correction_high"):
            raise ValueError('correction_high does nothing: set correction = "truncate" or "mask", or leave it out')
        if not self.kl_coef and changed(self, "kl"):
            raise ValueError("kl does nothing: set kl_coef above 0, or leave it out")
        return self


class Lora(Recipe):
    """Low-rank adapters in place of training every weight (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = Field(default=0, ge=0)
    """Rank of the adapters; 0 trains the whole model."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapters' product is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that get adapters, such as `q_proj`; empty: all but the output layer,
    which cannot have any (the trainer computes with its weights alone)."""

    @model_validator(mode="after")
    def _each_does_something(self) -> Lora:
        if not self.rank and (idle := changed(self, "alpha", "targets")):
            raise ValueError(f"{idle[0]} does nothing: set rank above 0, or leave it out")
        return self
