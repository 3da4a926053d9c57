"""What holds for every test: nothing is fetched, no figure wants a display; and the golden files."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "MPLBACKEND": "agg"}

# A runner's background job begins with Ctrl-C ignored, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """Compares a text with a file of tests/golden/; with NBAGENT_GOLDEN=write (`make golden`) writes the file."""

    def same(name: str, text: str) -> None:
        file = GOLDEN / name
        if os.environ.get("NBAGENT_GOLDEN") == "write":
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        assert file.is_file(), f"tests/golden/{name} is missing; `make golden` writes it"
        assert text == file.read_text(encoding="utf-8"), f"differs from tests/golden/{name}; meant so? `make golden`"

    return same
