"""The commands `nbagent train` and `nbagent demo`. Heavy modules are imported when a command runs."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from nbagent.cli_errors import INTERRUPTED
from nbagent.cli_options import BACKEND_HELP
from nbagent.errors import InfrastructureError, NbagentError, RunFolderError, StorageError, UsageError
from nbagent.recipe import load_recipe, nearest
from nbagent.runfolder import RunFolder
from nbagent_kernels.errors import KernelError
from nbagent_training.errors import TooManyFailures

if TYPE_CHECKING:
    from nbagent_training.recipe import TrainRecipe
    from nbagent_training.run import TrainingRun

Backend = Annotated[
    str | None,
    typer.Option(
        "--backend",
        help=f"{BACKEND_HELP} Default: the recipe's, else docker, and fork for a model made from scratch.",
        show_default=False,
    ),
]
LEAST_FREE = 16 << 20
"""Bytes under which a disk counts as full: less than a small checkpoint."""
MOST_SEED = (1 << 31) // 3 - 1
"""Largest seed of the demo: its three sets of tasks are drawn from the three seeds that begin at three times it."""


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(help="TOML recipe, or the name of a bundled one; see `nbagent recipes`.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/NAME-OF-RECIPE.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, where it stopped.")] = False,
    from_run: Annotated[
        Path | None,
        typer.Option("--from", help="Learn from the rollouts of this finished run and make none.", show_default=False),
    ] = None,
    backend: Backend = None,
) -> None:
    """Train a notebook agent: a warm start on demonstrations, then step-level GRPO on verified answers.

    A recipe names the tasks, the model and the settings; the resolved recipe, every trajectory, checkpoints, scores
    and the report are kept in the run folder. Ctrl-C saves; --resume goes on.

    With --from, GRPO learns from the rollouts of a finished run, weighing every token by how much likelier it has
    become; of a run of `nbagent score` no recipe is needed: its model learns, two passes over the rows.

    Examples:

        nbagent train recipe.toml --out runs/mine

        nbagent train --from runs/score --out runs/mine
    """
    from nbagent_training.bundled_recipes import recipe_path
    from nbagent_training.offline import offline_recipe
    from nbagent_training.recipe import TrainRecipe

    if recipe is None and from_run is None:
        raise UsageError("name a recipe (`nbagent recipes` lists the bundled ones), or a finished run with --from")
    path = recipe_path(recipe) if recipe is not None else None
    settings = load_recipe(path, TrainRecipe) if path is not None else None
    if backend is None and settings is not None and "backend" in settings.agent.model_fields_set:
        backend = settings.agent.backend
    if from_run is not None:
        settings = offline_recipe(from_run, settings)
    assert settings is not None
    settings = _with_backend(settings, backend)
    target = out if out is not None else Path("runs") / (path.stem if path is not None else "offline")
    _run(settings, target, resume, Console())


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this one, to copy.", show_default=False)] = None,
) -> None:
    """List the bundled training recipes, or print one.

    A bundled recipe is trained by its name; to change one, copy it and edit the copy.

    Example:

        nbagent recipes qwen3-4b-lora > mine.toml
    """
    from nbagent_training.bundled_recipes import bundled_recipes

    there = bundled_recipes()
    if name is None:
        for known, path in there.items():
            print(f"{known:<{max(map(len, there))}}  {path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")
    elif name in there:
        print(there[name].read_text(encoding="utf-8"), end="")
    else:
        raise UsageError(f"{name}: no bundled recipe{nearest(name, list(there))}")


def export(
    run: Annotated[Path, typer.Argument(help="A training run, or the folder of one of its checkpoints.")],
    out: Annotated[Path, typer.Option("--out", help="Model folder to make.")],
    checkpoint: Annotated[
        str, typer.Option(help="Folder under checkpoints/, e.g. warm; default: the last stage that ended.")
    ] = "",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16; default: as it was saved.")] = "",
) -> None:
    """Export a trained model as a plain folder: LoRA adapters merged, tokenizer and agent settings beside the weights.

    `nbagent score --model` and vLLM take the folder.

    Example:

        nbagent export runs/mine --out models/mine --dtype bfloat16
    """
    from nbagent_training.export import export as exported

    print(exported(run, out, checkpoint=checkpoint, dtype=dtype))


def demo(
    out: Annotated[Path, typer.Option(help="Run folder of the demo.")] = Path("runs/demo"),
    smoke: Annotated[bool, typer.Option("--smoke", help="The same path, cut to a minute; learns nothing.")] = False,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=MOST_SEED, help="Seed of tasks, weights and noise; default: the recipe's."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the demo in --out, where it stopped.")] = False,
    backend: Annotated[str, typer.Option(help=BACKEND_HELP)] = "fork",
) -> None:
    """Train a small notebook agent from nothing on this machine, and score it before and after.

    Makes bundled bioinformatics questions, a language model of about three million parameters, warms it up on
    reference notebooks, trains it with step-level GRPO in real Jupyter kernels, and scores held-out questions. Needs
    no GPU, no key and no download. Kernels run with the backend `fork`, since the model is our own, or with --backend.

    Example:

        nbagent demo --out runs/demo
    """
    from nbagent_training.recipe import TrainRecipe

    name = "smoke" if smoke else "demo"
    with_name = files("nbagent_training") / "recipes" / f"{name}.toml"
    recipe = load_recipe(Path(str(with_name)), TrainRecipe)
    if seed is not None:
        recipe = recipe.model_copy(update={"seed": seed})
    recipe = _with_backend(recipe, backend)
    console = Console()
    run = _run(recipe, out, resume, console)
    from nbagent_training.closing import close_demo

    close_demo(run, console, smoke=smoke)


def _with_backend(recipe: TrainRecipe, named: str | None) -> TrainRecipe:
    """The recipe with the backend that is named, else the one for its model.

    Raises:
        UsageError: docker without an engine or an image, where kernels are opened at all.
    """
    from nbagent.backends import choose_backend, not_covered
    from nbagent.models.opening import is_ours

    model = recipe.model.folder
    ours = not model or is_ours(model)
    practises = recipe.grpo.updates and not recipe.grpo.from_run
    used = bool(practises or recipe.tasks.heldout or recipe.tasks.n_heldout)
    chosen = choose_backend(named, model, ours, used=used)
    if used and not ours:
        print(not_covered(chosen), file=sys.stderr)
    return recipe.model_copy(update={"agent": recipe.agent.model_copy(update={"backend": chosen})})


def _run(recipe: TrainRecipe, out: Path, resume: bool, console: Console) -> TrainingRun:
    # Nothing is fetched in a run; without this every trainer asks the hub and sends a ping.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if resume and not (out / "recipe.toml").exists():
        raise RunFolderError(f"{out}: there is no run to resume; leave out --resume")
    from nbagent_training.trackers import check_trackers

    check_trackers(recipe.watch)
    from nbagent_training.run import TrainingRun

    if int(os.environ.get("RANK", "0")):
        # Under `accelerate launch` the first process keeps the run folder.
        follower = TrainingRun(recipe, RunFolder(out), console)
        try:
            follower.follow()
        except KeyboardInterrupt:
            # The first one says what is saved and how to go on.
            raise SystemExit(INTERRUPTED) from None
        return follower
    # A recipe that is put right may be run into the same folder, so nothing is there before it is looked at.
    TrainingRun(recipe, RunFolder(out), console).check()
    folder = RunFolder.create(out, recipe, resume=resume)
    made = TrainingRun(recipe, folder, console)
    how = "the same command with --resume goes on"
    try:
        with _terminated_like_interrupted():
            made.go()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"what is done is saved in {out}; {how}") from None
    except StorageError:
        raise
    except (TooManyFailures, InfrastructureError, KernelError) as error:
        raise type(error)(f"{error}; what is done is saved in {out}: mend that, then {how}") from error
    except Exception as error:
        # Checkpoints are written by libraries that do not say ENOSPC when the disk is full.
        if isinstance(error, NbagentError) or shutil.disk_usage(out).free > LEAST_FREE:
            raise
        first = str(error).strip().split("\n", 1)[0]
        raise StorageError(
            f"{out}: the disk is full ({type(error).__name__}: {first}); free some space, then {how}"
        ) from error
    return made


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM, which schedulers send before they kill, ends a run as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
