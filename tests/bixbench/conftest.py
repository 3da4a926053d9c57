"""One drawn task of every family, shared by the tests that look at them."""

import pytest

from nbagent_bixbench.draw import DrawnTask, draft_tasks
from nbagent_bixbench.families import FAMILIES


@pytest.fixture(scope="session")
def drawn() -> list[DrawnTask]:
    return draft_tasks(len(FAMILIES), seed=11)
