"""Bundled recipes: they are valid, and the memory arithmetic in their heads holds."""

import re
from functools import cache

import pytest
from typer.testing import CliRunner

from nbagent.cli import app
from nbagent.recipe import load_recipe, write_recipe
from nbagent_training.bundled_recipes import bundled_recipes, recipe_path
from nbagent_training.recipe import TrainRecipe

RUN = CliRunner()
LARGE = sorted(name for name in bundled_recipes() if name.startswith("qwen3-"))
FACTORS = re.compile(r"((?:[\d.]+(?:e9)? (?:\w+ )?x )+)([\d.]+)(e9)? B(?: x (\d+))? = ([\d.]+) (GB|B)")


@pytest.mark.parametrize("name", bundled_recipes())
def test_a_bundled_recipe_is_valid_and_its_first_line_says_what_it_is(name):
    path = bundled_recipes()[name]
    load_recipe(path, TrainRecipe)
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("name", bundled_recipes())
def test_its_resolved_recipe_loads_again(name, tmp_path):
    """With every default written out: a run folder's recipe is read by `export` and by those who copy it."""
    recipe = load_recipe(bundled_recipes()[name], TrainRecipe)
    write_recipe(recipe, tmp_path / "recipe.toml")
    assert load_recipe(tmp_path / "recipe.toml", TrainRecipe) == recipe


def test_sizes_for_one_card_and_for_a_node_are_there():
    assert {"qwen3-0.6b-full", "qwen3-0.6b-lora", "qwen3-4b-lora", "qwen3-8b-lora"} <= set(LARGE)
    assert {"qwen3-0.6b-node", "qwen3-4b-node", "qwen3-8b-node"} <= set(LARGE)


def shapes(head):
    found = {name: int(value) for name, value in re.findall(r"(\w+) (\d+)[,.]", head.partition("parameters")[0])}
    return {**found, "tied": "embeddings tied" in head}


@pytest.mark.parametrize("name", LARGE)
def test_parameters_are_those_of_a_model_of_the_shapes_named(name):
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    head = bundled_recipes()[name].read_text()
    named = shapes(head)
    config = Qwen3Config(
        vocab_size=named["vocabulary"],
        hidden_size=named["hidden"],
        num_hidden_layers=named["layers"],
        num_attention_heads=named["heads"],
        num_key_value_heads=named["kv_heads"],
        head_dim=named["head_dim"],
        intermediate_size=named["intermediate"],
        tie_word_embeddings=named["tied"],
    )
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    said = float(re.search(r"([\d.]+)e9 parameters", head)[1])
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(said, abs=6e-4)
    recipe = load_recipe(bundled_recipes()[name], TrainRecipe)
    if recipe.lora.rank:
        linear = [m for m in model.model.modules() if isinstance(m, torch.nn.Linear)]
        adapters = sum(recipe.lora.rank * (m.in_features + m.out_features) for m in linear)
        assert adapters / 1e9 == pytest.approx(float(re.search(r"layers: ([\d.]+)e9", head)[1]), abs=6e-5)


def saved_bytes(shape, scale, layers, length, rank):
    """Bytes that a forward pass of one row keeps for the backward pass, parameters left out."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from nbagent_training.attention import forest_of, use_own_attention
    from nbagent_training.lora import add_lora
    from nbagent_training.loss_settings import Lora
    from nbagent_training.packing import pack
    from nbagent_training.scores import scoring, unseen

    config = Qwen3Config(
        vocab_size=64,
        hidden_size=shape["hidden"] // scale,
        num_hidden_layers=layers,
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_dim"] // scale,
        intermediate_size=shape["intermediate"] // scale,
        tie_word_embeddings=True,
    )
    base = Qwen3ForCausalLM(config)
    model = add_lora(base, Lora(rank=rank // scale)) if rank else base
    use_own_attention(model)
    model.train()
    row = (tuple(i % 64 for i in range(length - 8)), tuple(range(8)))
    tree = pack([row], completions=True)
    where = torch.tensor([place for path in tree.paths for place in path[:-1]])
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        scoring(base, where, torch.tensor(row[1]), 1.0),
        torch.autocast("cpu", torch.bfloat16),
    ):
        graph = model(
            input_ids=torch.tensor([tree.ids]),
            attention_mask=unseen(torch.device("cpu")),
            position_ids=torch.tensor([tree.positions]),
            use_cache=False,
            forest=forest_of(tree, torch.device("cpu")),
        ).logits
    assert graph.requires_grad
    return sum(kept.values())


@cache
def layer_bytes(shape, rank):
    """Bytes a token and layer that are kept, measured on models of a sixteenth and a thirty-second of the width.

    What a token takes is linear in the width, with a constant for the norms. Of the row's length the bytes are a
    polynomial: a constant are autocast's copies of weights, and quadratic are a CPU's attention weights, which a GPU's
    kernels do not keep; the linear term is what is asked for.
    """

    def linear(scale):
        one, two, three = (
            saved_bytes(dict(shape), scale, 2, length, rank) - saved_bytes(dict(shape), scale, 1, length, rank)
            for length in (48, 96, 144)
        )
        return ((two - one) - 3 * (three - 2 * two + one) / 2) / 48

    wide, narrow = linear(16), linear(32)
    return 32 * (wide - narrow) + 2 * narrow - wide


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_activations_are_as_large_as_those_measured(name):
    head = bundled_recipes()[name].read_text()
    recipe = load_recipe(bundled_recipes()[name], TrainRecipe)
    measured = layer_bytes(tuple(shapes(head).items()), recipe.lora.rank)
    if recipe.grpo.recompute:
        said = int(re.search(r"inside, with its gradients .*? x (\d+) B", head)[1])
        assert 1.2 * measured < said < 2 * measured, measured
    else:
        said = int(re.search(r"of all layers .* x (\d+) B", head)[1])
        assert said == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("name", LARGE)
def test_every_product_and_sum_in_the_head_holds(name):
    text = bundled_recipes()[name].read_text()
    head = " ".join(line.lstrip("#") for line in text.splitlines() if line.startswith("#"))
    head = re.sub(r" +", " ", head)
    products = FACTORS.findall(head)
    assert len(products) >= 7
    for factors, size, billions, times, total, unit in products:
        value = float(size) * (1e9 if billions else 1) * float(times or 1)
        for number, more in re.findall(r"([\d.]+)(e9)?(?: \w+)? x ", factors):
            value *= float(number) * (1e9 if more else 1)
        assert value / (1e9 if unit == "GB" else 1) == pytest.approx(float(total), abs=0.051), (factors, total)
    lines = [line for line in text.splitlines() if line.startswith("#   ") and " x " in line and "scratch" not in line]
    listed = [float(line.rsplit(" = ", 1)[1].split()[0]) for line in lines]
    together, card = map(float, re.search(r"Together ([\d.]+) of ([\d.]+) GB", head).groups())
    recipe = load_recipe(bundled_recipes()[name], TrainRecipe)
    arguments = dict(zip(recipe.sampler.arguments[::2], recipe.sampler.arguments[1::2], strict=True))
    share = float(arguments["--gpu-memory-utilization"])
    assert f"{share} x {card:.1f} = {share * card:.1f} GB" in head
    shared = not recipe.sampler.devices
    assert sum(listed) + shared * share * card == pytest.approx(together, abs=0.11)
    assert together < card
    assert recipe.grpo.token_budget >= int(arguments["--max-model-len"]), "the longest row fits into a micro-batch"


def test_recipes_are_listed_printed_and_named(tmp_path, monkeypatch):
    listed = RUN.invoke(app, ["recipes"])
    assert [line.split()[0] for line in listed.output.splitlines()] == sorted(bundled_recipes())
    printed = RUN.invoke(app, ["recipes", "qwen3-4b-lora"])
    assert printed.output == bundled_recipes()["qwen3-4b-lora"].read_text()
    unknown = RUN.invoke(app, ["recipes", "qwen3-4b-laro"])
    assert (unknown.exit_code, "did you mean 'qwen3-4b-lora'?" in unknown.stderr) == (2, True)
    monkeypatch.chdir(tmp_path)
    assert recipe_path("demo") == bundled_recipes()["demo"]
    (tmp_path / "demo").write_text("seed = 1\n")
    assert str(recipe_path("demo")) == "demo", "a file goes first"
    assert str(recipe_path("mine.toml")) == "mine.toml"
