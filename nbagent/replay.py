"""Replay: a trajectory's notebook at any step, and the same cells run again in a fresh kernel."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from nbagent.backends import choose_backend, kernels_of
from nbagent.errors import UsageError
from nbagent.eventlog import Event
from nbagent.execute_notebook import Report, execute_notebook, write_notebook
from nbagent.models.opening import is_ours
from nbagent.notebook import NotebookDocument, valid_outputs
from nbagent.runfolder import RunFolder
from nbagent.terminal import plain
from nbagent.trajectory import Trajectory
from nbagent_kernels import Limits, SessionSpec

Kind = Literal["history", "final"]


def notebook_at(
    trajectory: Trajectory, step: int | None = None, kind: Kind = "history", framed: bool = True
) -> NotebookNode:
    """The notebook of a trajectory: the fold of its log. Always valid nbformat v4.5.

    Args:
        trajectory: what to fold.
        step: after this 0-based step; None: at the end.
        kind: `history` shows every execution in order, an edited cell once per execution; `final` the cells as they
            stood, with their own ids.
        framed: begin with the question and end with the answer and its outcome, as markdown cells that the agent did
            not write.

    Raises:
        TrajectoryError: an output's blob is missing or damaged.
    """
    events = [event for event in trajectory.events if step is None or event.get("step", 0) <= step]
    document = NotebookDocument(str(trajectory.start["language"]))
    if kind == "final":
        for event in events:
            fold_event(document, event, trajectory)
    else:
        document.node["cells"] = _history(events, trajectory)
    document.node["metadata"]["nbagent"] = _about(trajectory, kind, step)
    if framed:
        document.node["cells"] = [
            _note("question", f"# {trajectory.task_id}\n\n{trajectory.question}"),
            *document.node["cells"],
            *([_note("ending", _ending(trajectory))] if step is None and trajectory.end else []),
        ]
    return document.node


def _about(trajectory: Trajectory, kind: Kind, step: int | None) -> dict[str, Any]:
    about = {
        "rollout_id": trajectory.rollout_id,
        "task_id": trajectory.task_id,
        "question": _writable(trajectory.question),
        "answer": None if trajectory.answer is None else _writable(trajectory.answer),
        "outcome": trajectory.outcome.value if trajectory.outcome else None,
        "reason": _writable(trajectory.reason),
        "reward": trajectory.reward,
        "kind": kind,
        "cell_timeout_s": trajectory.start["limits"].get("cell_timeout_s"),
    }
    return about if step is None else {**about, "step": step}


def fold_event(document: NotebookDocument, event: Event, trajectory: Trajectory) -> None:
    """Do to a notebook what an event did to it; events that did nothing to it are passed over.

    Raises:
        TrajectoryError: an output's blob is missing or damaged.
    """
    if event["kind"] == "execution":
        document.set_outputs(event["cell"], trajectory.outputs(event), event["execution_count"])
    elif event["kind"] == "cell":
        if event["op"] == "insert":
            document.insert(event["index"], event["source"], event["cell_type"], event["cell"])
        elif event["op"] == "edit":
            document.replace(event["cell"], event["source"])
        else:
            document.delete(event["cell"])


def _history(events: list[Event], trajectory: Trajectory) -> list[NotebookNode]:
    cells: list[NotebookNode] = []
    for event in events:
        kind = event["kind"]
        about: dict[str, Any] = {"step": event.get("step"), "cell": event.get("cell")}
        if kind == "execution":
            cell = new_code_cell(
                _writable(event["source"]),
                id=f"e{len(cells)}",
                outputs=[nbformat.from_dict(output) for output in valid_outputs(trajectory.outputs(event))],
                execution_count=event["execution_count"],
            )
            about |= {"status": event["status"], "seconds": event["seconds"], "state_kept": event["state_kept"]}
            cells.append(_marked(cell, about))
        elif kind == "kernel":
            text = "*The kernel was restarted.*" if event["op"] == "restart" else _lost(event["cause"])
            cells.append(
                _marked(new_markdown_cell(text, id=f"e{len(cells)}"), {"step": event["step"], "kernel": event["op"]})
            )
        elif kind == "cell" and event["cell_type"] == "markdown" and event["op"] != "delete":
            cells.append(_marked(new_markdown_cell(_writable(event["source"]), id=f"e{len(cells)}"), about))
    return cells


def _marked(cell: NotebookNode, about: dict[str, Any]) -> NotebookNode:
    cell["metadata"]["nbagent"] = about
    return cell


def _lost(cause: str) -> str:
    return f"*The kernel was lost with its variables: {_writable(cause)}.*"


def _note(role: str, text: str) -> NotebookNode:
    return _marked(new_markdown_cell(_writable(text), id=f"nbagent-{role}"), {"role": role})


def _ending(trajectory: Trajectory) -> str:
    answer, outcome = trajectory.answer, trajectory.outcome
    assert outcome is not None
    lines = [f"**{outcome.value.replace('_', ' ')}**" + (f": {trajectory.reason}" if trajectory.reason else "")]
    if answer is not None:
        fence = "```"
        while fence in answer:
            fence += "`"
        lines += ["", "Answer:", "", fence, answer, fence]
    return "\n".join(lines)


def _writable(text: str) -> str:
    """Text that a UTF-8 file takes: JSON may hold half of a surrogate pair, a file may not."""
    return text.encode("utf-8", "replace").decode("utf-8")


def replay(run: RunFolder, rollout_id: str, kind: Kind, out: Path) -> NotebookNode:
    """Write a rollout's notebook to `out` and return it.

    Raises:
        RunFolderError: the run has no such rollout.
        TrajectoryError: its log or a blob is damaged.
        StorageError: `out` cannot be written.
    """
    notebook = notebook_at(run.load(rollout_id), kind=kind)
    write_notebook(notebook, out)
    return notebook


def rerun_backend(run: RunFolder, rollout_id: str, named: str | None) -> str:
    """Where a rollout's cells run again: where the user says, else where its log says they ran before.

    A log may come from anywhere. That cells ran with less than a container is believed where the run's model is one
    made from nothing; where it is not, the user has to say so.

    Raises:
        UsageError: that is not said, or the backend is not there.
        RunFolderError: the run has no such rollout.
        TrajectoryError: its log is damaged.
    """
    start = run.load(rollout_id).start
    logged, ours = str(start["backend"]), _of_our_model(run)
    if named is None and not ours and kernels_of(logged) != "docker":
        raise UsageError(
            f"{run.path}: its cells ran with backend {plain(logged, 40)}, which runs code as you on this machine, and "
            f"its model was not made from nothing; name --backend docker, or {kernels_of(logged)} if you trust it"
        )
    return choose_backend(named or logged, str(run.path), ours, str(start["language"]))


def _of_our_model(run: RunFolder) -> bool:
    """Whether a run's recipe names a model that was made from nothing, in this run or in the one it was taken from."""
    try:
        model = tomllib.loads(run.recipe.read_text(encoding="utf-8")).get("model")
    except (ValueError, OSError):
        return False
    named = model.get("folder") if isinstance(model, dict) else model
    return isinstance(named, str) and (is_ours(named) if named else isinstance(model, dict))


async def rerun(
    run: RunFolder, rollout_id: str, kind: Kind = "history", backend: str | None = None, tasks: str | None = None
) -> Report:
    """Run a rollout's cells again in a fresh kernel with the task's capsule and compare their outputs.

    Cells that ran out of time are not compared, since where an interrupt strikes is chance. `Report.differences` is
    empty for a `history` whose code depends on nothing but its capsule and its seed.

    Args:
        run: the run.
        rollout_id: which rollout.
        kind: which of its notebooks.
        backend: where to run; None: where the run did.
        tasks: location of the set of tasks; None: where the run found it.

    Raises:
        UsageError: the task is nowhere to be found.
        KernelStartError: no kernel came up.
    """
    trajectory = run.load(rollout_id)
    task = run.open_task(trajectory.task_id, trajectory.question, tasks)
    limit = trajectory.start["limits"].get("cell_timeout_s")
    limits = Limits(**(trajectory.start.get("session_limits") or {}))
    language = str(trajectory.start["language"])
    spec = SessionSpec(language=language, capsule=task.capsule, seed=task.seed, limits=limits)
    notebook = notebook_at(trajectory, kind=kind)
    _, report = await execute_notebook(notebook, spec, backend or str(trajectory.start["backend"]), limit, run=run.name)
    return report
