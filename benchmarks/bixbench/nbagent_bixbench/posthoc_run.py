"""Multiple choice after the run: a second model reads each notebook and picks an option (`--mcq posthoc`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from nbagent.blobs import storage_failed
from nbagent.errors import ModelError
from nbagent.progress import progress_bar
from nbagent.replay import notebook_at
from nbagent.tasks import Outcome
from nbagent.trajectory import Trajectory
from nbagent_bixbench.judge import EndpointJudge
from nbagent_bixbench.posthoc import posthoc_choice
from nbagent_bixbench.results import Result
from nbagent_context.render import cell_text, output_text


def choose_afterwards(
    results: Sequence[Result],
    made: Sequence[Trajectory],
    picker: EndpointJudge,
    kept: Path,
    concurrency: int = 8,
) -> list[Result]:
    """The results with the second model's reply as their answer; the agent's own goes to `extra.open_answer`.

    A reply is kept in a file of its own and not asked for again. Where the second model cannot be asked, the result is
    an infrastructure failure, and a resumed run asks again.

    Args:
        results: of the open attempts, with the options that the second model is shown.
        made: their trajectories.
        picker: the second model.
        kept: folder of the replies.
        concurrency: replies under way at once.
    """
    kept.mkdir(exist_ok=True)
    with progress_bar("choices", len(results)) as advance, ThreadPoolExecutor(concurrency) as pool:

        def one(pair: tuple[Result, Trajectory]) -> Result:
            chosen = _chosen(*pair, picker, kept)
            advance()
            return chosen

        return list(pool.map(one, zip(results, made, strict=True)))


def notebook_text(trajectory: Trajectory) -> str:
    """The notebook of an attempt as markdown: cells with their outputs as text; images by name."""
    # Unframed: the frame of a notebook for people ends with the verdict.
    notebook = notebook_at(trajectory, framed=False)
    language = str(trajectory.start["language"])
    parts = []
    for cell in notebook.cells:
        outputs = output_text(cell.get("outputs", []), cell["id"]) if cell["cell_type"] == "code" else ""
        parts.append(cell_text(cell, language) + outputs)
    return "\n".join(parts)


def _chosen(result: Result, trajectory: Trajectory, picker: EndpointJudge, kept: Path) -> Result:
    if result.outcome is Outcome.INFRASTRUCTURE:
        return result
    path = kept / f"{trajectory.rollout_id}.json"
    extra = {**result.extra, "open_answer": result.answer, "chosen_by": picker.model}
    try:
        if path.is_file():
            reply = str(json.loads(path.read_text(encoding="utf-8"))["reply"])
        else:
            text = notebook_text(trajectory)
            reply = posthoc_choice(picker.ask, text, result.question, result.options, result.answer)
            path.write_text(json.dumps({"model": picker.model, "reply": reply}), encoding="utf-8")
    except ModelError as error:
        what = f"{type(error).__name__}: {error}"
        return replace(result, answer=None, outcome=Outcome.INFRASTRUCTURE, reason=what, error=what, extra=extra)
    except OSError as error:
        storage_failed(path, error)
    return replace(result, answer=reply, extra=extra)
