"""Made-up attempts: histories and the notebooks that they leave, as an environment would make them."""

from hypothesis import strategies as st

from nbagent_context import Brief, Exchange, Memory, text_of

BRIEF = Brief("Answer with Python.", "How many?\nFiles: a.csv")
NOTICE = "2 steps left: submit your answer."
FILLER = st.sampled_from(
    ["", "x", "0.12 3.4\n" * 40, "y" * 5000, "ü漢🙂\n" * 30, "a,b,c\t\x1b[31m\r\n" * 50, "\n" * 90]
)
KINDS = ["run", "run", "run", "error", "again", "mend", "edit", "read", "malformed", "delete", "markdown", "lost"]


def stream(text):
    return {"output_type": "stream", "name": "stdout", "text": text}


def code_cell(number, source, outputs, count=None):
    return {
        "id": f"c{number}",
        "cell_type": "code",
        "source": source,
        "metadata": {},
        "execution_count": number if count is None else count,
        "outputs": outputs,
    }


def notebook_of(cells):
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


class Story:
    """An attempt that is made up step by step."""

    def __init__(self):
        self.cells, self.history, self.made, self.steps = [], [], 0, 0

    @property
    def notebook(self):
        return notebook_of(self.cells)

    def tell(self, kind, filler="", thought=""):
        step, code = self.steps, [cell for cell in self.cells if cell["cell_type"] == "code"]
        mark = f"OUT{step}."
        if kind in ("run", "error", "lost") or (kind in ("again", "mend", "edit", "delete") and not code):
            kind = kind if kind in ("error", "lost") else "run"
            self.made += 1
            cell = code_cell(self.made, f"print({step})\n{filler}", [])
            self.cells.append(cell)
            self.ran(cell, kind, mark, filler, thought)
        elif kind in ("again", "mend"):
            cell = code[-1] if kind == "mend" else code[len(code) // 2]
            cell["source"] = f"print({step})"
            self.ran(cell, "run", mark, filler, thought)
        elif kind == "edit":
            code[-1] |= {"source": f"edited({step})", "outputs": [], "execution_count": None}
            self.add("edit_cell", f"{mark} changed, not run.", code[-1]["id"], short=f"edit_cell {code[-1]['id']}")
        elif kind == "delete":
            self.cells.remove(code[0])
            self.add("delete_cell", f"{mark} deleted", short=f"delete_cell {code[0]['id']}")
        elif kind == "markdown":
            self.made += 1
            self.cells.append({"id": f"c{self.made}", "cell_type": "markdown", "source": f"# {filler}", "metadata": {}})
            self.add("add_markdown", f"{mark} added.", f"c{self.made}", short=f"add_markdown c{self.made}")
        elif kind == "read":
            self.add("read_file", f"{mark}\n{filler}", short="read_file a.csv")
        else:
            self.add("", f"Not an action: {mark}", failed=True, thought=thought)

    def ran(self, cell, kind, mark, filler, thought):
        cell["execution_count"] = int(cell["id"][1:])
        error = {"output_type": "error", "ename": "ValueError", "evalue": f"{mark}", "traceback": []}
        cell["outputs"] = [stream(f"{mark}\n{filler}"), *([error] if kind == "error" else [])] if kind != "lost" else []
        answer = f"{mark}\n{filler}" + (f"\nValueError: {mark}" if kind == "error" else "")
        if kind == "lost":
            answer = f"The kernel died {mark}"
        self.add(
            "run_cell", answer, cell["id"], kind != "lost", f"run_cell {cell['id']}", thought, kind in ("error", "lost")
        )

    def add(self, tool, answer, cell="", shown=False, short="", thought="", failed=False):
        text = f"{thought}<call {self.steps}>"
        self.history.append(Exchange(self.steps, text, tool, answer, cell, shown, short, thought, failed))
        self.steps += 1

    def again(self):
        """The same, with a history of its own to add to."""
        other = Story()
        other.cells, other.history, other.made, other.steps = self.cells, list(self.history), self.made, self.steps
        return other

    def remember(self, request, text):
        self.history.append(Memory(text, request.covers, self.steps))


def shown(window):
    return "\n".join(text_of(m) for m in window.messages)


def told(steps):
    story = Story()
    for kind, filler, thought in steps:
        story.tell(kind, filler, thought)
    return story


stories = st.lists(st.tuples(st.sampled_from(KINDS), FILLER, st.sampled_from(["", "", "I think."])), max_size=40).map(
    told
)


def plain_story(n, filler="x" * 40):
    return told([("run", filler, "")] * n)
