"""Checkpoints as plain model folders."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from nbagent.agent import Agent, agent_beside
from nbagent.cli import app
from nbagent.errors import ModelFolderError, RunFolderError, UsageError
from nbagent.models.hf import load
from nbagent.models.opening import check_folder
from nbagent.recipe import load_recipe, to_toml
from nbagent.runfolder import RunFolder
from nbagent_training.export import export
from nbagent_training.lora import add_lora
from nbagent_training.loss_settings import Lora
from nbagent_training.recipe import TrainRecipe

IDS = torch.tensor([[5, 9, 60, 77, 12, 200, 31]])
RUN = CliRunner()


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.fixture
def run(base, tmp_path):
    """A training run of that model, as far as an export looks at one."""
    path = tmp_path / "run"
    path.mkdir()
    recipe = TrainRecipe.model_validate({"model": {"folder": str(base)}, "agent": {"action_format": "fenced"}})
    (path / "recipe.toml").write_text(to_toml(recipe.model_dump(mode="json")))
    return path


def adapted(base, folder):
    """LoRA adapters that change something, saved; the adapted model."""
    torch.manual_seed(0)
    model = add_lora(load(base)[0], Lora(rank=4, alpha=8))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    model.save_pretrained(folder)
    return model


def test_merged_adapters_give_the_adapted_models_logits(base, run, tmp_path):
    model = adapted(base, run / "checkpoints" / "final")
    out = export(run, tmp_path / "out")
    check_folder(out)
    merged, tokenizer = load(out)
    torch.testing.assert_close(logits(merged), logits(model), atol=1e-4, rtol=1e-4)
    assert (logits(merged) - logits(load(base)[0])).abs().max() > 0.1
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert tokenizer.chat_template
    assert agent_beside(str(out)).action_format == "fenced"


@pytest.fixture
def warmed(base, tiny, tokenizer, tmp_path, monkeypatch):
    """A run with a warm start, its checkpoints, named as `--out runs/mine` does; the adapted warm model."""
    monkeypatch.chdir(tmp_path)
    path = Path("runs/mine")
    path.mkdir(parents=True)
    recipe = {"model": {"folder": str(base)}, "warm_start": {"steps": 3}, "lora": {"rank": 4}}
    (path / "recipe.toml").write_text(to_toml(TrainRecipe.model_validate(recipe).model_dump(mode="json")))
    with torch.no_grad():
        for weight in tiny.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    tiny.save_pretrained(path / "checkpoints" / "warm")
    tokenizer.save_pretrained(path / "checkpoints" / "warm")
    for name in ("adapter", "grpo/checkpoint-4"):
        model = adapted(path / "checkpoints" / "warm", path / "checkpoints" / name)
    return path, model


def test_adapters_are_merged_into_the_warm_start_of_their_run_wherever_it_lies(warmed, base, tmp_path):
    path, model = warmed
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / "moved")
    for name in ("adapter", "grpo/checkpoint-4"):
        out = export(moved, tmp_path / name.replace("/", "-"), checkpoint=name)
        torch.testing.assert_close(logits(load(out)[0]), logits(model), atol=1e-4, rtol=1e-4)
    alone = export(moved / "checkpoints" / "adapter", tmp_path / "alone")
    torch.testing.assert_close(logits(load(alone)[0]), logits(model), atol=1e-4, rtol=1e-4)
    # Another run where the adapters say: its warm start is not theirs.
    shutil.copytree(base, "runs/mine/checkpoints/warm")
    out = export(moved, tmp_path / "again", checkpoint="adapter")
    torch.testing.assert_close(logits(load(out)[0]), logits(model), atol=1e-4, rtol=1e-4)
    (moved / "checkpoints" / "warm").rename(tmp_path / "gone")
    with pytest.raises(ModelFolderError, match=r"moved/checkpoints/warm: is not there, and the adapters of"):
        export(moved, tmp_path / "none", checkpoint="adapter")
    assert not (tmp_path / "none").exists()


def test_adapters_of_a_warm_start_and_of_a_run_without_one_belong_to_the_model_that_was_given(warmed, base, tmp_path):
    path, _ = warmed
    model = adapted(base, path / "checkpoints" / "sft" / "checkpoint-2")
    out = export(path, tmp_path / "sft", checkpoint="sft/checkpoint-2")
    torch.testing.assert_close(logits(load(out)[0]), logits(model), atol=1e-4, rtol=1e-4)
    # Begun with another run's last stage, whose path looks like one of its own.
    given = path / "checkpoints" / "warm"
    recipe = TrainRecipe.model_validate({"model": {"folder": str(given)}, "lora": {"rank": 4}})
    second = tmp_path / "second"
    second.mkdir()
    (second / "recipe.toml").write_text(to_toml(recipe.model_dump(mode="json")))
    model = adapted(given, second / "checkpoints" / "adapter")
    out = export(second, tmp_path / "out", checkpoint="adapter")
    torch.testing.assert_close(logits(load(out)[0]), logits(model), atol=1e-4, rtol=1e-4)


def test_precision_is_the_bases_or_the_one_that_is_named(tiny, tokenizer, run, tmp_path):
    half = tmp_path / "base"
    tiny.to(torch.bfloat16).save_pretrained(half)
    model = adapted(half, run / "checkpoints" / "final")
    saved = export(run, tmp_path / "a")
    assert json.loads((saved / "config.json").read_text())["dtype"] == "bfloat16"
    wide = export(run, tmp_path / "b", dtype="float32")
    assert json.loads((wide / "config.json").read_text())["dtype"] == "float32"
    torch.testing.assert_close(logits(load(wide)[0]), logits(model), atol=1e-4, rtol=1e-4)
    # One rounding of the merged weights to eight bits of mantissa.
    assert (logits(load(saved)[0]) - logits(model)).abs().max() < 0.1 * logits(model).abs().max()
    with pytest.raises(UsageError, match="float32, bfloat16, float16"):
        export(run, tmp_path / "c", dtype="int4")


def test_the_last_stage_is_taken_or_the_one_named(base, tiny, run, tokenizer, tmp_path):
    for name, value in (("warm", 0.5), ("grpo/checkpoint-4", 0.25)):
        folder = run / "checkpoints" / name
        torch.nn.init.constant_(tiny.model.norm.weight, value)
        tiny.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    Agent(max_steps=7).write_beside(run / "checkpoints" / "warm")
    made = RUN.invoke(app, ["export", str(run), "--out", str(tmp_path / "a")])
    assert made.exit_code == 0, made.output + made.stderr
    assert load(tmp_path / "a")[0].model.norm.weight[0].item() == 0.5
    assert agent_beside(str(tmp_path / "a")).max_steps == 7
    export(run, tmp_path / "b", checkpoint="grpo/checkpoint-4")
    assert load(tmp_path / "b")[0].model.norm.weight[0].item() == 0.25
    assert agent_beside(str(tmp_path / "b")).action_format == "fenced", "from the run's recipe"
    with pytest.raises(RunFolderError, match=r"no checkpoint x; there are: grpo/checkpoint-4, warm"):
        export(run, tmp_path / "c", checkpoint="x")


def test_a_run_of_an_older_program_is_resumed_and_exported(base, run, tmp_path):
    """One that did not know some settings yet, or knew some that are gone, in tables old and new."""
    adapted(base, run / "checkpoints" / "final")
    text = (run / "recipe.toml").read_text()
    recipe = load_recipe(run / "recipe.toml", TrainRecipe)
    short = re.sub(r"\n\[watch\]\n(.*\n)*|warn_steps = .*\n|save_every = .*\n", "", text)
    assert len(short.splitlines()) < len(text.splitlines()) - 4
    (run / "recipe.toml").write_text(short)
    RunFolder.create(run, recipe, resume=True)
    other = recipe.model_copy(update={"grpo": recipe.grpo.model_copy(update={"lr": 0.1})})
    with pytest.raises(RunFolderError, match=r"`grpo.lr = 1e-05`, not `grpo.lr = 0.1`"):
        RunFolder.create(run, other, resume=True)
    odd = text.replace("[grpo]", "[lost]\nx = 1\n\n[grpo]\nlost = 1").replace("[agent]", "[agent]\nlost = 1")
    (run / "recipe.toml").write_text(odd)
    assert agent_beside(str(export(run, tmp_path / "odd"))).action_format == "fenced"
    (run / "recipe.toml").write_text(text.replace('"fenced"', '"morse"'))
    with pytest.raises(RunFolderError, match="its agent cannot be read") as raised:
        export(run, tmp_path / "out")
    assert "\n" not in str(raised.value)
    (run / "recipe.toml").write_text('model = "m"\n')
    with pytest.raises(RunFolderError, match="no run of `nbagent train`"):
        export(run, tmp_path / "out")


def test_nothing_is_written_over_and_what_cannot_be_merged_is_one_line(base, run, tmp_path):
    with pytest.raises(RunFolderError, match="it has none yet"):
        export(run, tmp_path / "out")
    with pytest.raises(RunFolderError, match="is there already"):
        export(run, base)
    with pytest.raises(RunFolderError, match="neither a run"):
        export(tmp_path, tmp_path / "out")
    adapted(base, tmp_path / "lonely")
    base.rename(tmp_path / "moved")
    with pytest.raises(ModelFolderError, match="is not there"):
        export(tmp_path / "lonely", tmp_path / "out")
    assert not (tmp_path / "out").exists()
