"""Lets a sandbox's interpreters import what was added to the image, and what `pip install` adds after they started."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

ADDED = tuple(f"{prefix}/lib/python3.11/site-packages" for prefix in ("/opt/extras", "/tmp/packages"))

# A folder that is missing when the path is first searched would be taken for missing from then on.
with contextlib.suppress(OSError):
    Path(ADDED[-1]).mkdir(parents=True, exist_ok=True)
sys.path.extend(ADDED)
