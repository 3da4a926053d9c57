"""A process that lives a training run again and again: it imports the heavy libraries once and forks for each life.

Every line on its stdin is a life, `{"recipe": ..., "out": ..., "death": [place, number]}`: the run begins or goes on,
and sends itself SIGKILL at the numbered visit of the place. Answers with the exit status; -9 is a kill. What the
command line would say goes to said.txt beside the recipe. Some places are no deaths: `sigterm` at a call, `server`,
where no call is answered from an update on, and `refresh` and `teacher`, where one visit raises.
"""

import json
import os
import random
import signal
import sys
import traceback
from pathlib import Path

import torch
from rich.console import Console

from nbagent import rollout
from nbagent.cli_errors import ending
from nbagent.errors import ModelError
from nbagent.models.hf import HFModel
from nbagent.recipe import load_recipe
from nbagent.runfolder import RunFolder
from nbagent.trajectory import Recorder
from nbagent_training import commands, distill, journal, learn, run  # noqa: F401  (imported before the forks)
from nbagent_training.recipe import TrainRecipe
from nbagent_training.scratch import Size, make_model, make_tokenizer

ANSWERS = ("```python\nprint(1)\n```", "<answer>1</answer>", "<answer>2</answer>")


def teach(folder):
    """A model that runs a cell, answers 1 or answers 2, each a third of the time, whatever it is asked."""
    torch.manual_seed(0)
    rng = random.Random(0)
    tokenizer = make_tokenizer([*ANSWERS] * 20, 320)
    model = make_model(tokenizer, Size(vocabulary=320, hidden=32, layers=1, heads=4, intermediate=64), 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        length = rng.choice((8, 60, 240))
        completions = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in ANSWERS]
        ids = torch.full((len(ANSWERS), length + max(map(len, completions))), tokenizer.pad_token_id)
        labels = torch.full_like(ids, -100)
        for row, completion in enumerate(completions):
            ids[row, :length] = torch.randint(0, len(tokenizer), (length,))
            place = slice(length, length + len(completion))
            ids[row, place] = labels[row, place] = torch.tensor(completion)
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return 0


def visit(owner, name, act, number=1, only=lambda *args: True):
    """Have `act` done before the numbered call of a method."""
    original, visits = getattr(owner, name), iter(range(1, 1 << 30))

    def visited(*args, **kwargs):
        if only(*args) and next(visits) == number:
            act(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, visited)


def arm(place, number):
    """Have this process end at the numbered visit of a place; half-written files are left as they are."""

    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    def half_an_event(recorder, kind, **fields):
        os.write(recorder._file, b'{"v":1,"t":0.1,"kind":"call","st')
        die()

    def half_a_line(folder, metrics):
        with folder.metrics.open("a") as file:
            file.write('{"phase": "grpo", "st')
        die()

    def half_a_file(value, path, *more, **options):
        Path(path).write_bytes(b"PK\x03\x04 half")
        die()

    def half_a_folder(training, name, model, tokenizer):
        model.save_pretrained(training._folder(f"{name}.part"))
        die()

    def terminate(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)

    def refuse(model, batch):
        raise ConnectionError("the server is gone")

    def lost(*args):
        raise ModelError("the server is gone")

    def is_call(recorder, kind):
        return kind == "call"

    if place == "call":
        visit(Recorder, "record", half_an_event, number, is_call)
    elif place == "sigterm":
        visit(Recorder, "record", terminate, number, is_call)
    elif place == "update":
        visit(torch.optim.AdamW, "step", die, number)
    elif place == "metrics":
        visit(RunFolder, "log_metrics", half_a_line, number)
    elif place == "checkpoint":
        visit(torch, "save", half_a_file, number)
    elif place == "final":
        visit(run.TrainingRun, "_save", half_a_folder, number)
    elif place == "refresh":
        visit(HFModel, "refresh", lost, number)
    elif place == "teacher":
        visit(distill.FolderTeacher, "logprobs", lost, number)
    elif place == "server":
        rollout.RETRY_S = 0.01
        original = HFModel._run
        HFModel._run = lambda model, batch: (refuse if model.version >= number else original)(model, batch)


def live(life):
    # Of random states, which a process that is started anew has not in common with others.
    torch.seed()
    random.seed()
    out = Path(life["out"])
    if death := life.get("death"):
        arm(*death)
    with (Path(life["recipe"]).parent / "said.txt").open("a") as said:
        try:
            commands._run(
                load_recipe(Path(life["recipe"]), TrainRecipe), out, out.exists(), Console(file=said, width=500)
            )
        except BaseException as error:
            end = ending(error)
            if end is None:
                raise
            said.write(f"nbagent: {end.line}\n")
            return end.status
    return 0


def main():
    torch.set_num_threads(1)
    for line in sys.stdin:
        life = json.loads(line)
        child = os.fork()
        if not child:
            status = 1
            try:
                status = teach(Path(life["teach"])) if "teach" in life else live(life)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(ended), flush=True)


if __name__ == "__main__":
    main()
