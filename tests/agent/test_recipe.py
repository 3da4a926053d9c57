import tomllib
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from nbagent.errors import RecipeError, UsageError
from nbagent.recipe import Recipe, load_recipe, to_toml, write_recipe


class Optimizer(Recipe):
    learning_rate: float = Field(1e-3, gt=0)
    """Step size; 1e-3 suits LoRA."""
    schedule: Literal["linear", "cosine"] = "linear"


class Training(Recipe):
    tasks: str
    seed: int = 0
    note: str | None = None
    optimizer: Optimizer | None = None
    families: tuple[str, ...] = ()


GOOD = 'tasks = "somewhere"\n\n[optimizer]\n# how fast\nlearning_rate = 0.01\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            GOOD.replace("learning_rate", "lerning_rate"),
            "r.toml:5: unknown key 'lerning_rate' in [optimizer]; did you mean 'learning_",
        ),
        (GOOD + "\n[optimiser]\nx = 1\n", "r.toml:7: unknown key 'optimiser'; did you mean 'optimizer'?"),
        (
            'tasks = "a"\nzzz = 1\n',
            "r.toml:2: unknown key 'zzz'; there are: families, note, optimizer, seed, tasks",
        ),
        (
            GOOD.replace("0.01", "-0.01"),
            "r.toml:5: optimizer.learning_rate = -0.01: should be greater than 0",
        ),
        (
            GOOD + 'schedule = "cosin"\n',
            "r.toml:6: optimizer.schedule = 'cosin': should be 'linear' or 'cosine'; did you m",
        ),
        ("seed = 3\n", "r.toml:1: the key 'tasks' is missing"),
        ('task = "a"\n', "r.toml:1: unknown key 'task'; did you mean 'tasks'? (and 1 more)"),
        ('tasks = "a"\nseed = = 3\n', "r.toml:2: not TOML: Invalid value"),
        ('tasks = "a', "r.toml:1: not TOML: "),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path.relative_to(tmp_path), Training)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UsageError)


@pytest.mark.parametrize("kind", ["missing", "folder", "binary"])
def test_a_file_that_is_no_recipe_says_so(tmp_path, kind):
    path = tmp_path / "r.toml"
    if kind == "folder":
        path.mkdir()
    if kind == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"r\.toml: .*TOML file"):
        load_recipe(path, Training)


def test_a_written_recipe_is_read_back_equal(tmp_path):
    recipe = Training(tasks='a "b"\n\\', seed=4, optimizer=Optimizer(schedule="cosine"), families=("x", "y"))
    write_recipe(recipe, tmp_path / "r.toml")
    assert load_recipe(tmp_path / "r.toml", Training) == recipe
    assert load_recipe(tmp_path / "r.toml", Training).seed == 4


def test_a_loaded_recipe_cannot_change(tmp_path):
    (tmp_path / "r.toml").write_text(GOOD)
    recipe = load_recipe(tmp_path / "r.toml", Training)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 5


def test_field_docstrings_become_descriptions():
    assert Optimizer.model_fields["learning_rate"].description == "Step size; 1e-3 suits LoRA."


plain = st.text(st.characters(exclude_categories=["Cs"])) | st.integers(-(2**60), 2**60) | st.booleans()
plain |= st.floats(allow_nan=False)
tables = st.recursive(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), plain | st.lists(plain, max_size=3)),
    lambda inner: st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner),
    max_leaves=4,
)


@given(tables)
def test_any_table_survives_toml(table):
    assert tomllib.loads(to_toml(table)) == table
