"""What does not go together in the loss, or does nothing, is refused when the recipe is read."""

import pytest
from pydantic import ValidationError

from nbagent.errors import RecipeError
from nbagent.recipe import load_recipe
from nbagent_training.loss_settings import Lora, Loss
from nbagent_training.recipe import Grpo, TrainRecipe


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "cispo", "ratio": "sequence"}, "each token by its own ratio"),
        ({"kind": "cispo", "dual_clip": 3.0}, "bounds its ratio already"),
        ({"dual_clip": 1.2}, "must be above 1 \\+ clip_high = 1.2"),
        ({"old": "sampler", "correction": "truncate"}, "in its ratio already"),
        ({"ratio": "sequence", "correction": "mask", "passes": 2}, "leaves single tokens out"),
        ({"clip_high": 0.0}, "clip_high"),
        ({"kl_coef": -1.0}, "kl_coef"),
    ],
)
def test_refused(given, said):
    with pytest.raises(ValidationError, match=said):
        Loss.model_validate(given)


def test_everything_else_goes_together():
    Loss(ratio="sequence", dual_clip=3.0, correction="truncate", kl_coef=0.1, kl="k1", entropy_coef=0.01, passes=3)
    Loss(ratio="sequence", correction="truncate", correction_high=1.5)
    Loss(kind="cispo", clip_low=1.0, old="sampler")
    Loss(correction="mask", correction_low=0.9, correction_high=1.1)


IDLE = [
    ({"clip_low": 0.1}, "passes = 2 or old"),
    ({"clip_high": 0.28, "correction": "truncate"}, "passes = 2 or old"),
    ({"dual_clip": 3.0}, "passes = 2 or old"),
    ({"kind": "cispo"}, "passes = 2 or old"),
    ({"ratio": "sequence"}, "passes = 2 or old"),
    ({"correction_low": 0.9, "correction": "truncate"}, 'set correction = "mask"'),
    ({"correction_high": 3.0}, 'set correction = "truncate" or "mask"'),
    ({"kl": "k1"}, "set kl_coef above 0"),
]


@pytest.mark.parametrize(("given", "said"), IDLE, ids=lambda value: "-".join(value) if isinstance(value, dict) else "")
def test_what_does_nothing_is_refused(given, said):
    with pytest.raises(ValidationError, match=f"{next(iter(given))} does nothing: .*{said}"):
        Loss.model_validate(given)


def test_where_the_ratio_may_move_clipping_does_something():
    for more in ({"passes": 2}, {"old": "sampler"}):
        for given in ({"clip_low": 0.1}, {"clip_high": 0.28}, {"dual_clip": 3.0}, {"kind": "cispo"}):
            Loss.model_validate({**given, **more})


def test_defaults_may_be_written_out_though_they_do_nothing():
    assert Loss.model_validate(Loss().model_dump()) == Loss()
    assert Lora.model_validate(Lora().model_dump()) == Lora()


@pytest.mark.parametrize("given", [{"alpha": 64.0}, {"targets": ["q_proj"]}])
def test_settings_of_adapters_need_a_rank(given):
    with pytest.raises(ValidationError, match=f"{next(iter(given))} does nothing: set rank above 0"):
        Lora.model_validate(given)
    Lora.model_validate({**given, "rank": 4})


def recipe(tmp_path, more):
    path = tmp_path / "r.toml"
    path.write_text(f'[model]\nfolder = "m"\n{more}')
    return load_recipe(path, TrainRecipe)


def test_a_ratio_of_whole_completions_weighs_no_attempt_by_its_length(tmp_path):
    """A completion's one ratio stands at each of its tokens, so weights by the token would count it by its length."""
    loss = '[grpo.loss]\nratio = "sequence"\npasses = 2'
    for normalisation in ('"token_mean"', '"constant"\nconstant_tokens = 9'):
        with pytest.raises(RecipeError, match=r"grpo\.loss\.ratio: .*row_mean"):
            recipe(tmp_path, f"[grpo]\nnormalisation = {normalisation}\n{loss}")
    for normalisation in ("row_mean", "rollout_token_mean"):
        recipe(tmp_path, f'[grpo]\nnormalisation = "{normalisation}"\n{loss}')


@pytest.mark.parametrize(
    "grpo",
    [
        "gamma = 0.9",
        'sigma = "none"',
        'baseline = "leave_one_out"',
        f"mask_truncated = {str(not Grpo().mask_truncated).lower()}",
        "summary_weight = 0.5",
        "malformed_penalty = 0.1",
        "failed_penalty = 0.1",
    ],
)
def test_settings_of_rewards_do_nothing_under_a_teacher(grpo, tmp_path):
    given = f'[agent]\npolicy = "summarize"\n[grpo]\n{grpo}'
    recipe(tmp_path, given)
    with pytest.raises(RecipeError, match=rf"grpo\.{grpo.split()[0]} does nothing: .*distill\.teacher"):
        recipe(tmp_path, f'[distill]\nteacher = "t"\n{given}')


def test_a_teacher_judges_single_tokens(tmp_path):
    with pytest.raises(RecipeError, match=r'distill\.teacher: .*grpo\.loss\.ratio = "token"'):
        recipe(tmp_path, '[distill]\nteacher = "t"\n[grpo.loss]\nratio = "sequence"\npasses = 2')
