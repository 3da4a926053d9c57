"""Every text that the environment says to the agent, in one place. Terse: a model reads each word at every step."""

from __future__ import annotations

from collections.abc import Sequence

ROLE = (
    "You answer a question about data files by running code in a Jupyter notebook. "
    "Each reply calls exactly one tool. Look at the data first; when you know the answer, call submit_answer."
)
ANSWER_ONLY = (
    "You answer a question about data files that you cannot see. Reason briefly if it helps, then give your best "
    "answer, kept short, between <answer> and </answer>."
)
NO_OUTPUT = "(no output)"
EMPTY_FILE = "(empty file)"
EMPTY_FOLDER = "(empty folder)"
RESTARTED = "Kernel restarted: variables are gone, notebook and files stay."
SUBMITTED = "Answer submitted."
MUST_SUBMIT = "Not done: this was the last step and it had to be submit_answer."
LAST_STEP = "Last step: submit your answer."
TIME_UP = "Time is up: submit your answer now."
OUTSIDE = "outside the working directory"
FILE_PROBLEMS: dict[type[Exception], str] = {
    FileNotFoundError: "no such file or folder",
    IsADirectoryError: "a folder; list_dir lists it",
    NotADirectoryError: "not a folder; read_file reads it",
    PermissionError: "not readable",
}
LOST = "All variables are lost; notebook and files stay. The next cell starts a fresh kernel."


def language_name(language: str) -> str:
    """The language as people write it."""
    return {"python": "Python", "r": "R", "bash": "Bash", "julia": "Julia"}.get(language.lower(), language)


def fenced_instruction(language: str) -> str:
    """The whole system message of format `fenced`; a tiny model reads it, so it is a few tokens long."""
    return f"Answer with {language_name(language)}."


def hermes_instruction(schemas: Sequence[str]) -> str:
    """The system message of format `hermes`; `schemas` are the tools' JSON schemas, one line each."""
    listed = "\n".join(schemas)
    return (
        f"{ROLE}\n\n# Tools\n\nThe tools, as JSON schemas:\n<tools>\n{listed}\n</tools>\n\n"
        "To call one, write its name and arguments as a JSON object inside tool_call tags:\n"
        '<tool_call>\n{"name": <tool-name>, "arguments": <arguments-object>}\n</tool_call>'
    )


def listing(names: Sequence[str], most: int = 50) -> str:
    """The line on a capsule's files; '' where there are none."""
    if not names:
        return ""
    more = f", … and {len(names) - most} more" if len(names) > most else ""
    return f"Files: {', '.join(names[:most])}{more}"


def malformed(reason: str) -> str:
    """What the agent reads where its text is no action."""
    return f"Not an action: {reason}{'' if reason.endswith('?') else '.'}"


def cut_off(tokens: int | None) -> str:
    """Reason for a completion that ran into its limit."""
    return f"it was cut off at {tokens} tokens; write less" if tokens else "it was cut off; write less"


def several(number: int) -> str:
    """Reason for more than one action in one reply."""
    return f"there are {number} actions in it; give exactly one"


def no_cell(cell_id: str, known: Sequence[str]) -> str:
    """A cell that is not there."""
    shown = known if len(known) <= 20 else [known[0], "…", *known[-10:]]
    return f"There is no cell {_printable(cell_id[:40])}; there are: {', '.join(shown) or 'none'}."


def not_code(cell_id: str) -> str:
    """A markdown cell that was to be run."""
    return f"{cell_id} is a markdown cell: edit_cell changes it, run_cell without a cell adds a new one."


def timed_out(seconds: float, state_kept: bool) -> str:
    """A cell that ran out of time."""
    after = f"its kernel was killed. {LOST}" if not state_kept else "it was interrupted. Variables are kept."
    return f"The cell ran longer than {seconds:g} s: {after}"


def died(cause: str) -> str:
    """A kernel that a cell took with it."""
    return f"The kernel died{f' ({cause})' if cause else ''}. {LOST}"


def limit_hit(limit: str) -> str:
    """A resource limit that a cell ran into."""
    return f"[limit reached: {limit}]"


def dropped(number: int) -> str:
    """Output beyond the cap."""
    return f"[{number} bytes of output dropped]"


def file_problem(path: str, what: str) -> str:
    """A path that cannot be listed or read."""
    return f"{_printable(path[:200])}: {what}."


def binary(path: str, size: str) -> str:
    """A file that is no text."""
    return f"{_printable(path[:200])} is a binary file ({size}); open it in a cell."


def only_first(size: str) -> str:
    """A file longer than what is read of it."""
    return f"[only the first {size} were read]"


def edited(cell_id: str) -> str:
    """A cell whose text was changed."""
    return f"{cell_id} changed, not run."


def inserted(cell_id: str) -> str:
    """A new code cell."""
    return f"{cell_id} inserted, not run."


def added(cell_id: str) -> str:
    """A new markdown cell."""
    return f"{cell_id} added."


def deleted(cell_id: str) -> str:
    """A cell that is gone."""
    return f"{cell_id} deleted; what it defined stays in memory."


def short(tool: str, subject: str) -> str:
    """An action in one line, for histories: the tool and what it was about, at most 60 characters of it."""
    return " ".join(f"{tool} {_printable(subject[:60])}".split())


def more_entries(number: int) -> str:
    """Entries of a folder that are not listed."""
    return f"… and {number} more"


def steps_left(number: int) -> str:
    """The warning near the end; the last step has its own."""
    return LAST_STEP if number == 1 else f"{number} steps left: submit your answer."


def time_left(seconds: float) -> str:
    """The warning near the end of the time."""
    return f"{max(seconds / 60, 0.1):.2g} minutes left: submit your answer."


def byte_size(number: int) -> str:
    """Bytes as people read them."""
    amount, unit = float(number), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.3g} {unit}" if unit != "B" else f"{number} B"


def _printable(text: str) -> str:
    """The agent's own words, shown back to it: without control characters, which no terminal should get from here."""
    return "".join(character if character.isprintable() else " " for character in text)
