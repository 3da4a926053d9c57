"""Settings of a training recipe that would do nothing are refused when it is read."""

from importlib.metadata import entry_points

import pytest

from nbagent.errors import RecipeError
from nbagent.recipe import load_recipe, to_toml
from nbagent_training.recipe import WITHOUT_MEMORIES, TrainRecipe

MODEL = '[model]\nfolder = "m"\n'
REFUSED = {
    MODEL + '[warm_start]\nfrom_run = "runs/x"': "from_run does nothing: there is no warm start without steps",
    MODEL + '[warm_start]\nkeep = "all"': "keep does nothing: there is no warm start without steps",
    MODEL + "[warm_start]\nmuon_lr = 1e-4": "muon_lr does nothing",
    MODEL + '[warm_start]\nsteps = 5\norder = "random"': "order does nothing: it is of the rollouts of from_run",
    MODEL + '[tasks]\ntrain = "a"\nn_train = 3': "n_train does nothing: it is of bundled tasks",
    MODEL + '[tasks]\nheldout = "a"\nn_heldout = 20': "n_heldout does nothing: it is of bundled tasks",
    MODEL + '[warm_start]\nsteps = 5\n[tasks]\ndemonstrations = "a"\nflawed = 0.5': "flawed does nothing",
    MODEL + '[tasks]\ndemonstrations = "a"': "tasks.demonstrations does nothing",
    MODEL + "[tasks]\nflawed = 0.5": "tasks.flawed does nothing",
    MODEL + '[warm_start]\nsteps = 5\nfrom_run = "r"\n[tasks]\ndemonstrations = "a"': "tasks.demonstrations does",
    MODEL + "scratch = { layers = 3 }": "scratch does nothing",
    MODEL + "[lora]\nrank = 4\n[grpo]\nupdates = 0": "lora.rank does nothing",
    MODEL + "[lora]\nrank = 4\n[warm_start]\nsteps = 3\nmuon_lr = 1e-4": "warm_start.muon_lr does nothing",
    MODEL + '[distill]\nteacher = "t"\n[grpo]\nupdates = 0': "distill.teacher does nothing",
    MODEL + "[grpo]\nsummary_weight = 0.5": 'summary_weight does nothing: policy "drop" has no memories',
}


def read(tmp_path, text):
    (tmp_path / "r.toml").write_text(text + "\n")
    return load_recipe(tmp_path / "r.toml", TrainRecipe)


@pytest.mark.parametrize("text", REFUSED, ids=REFUSED.values())
def test_refused(text, tmp_path):
    with pytest.raises(RecipeError) as refused:
        read(tmp_path, text)
    assert REFUSED[text] in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        MODEL + '[warm_start]\nsteps = 5\nfrom_run = "r"\nkeep = "all"\nper_task = 2\norder = "random"\nmuon_lr = 1e-4',
        MODEL
        + '[tasks]\ntrain = "a"\nfilter = "f"\n[grpo]\nfrom_run = "r"\ngroup_size = 4\nloss = { old = "sampler" }',
        "[warm_start]\nsteps = 5\n[tasks]\nflawed = 0.5\nn_train = 9",
        MODEL + "[lora]\nrank = 4\n[warm_start]\nsteps = 3\nadamw_lr = 1e-4\n[grpo]\nupdates = 0",
        MODEL + '[agent]\npolicy = "summarize"\n[grpo]\nsummary_weight = 0.5',
        MODEL + '[agent]\npolicy = "somebodys"\n[grpo]\nsummary_weight = 0.0',
        MODEL + '[grpo]\nfrom_run = "r"\nsummary_weight = 0.5\nloss = { old = "sampler" }',
        MODEL,
    ],
    ids=[
        "rejection sampling",
        "the recipe that made the rollouts",
        "from nothing",
        "a warm start of adapters",
        "memories",
        "perhaps memories",
        "recorded memories",
        "defaults",
    ],
)
def test_what_does_something_is_taken_and_so_is_the_resolved_recipe(text, tmp_path):
    recipe = read(tmp_path, text)
    assert read(tmp_path, to_toml(recipe.model_dump(mode="json"))) == recipe


def test_of_our_policies_only_summarize_has_memories():
    ours = {p.name for p in entry_points(group="nbagent.context_policies") if p.module.startswith("nbagent_context.")}
    assert ours - set(WITHOUT_MEMORIES) == {"summarize"}
