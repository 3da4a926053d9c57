"""What of a history matters most: the newest output, the newest error that still stands, the newest memory."""

from __future__ import annotations

from collections.abc import Sequence

from nbagent_context.types import Exchange, History, Memory, Notebook


def memories_of(history: History) -> list[Memory]:
    """The memories of a history, oldest first."""
    return [entry for entry in history if isinstance(entry, Memory)]


def newest_error(exchanges: Sequence[Exchange], notebook: Notebook) -> Exchange | None:
    """The last step that failed and was not mended: nothing was done to its cell since, and the cell is there.

    What was no action is mended by the step after it.
    """
    there = {cell["id"] for cell in notebook["cells"]}
    touched: set[str] = set()
    for exchange in reversed(exchanges):
        if exchange.failed:
            stands = exchange.cell_id in there and exchange.cell_id not in touched
            if stands or exchange is exchanges[-1]:
                return exchange
        touched.add(exchange.cell_id)
    return None


def newest_output(exchanges: Sequence[Exchange], notebook: Notebook) -> Exchange | None:
    """The last step that ran a cell whose outputs the notebook has."""
    with_output = {cell["id"] for cell in notebook["cells"] if cell.get("outputs")}
    return next((e for e in reversed(exchanges) if e.tool == "run_cell" and e.cell_id in with_output), None)
