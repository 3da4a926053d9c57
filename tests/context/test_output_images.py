"""Images of outputs: named, scaled, and never worth an attempt."""

import base64
import io
import random
import struct
import warnings

import pytest
from PIL import EpsImagePlugin, Image

from nbagent_context.images import image_name, image_parts


def encoded(data):
    return base64.b64encode(data).decode()


def drawn(width, height, mode="RGB", kind="PNG"):
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, kind)
    return buffer.getvalue()


def shown(data, mime="image/png"):
    return image_parts({"outputs": [{"output_type": "display_data", "data": {mime: data}}]})


def large_gif():
    data = bytearray(drawn(8, 8, "P", "GIF"))
    frame = data.index(b",", 13)
    data[6:10] = data[frame + 5 : frame + 9] = struct.pack("<HH", 65535, 65535)
    return bytes(data)


def large_jpeg():
    data = bytearray(drawn(8, 8, kind="JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65535, 65535)
    return bytes(data)


def test_images_are_named_with_their_size():
    assert image_name("c3", "image/png", encoded(drawn(640, 480))) == "[image of c3: 640x480 png]"
    assert image_name("", "image/jpeg", encoded(drawn(64, 48, kind="JPEG"))) == "[image: 64x48 jpeg]"
    assert image_name("c3", "image/webp", encoded(drawn(64, 48, kind="WEBP"))) == "[image of c3: 64x48 webp]"
    assert image_name("c3", "image/svg+xml", "<svg/>") == "[image of c3: svg]"
    assert image_name("c3", "image/png", "aGk=") == "[image of c3: png]"
    assert image_name("c3", "image/png", encoded(drawn(640, 480)[:17])) == "[image of c3: png]"
    assert image_name("c3", "image/gif", "no base64!") == "[image of c3: gif]"


def test_images_are_scaled_and_what_is_none_is_left_out():
    outputs = [
        {"output_type": "display_data", "data": {"image/png": encoded(drawn(2000, 500, "RGBA"))}},
        {"output_type": "display_data", "data": {"image/png": "aGk="}},
        {"output_type": "stream", "name": "stdout", "text": "text"},
    ]
    (part,) = image_parts({"outputs": outputs})
    head, _, data = part["image_url"]["url"].partition(",")
    assert (part["type"], head) == ("image_url", "data:image/png;base64")
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (768, 192)


@pytest.mark.parametrize("data", [large_gif(), large_jpeg()])
def test_an_image_that_claims_to_be_huge_is_a_name(data):
    for mime in ("image/gif", "image/jpeg", "image/webp"):
        assert image_name("c1", mime, encoded(data)) == f"[image of c1: {mime[6:]}]"
    assert shown(encoded(data), "image/gif") == []


def test_a_large_image_is_the_same_whatever_the_programs_rules_for_warnings():
    # Between one and two times PIL's limit, where it only warns.
    data = bytearray(drawn(8, 8, "P", "GIF"))
    data[6:10] = struct.pack("<HH", 10000, 10000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert image_name("c1", "image/gif", encoded(data)) == "[image of c1: gif]"
    assert image_name("c1", "image/gif", encoded(data + b" ")) == "[image of c1: gif]"


def test_other_formats_are_not_decoded(monkeypatch):
    called = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: called.append(1))
    eps = encoded(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    assert (image_name("c1", "image/gif", eps), shown(eps), called) == ("[image of c1: gif]", [], [])
    assert image_name("c1", "image/gif", encoded(drawn(8, 8, kind="TIFF"))) == "[image of c1: gif]"


@pytest.mark.parametrize("kind", ["PNG", "GIF", "JPEG", "WEBP", "TIFF", "BMP", "PPM", "ICO", "TGA"])
def test_damaged_images_are_names_or_images(kind):
    drawing, whole = random.Random(kind), drawn(16, 16, kind=kind)
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(drawing.randint(1, 4)):
            data[drawing.randrange(min(len(data), drawing.choice([30, len(data)])))] = drawing.randrange(256)
        text = encoded(data[: drawing.randrange(len(data))] if drawing.random() < 0.3 else data)
        assert image_name("c1", "image/gif", text).startswith("[image of c1: ")
        assert len(shown(text)) < 2
