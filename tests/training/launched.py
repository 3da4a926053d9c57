"""A small run as the command line makes it, alone or as one of several processes: run by test_processes.py."""

import os
import sys
from pathlib import Path

from lives import teach
from rich.console import Console
from test_resume import RECIPE, questions

from nbagent.recipe import load_recipe
from nbagent_training import commands
from nbagent_training.recipe import TrainRecipe

if __name__ == "__main__":
    folder, processes = Path(sys.argv[1]), os.environ.get("WORLD_SIZE", "1")
    if processes == "1":
        # The run of one process comes first, and makes what both need.
        questions(folder)
        teach(folder / "model")
        short = (
            RECIPE.format(folder=folder)
            .replace("updates = 5", "updates = 2")
            .replace("group_size = 4", "group_size = 6")
        )
        (folder / "recipe.toml").write_text(short)
    commands._run(load_recipe(folder / "recipe.toml", TrainRecipe), folder / processes, False, Console(stderr=True))
