"""What one kernel runs to execute many reference notebooks: self-contained, because its source is sent as a cell."""

from __future__ import annotations


def run_batch(folder: str) -> int:
    """Run the notebooks listed in `folder/jobs.json`, write `folder/results.json`, return their number.

    A job is `{"capsule": subfolder, "cells": [...], "extras": [...]}`. Its cells run in order in a namespace of their
    own with the capsule as the current folder; each extra runs in place of the last cell, in a copy of the namespace
    as it was before that cell. A result is `{"outputs": [...], "extras": [...], "error": text}`, the printed texts;
    the output of an extra that raised is null.
    """
    import contextlib
    import io
    import json
    import os
    import warnings
    from pathlib import Path
    from typing import Any

    warnings.simplefilter("ignore")
    compiled: dict[str, Any] = {}

    def run(source: str, names: dict[str, Any]) -> str:
        code = compiled.get(source)
        if code is None:
            code = compiled[source] = compile(source, "<cell>", "exec")
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, names)
        return out.getvalue()

    def run_job(job: dict[str, Any]) -> dict[str, Any]:
        names: dict[str, Any] = {"__name__": "__main__"}
        outputs: list[str] = []
        extras: list[str | None] = []
        *first, last = job["cells"]
        try:
            for source in first:
                outputs.append(run(source, names))
            before = dict(names)
            outputs.append(run(last, names))
        except Exception as error:
            return {"outputs": outputs, "extras": [], "error": f"{type(error).__name__}: {error}"}
        for source in job["extras"]:
            try:
                extras.append(run(source, dict(before)))
            except Exception:
                extras.append(None)
        return {"outputs": outputs, "extras": extras, "error": ""}

    home, root = Path.cwd(), Path(folder).resolve()
    jobs = json.loads((root / "jobs.json").read_text())
    results = []
    try:
        for job in jobs:
            os.chdir(root / job["capsule"])
            results.append(run_job(job))
    finally:
        os.chdir(home)
    (root / "results.json").write_text(json.dumps(results))
    return len(results)
