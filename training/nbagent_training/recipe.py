"""The training recipe: what is trained, on which tasks, how the agent acts, the warm start and the GRPO run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from nbagent.agent import Agent
from nbagent.recipe import Recipe
from nbagent.rollouts import CONCURRENCY
from nbagent_training.branch_settings import Branch
from nbagent_training.distill_settings import Distill
from nbagent_training.failures import Failures
from nbagent_training.loss_settings import Kernel, Lora, Loss, changed
from nbagent_training.sampler_settings import Sampler
from nbagent_training.scratch import Size
from nbagent_training.trackers import Watch

OF_REWARDS = (
    "gamma", "sigma", "baseline", "mask_truncated", "summary_weight", "malformed_penalty", "failed_penalty",
)  # fmt: skip
"""Settings of GRPO that make advantages and weights from rewards."""

WITHOUT_MEMORIES = ("full", "window", "drop")
"""Policies that never ask for a memory. One of somebody's own may."""

RATES = ("muon_lr", "adamw_lr")
"""Learning rates of the warm start."""


class Tasks(Recipe):
    """Where the tasks come from: sets on disk, or bundled ones made for the run."""

    train: str = ""
    """Location of the training tasks; empty: bundled tasks are made in the run folder."""
    filter: str = ""
    """A filter that `nbagent profile` wrote: which of the training tasks are practised; empty: all."""
    demonstrations: str = ""
    """Location of tasks with reference notebooks for the warm start; empty: bundled ones, other seeds than `train`."""
    heldout: str = ""
    """Location of the tasks scored before and after; empty: bundled ones of the held-out split."""
    families: tuple[str, ...] = ()
    """Families of bundled tasks; empty: all of them."""
    n_train: int = Field(default=480, ge=1)
    """Bundled training tasks; `grpo.curriculum` says which are practised, some of them often and some never."""
    n_demonstrations: int = Field(default=3600, ge=0)
    """Bundled tasks whose reference notebooks are demonstrations."""
    flawed: float = Field(default=0.0, ge=0, le=1)
    """Share of bundled demonstrations that show their family's usual mistake; the report says so."""
    n_heldout: int = Field(default=240, ge=0)
    """Bundled held-out tasks; 240 give a pass@1 an interval of about 5 points either way."""
    heldout_split: Literal["heldout", "validation"] = "heldout"
    """`validation` while settings are being chosen, `heldout` for what is reported."""

    @model_validator(mode="after")
    def _each_does_something(self) -> Tasks:
        of_bundled = {
            "train": ("n_train",),
            "demonstrations": ("n_demonstrations", "flawed"),
            "heldout": ("n_heldout", "heldout_split"),
        }
        for location, names in of_bundled.items():
            if getattr(self, location) and (idle := changed(self, *names)):
                raise ValueError(f"{idle[0]} does nothing: it is of bundled tasks; leave it or {location} out")
        return self


class Model(Recipe):
    """The model that is trained."""

    folder: str = ""
    """A local Hugging Face causal LM; empty: a small one is made from scratch."""
    scratch: Size = Size()
    """Shape of the model made from scratch."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Model:
        if self.folder and self.scratch != Size():
            raise ValueError("scratch does nothing: the model of folder has a shape already; leave one of them out")
        return self


class WarmStart(Recipe):
    """Supervised training on demonstrations before GRPO."""

    steps: int = Field(default=0, ge=0)
    """Optimizer steps; 0 leaves the warm start out."""
    tokens: int = Field(default=3072, ge=64)
    """Padded tokens per step."""
    muon_lr: float = Field(default=0.01, gt=0)
    """Learning rate of the matrices inside the layers. With `lora.rank` a given model's adapters alone are trained, at
    `adamw_lr`."""
    adamw_lr: float = Field(default=4e-3, gt=0)
    """Learning rate of embeddings, norms and head."""
    from_run: str = ""
    """A finished run folder: its rollouts are the examples (rejection sampling), in place of demonstrations."""
    keep: Literal["correct", "all"] = "correct"
    """Which of its rollouts: those that the verifier called right, or every one with a reward."""
    per_task: int = Field(default=4, ge=1)
    """At most so many rollouts of a task, so that easy tasks do not crowd out the others; equal ones count once."""
    order: Literal["shortest", "random"] = "shortest"
    """Which of a task's rollouts are taken first; the shortest waste no steps, random ones keep the variety."""

    @model_validator(mode="after")
    def _each_does_something(self) -> WarmStart:
        chosen = changed(self, "keep", "per_task", "order")
        if not self.steps and (idle := changed(self, "from_run") + chosen + changed(self, "tokens", *RATES)):
            raise ValueError(
                f"{idle[0]} does nothing: there is no warm start without steps; set steps, or leave it out"
            )
        if chosen and not self.from_run:
            raise ValueError(f"{chosen[0]} does nothing: it is of the rollouts of from_run; set that, or leave it out")
        return self


class Grpo(Recipe):
    """Step-level GRPO."""

    updates: int = Field(default=100, ge=0)
    """How often the weights are updated and handed to the sampler. Each update takes fresh rollouts: of the very
    weights that it changes, but for `sampler.staleness`, which lets them be older, `loss.passes` above 1, whose later
    steps reuse the rows, and `from_run`."""
    from_run: str = ""
    """A finished run folder: GRPO learns from its rollouts and makes none, weighing tokens by their ratio. How they
    would be made (`group_size`, `curriculum`, `branch`, and of the tasks `train`, `n_train` and `filter`) then says
    nothing, so that the recipe that made them is taken as it is; the run says what it passes over."""
    tasks_per_update: int = Field(default=12, ge=1)
    """Groups per update."""
    group_size: int = Field(default=8, ge=2)
    """Rollouts per task."""
    curriculum: Literal["uniform", "uncertain", "mixed"] = "uniform"
    """Which tasks practice takes: of all families alike; of families whose success is uncertain more often; or each by
    the chance that its group is mixed, which begins with what the filter's profile counted."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of the rollouts."""
    lr: float = Field(default=1e-5, gt=0)
    """Learning rate of AdamW; models made from scratch bear a hundred times the default."""
    warmup: int = Field(default=3, ge=0)
    """Updates over which the learning rate rises."""
    final_lr: float = Field(default=0.1, ge=0, le=1)
    """The learning rate falls linearly to this share of itself."""
    token_budget: int = Field(default=3072, ge=64)
    """Tokens per micro-batch, shared prefixes counted once."""
    grouping: Literal["trajectory", "state", "branch", "rollout", "step_index"] = "trajectory"
    """What is compared with what (advantages.py): attempts at a task; also steps that met the same notebook and kernel;
    attempts that go on from one live state; the steps of one attempt, for tasks with step rewards only; steps of the
    same number, which is biased where attempts differ in length. Rewards that a task gives for single steps
    (StepVerifier) are in `state`, `rollout` and `step_index`; `trajectory` and `branch` learn from the return alone."""
    branch: Branch = Branch()
    """Where rollouts are branched, under grouping `branch`."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount per remaining model call of the advantage; under `state` and `step_index` per step, of the return."""
    sigma: Literal["group", "none"] = "group"
    """Whether advantages are divided by the group's deviation."""
    baseline: Literal["mean", "leave_one_out"] = "mean"
    """What is taken off: the group's mean, or that of the others. Under `branch` the mean is scaled so that nodes of
    few alternatives and of many weigh alike."""
    state_weight: float = Field(default=1.0, gt=0)
    """Weight of the comparison within a state, beside that of attempts, under grouping `state`."""
    malformed_penalty: float = Field(default=0.0, ge=0, le=1)
    """Taken off the return of a step that wrote no action, which stays between 0 and 1."""
    failed_penalty: float = Field(default=0.0, ge=0, le=1)
    """The same for a step whose tool call failed."""
    normalisation: Literal["rollout_token_mean", "row_mean", "token_mean", "constant"] = "rollout_token_mean"
    """How tokens are weighed (weights.py): every attempt the same, also every call in it, every token the same, or by
    `constant_tokens`."""
    constant_tokens: int | None = Field(default=None, ge=1)
    """Tokens that an attempt's loss is divided by, under `constant`; e.g. the most it may write."""
    mask_truncated: bool = True
    """Leave attempts that ended by a limit, without an answer, out of the loss; they stay in the statistics (DAPO, Yu
    et al. 2025, arXiv 2503.14476; SUPO, Lu et al. 2025, arXiv 2510.06727): their calls need not have been bad, there
    was no room for more. False where running out of steps is the agent's own mistake, to be unlearned."""
    summary_weight: float = Field(default=1.0, ge=0)
    """Weight of a token of a memory relative to an action's; 0 does not train memories. Of policies that have any:
    `summarize`, or one of your own."""
    loss: Loss = Loss()
    """What is minimised."""
    attention: Kernel = "sdpa"
    """What computes attention in training; `flex`, on a GPU only, is one kernel however many prefixes are shared."""
    recompute: bool = False
    """Compute activations again in the backward pass, also of a warm start: much less memory for about a third more
    time."""
    save_every: int = Field(default=10, ge=1)
    """Updates between checkpoints, of which the newest two are kept until GRPO is over."""
    keep_every: int = Field(default=0, ge=0)
    """Every so many updates a checkpoint is kept for good, to be scored or to begin a new run with; 0: none. A multiple
    of `save_every`. While GRPO goes on each is whole (the weights, and two numbers of the optimizer's for each that is
    trained); then the model, or its adapters, stays."""

    @model_validator(mode="after")
    def _grouped(self) -> Grpo:
        if self.grouping != "branch" and self.branch != Branch():
            raise ValueError('grpo.branch: only grouping = "branch" branches; set it, or leave the table out')
        if self.grouping == "branch" and not self.from_run:
            self.branch.check(self.group_size)
        if self.grouping == "rollout" and self.gamma != 1:
            raise ValueError("grpo.gamma: grouping rollout compares the rewards of single steps; leave gamma out")
        if self.grouping != "state" and self.state_weight != 1:
            raise ValueError('grpo.state_weight: only grouping = "state" has one')
        if self.keep_every % self.save_every:
            raise ValueError(
                f"grpo.keep_every: only what is saved can be kept; set it to a multiple of grpo.save_every = "
                f"{self.save_every}"
            )
        if (self.normalisation == "constant") != (self.constant_tokens is not None):
            raise ValueError('grpo.constant_tokens: goes with normalisation = "constant", and that with it')
        return self


class TrainRecipe(Recipe):
    """Everything a training run depends on."""

    seed: int = Field(default=0, ge=0, lt=1 << 31)
    """Seed of tasks, weights, order and noise."""
    bf16: bool = True
    """Autocast to bfloat16 in training, and sample from a bfloat16 copy; float32 on a machine that has no bfloat16."""
    threads: int = Field(default=0, ge=0)
    """PyTorch threads; 0: one per core; 1 makes runs repeat number for number."""
    concurrency: int = Field(default=CONCURRENCY, ge=1)
    """Rollouts at once, each with a kernel of its own. With 1 no batch depends on what else is under way, so that a run
    killed amid its rollouts goes on to the very numbers of one that was not."""
    score_greedy: bool = True
    """Score with greedy sampling too, beside temperature 1."""
    tasks: Tasks = Tasks()
    model: Model = Model()
    lora: Lora = Lora()
    agent: Agent = Agent()
    warm_start: WarmStart = WarmStart()
    grpo: Grpo = Grpo()
    distill: Distill = Distill()
    sampler: Sampler = Sampler()
    failures: Failures = Failures()
    """When too many rollouts fail on the host's side."""
    watch: Watch = Watch()

    @model_validator(mode="after")
    def _branched(self) -> TrainRecipe:
        if self.grpo.grouping == "branch" and not self.grpo.from_run:
            self.grpo.branch.check_calls(self.grpo.group_size, self.agent.max_steps)
        return self

    @model_validator(mode="after")
    def _together(self) -> TrainRecipe:
        if self.agent.action_format == "native":
            raise ValueError(
                "agent.action_format: native is for endpoints; a model in training writes hermes or fenced"
            )
        if self.agent.images:
            raise ValueError("agent.images: training on images is not supported; show them in scoring only")
        # Recorded rollouts bring their own policy's memories.
        memories = self.agent.policy not in WITHOUT_MEMORIES or self.grpo.from_run
        if not memories and changed(self.grpo, "summary_weight"):
            raise ValueError(
                f'grpo.summary_weight does nothing: policy "{self.agent.policy}" has no memories; set agent.policy = '
                '"summarize", or leave summary_weight out'
            )
        if not self.model.folder and not self.warm_start.steps:
            raise ValueError("a model made from scratch needs a warm start: set warm_start.steps, or model.folder")
        demonstrated = self.tasks.demonstrations or self.tasks.n_demonstrations or self.warm_start.from_run
        if self.warm_start.steps and not demonstrated:
            raise ValueError(
                "warm_start.steps needs demonstrations: set tasks.n_demonstrations or tasks.demonstrations"
            )
        if self.tasks.demonstrations and (not self.warm_start.steps or self.warm_start.from_run):
            raise ValueError(
                "tasks.demonstrations does nothing: only a warm start without from_run learns from them; leave it out"
            )
        if self.tasks.flawed and (not self.warm_start.steps or self.warm_start.from_run):
            raise ValueError(
                "tasks.flawed does nothing: only a warm start without from_run has demonstrations; leave it out"
            )
        if self.distill.teacher and not self.grpo.updates:
            raise ValueError("distill.teacher does nothing: grpo.updates is 0; leave one of them out")
        if self.lora.rank and not self.grpo.updates and not (self.warm_start.steps and self.model.folder):
            raise ValueError("lora.rank does nothing: grpo.updates is 0; leave one of them out")
        if self.lora.rank and self.model.folder and changed(self.warm_start, "muon_lr"):
            raise ValueError("warm_start.muon_lr does nothing: adapters are trained at adamw_lr; leave muon_lr out")
        for table, given in (("warm_start", self.warm_start.from_run), ("grpo", self.grpo.from_run)):
            if given and not self.model.folder:
                raise ValueError(f"{table}.from_run: rollouts hold the ids of their model; set model.folder to it")
        if self.grpo.from_run and self.grpo.loss.old == "trainer" and self.grpo.loss.correction == "none":
            raise ValueError(
                "grpo.from_run: other weights made the rollouts, which nothing here corrects; set "
                'grpo.loss.old = "sampler", or a grpo.loss.correction'
            )
        if self.sampler.staleness and self.grpo.from_run:
            raise ValueError("sampler.staleness: recorded rollouts are there already; leave it out")
        uncorrected = self.grpo.loss.old == "trainer" and self.grpo.loss.correction == "none"
        if self.sampler.staleness and (uncorrected or self.distill.teacher):
            raise ValueError(
                "sampler.staleness: rollouts that run ahead come from older weights; set grpo.loss.correction to "
                '"truncate" or "mask", or grpo.loss.old = "sampler" (a distillation has neither)'
            )
        if self.distill.teacher and (self.grpo.from_run or self.grpo.grouping != "trajectory"):
            raise ValueError(
                "distill.teacher: judges the tokens of fresh rollouts; leave grpo.from_run and grpo.grouping out"
            )
        if self.distill.teacher and (self.grpo.temperature != 1 or self.grpo.normalisation != "rollout_token_mean"):
            raise ValueError(
                "distill.teacher: compares log-probs at temperature 1, every rollout weighing the same; leave "
                "grpo.temperature and grpo.normalisation out"
            )
        if self.distill.teacher and self.grpo.loss.ratio == "sequence":
            raise ValueError(
                "distill.teacher: gives each token an advantage of its own, which a completion's one ratio would mix; "
                'set grpo.loss.ratio = "token"'
            )
        if self.distill.teacher and (idle := changed(self.grpo, *OF_REWARDS)):
            raise ValueError(f"grpo.{idle[0]} does nothing: distill.teacher replaces rewards; leave {idle[0]} out")
        if self.grpo.loss.ratio == "sequence" and self.grpo.normalisation in ("token_mean", "constant"):
            raise ValueError(
                "grpo.loss.ratio: sequence is one ratio a completion, which weights by the token would count by its "
                'length; set grpo.normalisation = "row_mean" (GSPO) or leave it out'
            )
        if self.sampler.weights == "sent" and self.lora.rank:
            raise ValueError('sampler.weights: adapters come to the server by files; leave weights = "sent" out')
        return self
