"""What asks for a network in a sandbox is answered at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nbagent_images import Image

pytestmark = [pytest.mark.docker, pytest.mark.slow]

Built = Callable[[str], Image]
Run = Callable[..., tuple[int, str]]

AT_ONCE_S = 15
"""Far below any cell's time limit, far above what an answer takes on a busy machine."""


@pytest.mark.parametrize(
    "command",
    [
        "pip install polars",
        "pip3 install 'polars>=1' numpy",
        "python -m pip install -q polars",
        "pip download polars",
        "pip install --index-url https://pypi.org/simple polars",
        "pip install https://files.pythonhosted.org/polars-1.0-py3-none-any.whl",
        "pip install git+https://github.com/pola-rs/polars",
        "conda install -y polars",
        "mamba install polars",
    ],
)
def test_python_packages(image: Built, run: Run, command: str) -> None:
    status, printed = run(image("python").id, ["timeout", str(AT_ONCE_S), "sh", "-c", command])
    assert status == 1, printed
    assert "This sandbox has no network" in printed
    assert "scanpy 1.11" in printed
    assert "nbagent sandbox build --image python --with " in printed


def test_the_command_names_what_is_lacking(image: Built, run: Run) -> None:
    _, printed = run(image("python").id, ["pip", "install", "polars>=1", "numpy"])
    assert printed.rstrip().endswith("nbagent sandbox build --image python --with 'polars>=1'")


ADD = "nbagent sandbox build --image python --with "


@pytest.mark.parametrize(
    ("command", "ending"),
    [
        ("pip install --target here polars", "polars"),
        ("pip -q --log here install -t here --upgrade-strategy eager polars", "polars"),
        ("pip wheel --wheel-dir here 'polars ; python_version > \"3\"'", "polars"),
        ("pip install 'polars @ https://files.pythonhosted.org/polars-1.0-py3-none-any.whl'", "polars"),
        ("pip install 'scanpy[scrublet]'", "'scanpy[scrublet]'"),
        ("pip install polars-1.0-py3-none-any.whl", "PACKAGE"),
        ("pip show install", "PACKAGE"),
        ("cd /tmp; printf 'polars>=1 # fast\\nnumpy\\n' > of.txt; pip install -r of.txt", "'polars>=1'"),
        ("cd /tmp; echo -r more.txt > of.txt; echo torch > more.txt; pip install --requirement=of.txt", "torch"),
        ("cd /tmp; echo torch==1 > c.txt; pip install -c c.txt polars", "polars"),
    ],
)
def test_the_command_names_packages_and_no_values_of_options(image: Built, run: Run, command: str, ending: str) -> None:
    status, printed = run(image("python").id, ["sh", "-c", command])
    assert status == 1
    assert printed.rstrip().endswith(ADD + ending), printed


def test_a_file_that_is_missing_is_said(image: Built, run: Run) -> None:
    status, printed = run(image("python").id, ["pip", "install", "-r", "missing.txt"])
    assert status == 1
    assert "The requirements in missing.txt could not be read: " in printed
    assert printed.rstrip().endswith(ADD + "PACKAGE")


def test_a_version_that_the_recipe_does_not_have_is_said(image: Built, run: Run) -> None:
    _, printed = run(image("python").id, ["pip", "install", "pandas==1.0", "polars"])
    assert "pandas 2.3.3 is installed, not ==1.0. The image's recipe pins it" in printed
    assert printed.rstrip().endswith(ADD + "polars")
    _, printed = run(image("python").id, ["pip", "install", "pandas==1.0"])
    assert "use the one that is installed" in printed
    assert "--with PACKAGE" not in printed


def test_what_was_added_to_the_image_can_be_had_in_another_version(
    image: Built, run: Run, wheel: Callable[..., None], tmp_path: Path
) -> None:
    wheels, about = tmp_path / "wheels", tmp_path / "about"
    for folder in (wheels, about):
        folder.mkdir()
        folder.chmod(0o755)
    wheel(wheels, "late", "value = 42\n")
    for name, text in {"image": "r\n", "requirements.txt": "", "with": "apt:late\nLate==1.0\nother>=1\n"}.items():
        (about / name).write_text(text)
    tmp_path.chmod(0o755)
    command = ["sh", "-c", "pip install -q late && pip install 'late>1'"]
    _, printed = run(image("python").id, command, folders={wheels: "/wheels", about: "/opt/nbagent"})
    assert "late 1.0 is installed, not >1." in printed
    assert printed.rstrip().endswith("--image r --with apt:late --with 'other>=1' --with 'late>1'")


def test_what_is_installed_needs_no_answer(image: Built, run: Run) -> None:
    status, printed = run(image("python").id, ["pip", "install", "numpy", "scikit-learn"])
    assert status == 0
    assert "already satisfied: numpy" in printed
    assert "no network" not in printed


def test_wheels_that_are_mounted_are_installed_and_imported_by_a_running_kernel(
    image: Built, run: Run, wheel: Callable[..., None], tmp_path: Path
) -> None:
    wheel(tmp_path, "late", "value = 42\n")
    tmp_path.chmod(0o755)
    code = (
        "import importlib.util, subprocess, sys\n"
        "assert importlib.util.find_spec('late') is None\n"
        "subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', 'late'], check=True)\n"
        "import late; print(late.value, late.__file__)"
    )
    status, printed = run(image("python").id, ["python", "-c", code], folders={tmp_path: "/wheels"})
    assert (status, printed) == (0, "42 /tmp/packages/lib/python3.11/site-packages/late.py\n")


@pytest.mark.parametrize(
    "code",
    [
        "install.packages('fortunes')",
        "utils::install.packages('fortunes', repos = 'https://cloud.r-project.org')",
        "BiocManager::install('fortunes')",
        "if (!requireNamespace('fortunes')) BiocManager::install(c('fortunes', 'stats'), update = FALSE, ask = FALSE)",
    ],
)
def test_r_packages(image: Built, run: Run, code: str) -> None:
    status, printed = run(image("r").id, ["timeout", str(AT_ONCE_S), "Rscript", "-e", code])
    assert status == 1, printed
    assert "This sandbox has no network" in printed
    assert "IRkernel" in printed
    assert "nbagent sandbox build --image r --with apt:r-cran-fortunes" in printed


def test_r_packages_that_are_installed(image: Built, run: Run) -> None:
    code = "install.packages('jsonlite'); BiocManager::install('jsonlite'); cat('went on')"
    status, printed = run(image("r").id, ["Rscript", "-e", code])
    assert status == 0
    assert printed.count("is installed: library(jsonlite)") == 2
    assert printed.endswith("went on")
