"""What does not go together in the loss is refused when the recipe is read."""

import pytest
from pydantic import ValidationError

from nbagent_training.loss_settings import Loss


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "cispo", "ratio": "sequence"}, "each token by its own ratio"),
        ({"kind": "cispo", "dual_clip": 3.0}, "bounds its ratio already"),
        ({"dual_clip": 1.2}, "must be above 1 \\+ clip_high = 1.2"),
        ({"old": "sampler", "correction": "truncate"}, "in its ratio already"),
        ({"clip_high": 0.0}, "clip_high"),
        ({"kl_coef": -1.0}, "kl_coef"),
    ],
)
def test_refused(given, said):
    with pytest.raises(ValidationError, match=said):
        Loss.model_validate(given)


def test_everything_else_goes_together():
    Loss(ratio="sequence", dual_clip=3.0, correction="mask", kl_coef=0.1, kl="k1", entropy_coef=0.01, passes=3)
    Loss(kind="cispo", clip_low=1.0, old="sampler")
