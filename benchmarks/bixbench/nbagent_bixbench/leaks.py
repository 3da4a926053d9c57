"""What may hold answers, and is kept out of the agent's files: by its name, and by what is in it.

What is not covered: a notebook that somebody encrypted, packed in another format than zip or tar, or rewrote in
words; and a key that stands alone in a data file, which no search can tell from data.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

KEPT_OUT = (".ipynb", ".rmd", ".qmd", ".html", ".htm")
"""Endings of files that may hold answers, wherever they are."""

NOTEBOOKS = KEPT_OUT[:3]
"""Those that hold an analysis; an archive may hold HTML pages that instruments wrote."""

CONVERTED = (".py", ".r", ".md", ".txt", ".pdf", ".tex", ".rst", ".docx")
"""Endings that a notebook's conversion gets; with the notebook's own name they are taken for one."""

SHORTEST_SECRET = 24
"""Characters; shorter texts may well stand in data."""

SEARCHED_BYTES = 64 << 20
"""Larger files are not searched for texts: they are tables and sequences."""

_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")


def named_like_answers(name: str) -> bool:
    """True for a notebook, R Markdown, Quarto or HTML file, also with another ending behind (`x.ipynb.gz`)."""
    return any(suffix.lower() in KEPT_OUT for suffix in PurePosixPath(name).suffixes)


def leaks_in(data: Path, notebooks: Path) -> Iterator[tuple[Path, str]]:
    """Files below `data` that are notebooks in disguise, with the reason: copies, conversions, archives of them."""
    kept = [path for path in notebooks.rglob("*") if path.is_file() and named_like_answers(path.name)]
    stems = {_stem(path): path.name for path in kept if _stem(path)}
    sizes = {path.stat().st_size for path in kept} - {0}
    digests = {_digest(path): path.name for path in kept}
    for path in _files(data):
        name, size = path.name.lower(), path.stat().st_size
        if size in sizes and (digest := _digest(path)) in digests:
            yield path, f"a copy of {digests[digest]}"
        elif name.endswith(CONVERTED) and _stem(path) in stems:
            yield path, f"has the name of {stems[_stem(path)]}"
        elif size <= SEARCHED_BYTES and (what := _disguised(path)):
            yield path, what
        elif name.endswith(_ARCHIVES) and (inner := _packed(path)):
            yield path, f"an archive that holds {inner}"


def secrets_in(data: Path, secrets: Iterable[str]) -> Iterator[tuple[Path, str]]:
    """Files below `data` that hold one of the texts, plain or as JSON writes it, each with the text's beginning."""
    patterns = [(text, form) for text in secrets for form in _forms(text)]
    if not patterns:
        return
    for path in _files(data):
        if path.stat().st_size <= SEARCHED_BYTES:
            content = path.read_bytes()
            found = next((text for text, form in patterns if form in content), None)
            if found is not None:
                yield path, f"holds the text {found[:40]!r}"


def searchable(secrets: Iterable[str]) -> list[str]:
    """The texts worth searching for: long enough that data do not hold them by chance; each once."""
    return sorted({text.strip() for text in secrets if len(text.strip()) >= SHORTEST_SECRET})


def _forms(text: str) -> set[bytes]:
    return {text.encode(), json.dumps(text)[1:-1].encode(), json.dumps(text, ensure_ascii=False)[1:-1].encode()}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _stem(path: Path) -> str:
    return path.name.lower().partition(".")[0]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _disguised(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(1024).lstrip().lower()
        if head.startswith((b"<!doctype html", b"<html")):
            return "an HTML page by its content"
        if head.startswith(b"{"):
            content = head + file.read()
            if b'"nbformat"' in content and b'"cells"' in content:
                return "a notebook by its content"
    return ""


def _packed(path: Path) -> str:
    try:
        if path.name.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        else:
            with tarfile.open(path) as archive:
                names = archive.getnames()
    except (zipfile.BadZipFile, tarfile.TarError, OSError, EOFError, ValueError):
        return ""
    return next((name for name in names if name.lower().endswith(NOTEBOOKS)), "")
