"""What is wrong with a run is said before its first stage, in a line, and leaves no run folder behind."""

import pytest
from typer.testing import CliRunner

from nbagent.cli import app
from nbagent.errors import RunFolderError, UsageError
from nbagent.runfolder import RunFolder
from nbagent_training.commands import MOST_SEED
from nbagent_training.readiness import check_ready
from nbagent_training.recipe import TrainRecipe
from nbagent_training.scratch import Size, make_model, make_tokenizer

SMALL = {"vocabulary": 320, "hidden": 32, "layers": 1, "heads": 4, "intermediate": 64}


@pytest.fixture
def folder(tiny, tokenizer, tmp_path):
    tiny.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def checked(folder, *, over=False, **tables):
    agent = {"action_format": "fenced", "max_new_tokens": 16, **tables.pop("agent", {})}
    recipe = TrainRecipe.model_validate({"model": {"folder": str(folder)}, "agent": agent, **tables})
    check_ready(recipe, folder, over=over)


def test_a_recipe_that_can_be_run_passes(folder):
    checked(folder)
    checked(folder, lora={"rank": 4, "targets": ["q_proj"]}, distill={"teacher": str(folder)})


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"agent": {"policy": "dorp"}}, r"agent\.policy: unknown context policy 'dorp'; there are: drop"),
        ({"agent": {"policy_options": {"nope": 1}}}, r"agent\.policy: context policy 'drop': .*nope"),
        ({"agent": {"max_new_tokens": 1020}}, r"agent\.max_new_tokens 1020: leaves \d of the model's 1024 tokens"),
        (
            {"sampler": {"engine": "vllm", "arguments": ["--max-model-len=64"]}},
            r"agent\.max_new_tokens 16: leaves \d+ of the model's 64 tokens",
        ),
        ({"lora": {"rank": 4, "targets": ["q_prj"]}}, r"lora\.targets: .*q_prj"),
        ({"distill": {"teacher": "nowhere"}}, "nowhere: no such model folder"),
    ],
    ids=["policy", "option", "room", "room of a server", "target", "teacher"],
)
def test_refused(folder, tables, said):
    with pytest.raises(UsageError, match=said):
        checked(folder, **tables)


def test_flex_needs_a_gpu(folder, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match=r"grpo\.attention = \"flex\" needs a GPU"):
        checked(folder, grpo={"attention": "flex"})


def test_a_run_to_learn_from_that_is_not_there_or_of_another_kind(folder, tmp_path):
    grpo = {"from_run": str(tmp_path / "none"), "loss": {"old": "sampler"}}
    with pytest.raises(RunFolderError, match="no such folder"):
        checked(folder, grpo=grpo)
    with pytest.raises(RunFolderError, match="no such folder"):
        checked(folder, warm_start={"steps": 3, "from_run": str(tmp_path / "none")})
    RunFolder.create(tmp_path / "none", 'mode = "open"\n')
    with pytest.raises(UsageError, match="of another kind"):
        checked(folder, grpo=grpo)


def test_a_teacher_that_takes_less_than_the_longest_row_or_knows_other_ids(folder, tokenizer, tmp_path):
    short = tmp_path / "short"
    make_model(tokenizer, Size(**SMALL, positions=512), 0).save_pretrained(short)
    tokenizer.save_pretrained(short)
    with pytest.raises(UsageError, match="the teacher takes 512 tokens, and rows may have 1024"):
        checked(folder, distill={"teacher": str(short)})
    sampler = {"engine": "vllm", "arguments": ["--max-model-len", "512"]}
    checked(folder, distill={"teacher": str(short)}, sampler=sampler)
    make_tokenizer(["for x in range(9): pass\n" * 9], 280).save_pretrained(short)
    with pytest.raises(UsageError, match="tokenizer is not the student's"):
        checked(folder, distill={"teacher": str(short)}, sampler=sampler)


def test_what_only_grpo_needs_is_not_looked_at_once_it_is_over(folder):
    checked(folder, over=True, distill={"teacher": "gone"})


def test_answers_need_room_only_where_rollouts_are_made(folder):
    checked(folder, agent={"max_new_tokens": 1024}, grpo={"updates": 0}, tasks={"n_heldout": 0})


def test_a_model_from_scratch_has_the_room_of_its_size():
    tables = {"agent": {"max_new_tokens": 500}, "warm_start": {"steps": 1}}
    check_ready(TrainRecipe.model_validate(tables), None)
    with pytest.raises(UsageError, match=r"leaves \d+ of the model's 512 tokens"):
        check_ready(TrainRecipe.model_validate({**tables, "model": {"scratch": {"positions": 512}}}), None)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["q_prj"], r"lora\.targets: .*q_prj"),
        (["q_proj", "lm_head"], r"lora\.targets: lm_head is the output layer"),
        (["q_proj", "embed_tokens"], r"lora\.targets: embed_tokens is the output layer"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_adapters_that_a_model_from_scratch_has_no_layer_for(targets, said):
    """Known from its shape; the tokenizer, the model and a warm start of hours are yet to be made."""
    tables = {"warm_start": {"steps": 1}, "agent": {"max_new_tokens": 100}}
    check_ready(TrainRecipe.model_validate({**tables, "lora": {"rank": 4, "targets": ["q_proj", "down_proj"]}}), None)
    check_ready(TrainRecipe.model_validate({**tables, "lora": {"rank": 4}}), None)
    recipe = TrainRecipe.model_validate({**tables, "lora": {"rank": 4, "targets": targets}})
    with pytest.raises(UsageError, match=said):
        check_ready(recipe, None)
    check_ready(recipe, None, over=True)


def test_the_command_ends_with_2_and_the_folder_is_free_for_the_recipe_put_right(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.toml").write_text(
        f'[model]\nfolder = "{folder}"\n[agent]\naction_format = "fenced"\nmax_new_tokens = 1020\nbackend = "fork"\n'
    )
    made = CliRunner().invoke(app, ["train", "r.toml", "--out", "out"])
    assert made.exit_code == 2
    assert "agent.max_new_tokens 1020: leaves" in made.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("command", "most"), [("demo", MOST_SEED), ("score", (1 << 31) - 1)])
def test_a_seed_out_of_range_is_said_before_anything_is_made(command, most, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, said in ((-1, "greater than or equal to 0"), (most + 1, f"less than or equal to {most}")):
        made = CliRunner().invoke(app, [command, "--seed", str(seed), "--out", "out"])
        assert made.exit_code == 2
        assert "'--seed'" in made.stderr
        assert said in " ".join(made.stderr.replace("│", " ").split())
        assert not (tmp_path / "out").exists()
    assert 3 * MOST_SEED + 2 < 1 << 31, "the largest seed of a set of tasks"
