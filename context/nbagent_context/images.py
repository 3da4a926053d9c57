"""Images of outputs: named for models that do not see, scaled and capped for those that do."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

from nbagent_context.cache import Cache
from nbagent_context.types import Budget, Elision, Exchange

if TYPE_CHECKING:
    from PIL import Image

IMAGE_TOKENS = 1100
"""Most tokens that an image of MOST_SIDE pixels takes: 85 + 170 for each of at most four tiles in one family of
models, one for each 28 by 28 pixels (27² = 756) in another; the rest is margin. Endpoints differ, so counts with images
are never exact."""
MOST_SIDE = 768
"""Pixels of the longer side; larger images are scaled down."""
MOST_BYTES = 4 << 20
"""Longest image after scaling; longer ones are only named."""
MOST_IMAGES = 4
"""Images in a prompt, the last ones of the newest cell."""
_SEEN = ("image/png", "image/jpeg", "image/gif", "image/webp")
_FORMATS = ("PNG", "JPEG", "GIF", "WEBP")
_cache = Cache()
_decoding = Lock()


def image_name(cell_id: str, mime: str, data: Any) -> str:
    """`[image of c3: 640x480 png]`, as far as it is known."""
    kind = mime.removeprefix("image/").split("+")[0]
    size = _size(mime, data)
    what = f"image of {cell_id}" if cell_id else "image"
    return f"[{what}: {f'{size[0]}x{size[1]} ' if size else ''}{kind}]"


def image_parts(cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The last images of a cell as OpenAI-style parts, scaled and encoded anew as PNG.

    Those that cannot be read are left out; their names stand in the text anyway.
    """
    images = [
        output["data"][mime] for output in cell.get("outputs", ()) for mime in _SEEN if mime in output.get("data", ())
    ]
    return [part for part in map(_part, images) if part is not None]


def _joined(data: Any) -> str:
    return "".join(map(str, data)) if isinstance(data, list) else str(data)


def _size(mime: str, data: Any) -> tuple[int, int] | None:
    """Width and height in pixels, of a PNG from its first 24 bytes, of others by opening them."""
    text = _joined(data)
    if mime == "image/png":
        try:
            head = base64.b64decode(text[:64].replace("\n", "")[:32])
        except ValueError:
            return None
        if head[:8] != b"\x89PNG\r\n\x1a\n" or len(head) < 24:
            return None
        return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    if mime not in _SEEN:
        return None
    found: tuple[int, int] | None = _cache.get((mime, text))
    if found is None and (found := _opened_size(text)) is not None:
        _cache.put((mime, text), found, len(text))
    return found


@contextmanager
def _opened(text: str) -> Iterator[Image.Image]:
    """The image of a base64 text. Raises anything at all for one that is made to.

    A cell writes these bytes, and they are decoded on the host: so only by the four decoders that are named, since
    others start programs (EPS: Ghostscript), and not where a few bytes claim to be very many pixels. One at a time,
    which bounds the memory, and since the program's rules for warnings are changed meanwhile.
    """
    from PIL import Image

    with _decoding, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(base64.b64decode(text)), formats=_FORMATS) as image:
            yield image


def _opened_size(text: str) -> tuple[int, int] | None:
    try:
        with _opened(text) as image:
            return image.size
    except Exception:  # Decoders raise SyntaxError, struct.error and more; an image is never worth an attempt.
        return None


def _part(data: Any) -> dict[str, Any] | None:
    text = _joined(data)
    url: str | None = _cache.get(text)
    if url is None and (url := _scaled(text)) is not None:
        _cache.put(text, url, len(text) + len(url))
    return {"type": "image_url", "image_url": {"url": url}} if url else None


def _scaled(text: str) -> str | None:
    """A data URL; None for what is no image, is a bomb, or stays too long."""
    buffer = io.BytesIO()
    try:
        with _opened(text) as image:
            small = image.convert("RGB")
            small.thumbnail((MOST_SIDE, MOST_SIDE))
            small.save(buffer, "PNG")
    except Exception:
        return None
    if buffer.tell() > MOST_BYTES:
        return None
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def newest_images(
    notebook: Mapping[str, Any], exchanges: Sequence[Exchange], budget: Budget, room: int
) -> tuple[list[dict[str, Any]], list[Elision]]:
    """Images of the newest exchange's cell as parts, and the record of those left out.

    They take half of the budget at most, and no more than `room`: what the text that must survive leaves.
    """
    if not budget.image_tokens or not exchanges:
        return [], []
    name = exchanges[-1].cell_id
    parts = next((image_parts(cell) for cell in notebook["cells"] if cell["id"] == name), [])
    most = min(MOST_IMAGES, max(min(budget.tokens // 2, room), 0) // budget.image_tokens)
    gone = len(parts) - most
    if gone <= 0:
        return parts, []
    return parts[gone:], [
        Elision(
            f"{gone} images of {name}" if gone > 1 else f"image of {name}",
            "dropped",
            gone * budget.image_tokens,
            "budget",
        )
    ]
