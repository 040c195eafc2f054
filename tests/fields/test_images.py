"""Pillow images in documents."""

import io
import subprocess
import sys
from typing import Any

import bson
import pytest
from bson import Binary
from PIL import Image, ImageChops

from superduper.errors import InvalidInput
from superduper.fields import images
from superduper.fields.codec import decode, decode_input, encode


def picture(mode: str, size: tuple[int, int] = (9, 5)) -> Any:
    gradient = Image.linear_gradient("L").resize(size)
    return gradient.convert("I").convert("I;16") if mode == "I;16" else gradient.convert(mode)


def file_of(image: Any, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def same(left: Any, right: Any) -> bool:
    return (left.mode, left.size) == (right.mode, right.size) and left.tobytes() == right.tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_images_come_back_as_they_went_in(mode: str) -> None:
    image = picture(mode)

    stored = bson.decode(bson.encode(encode({"a": [image]})))

    assert stored["a"][0].keys() == {"image", "data"}
    assert stored["a"][0]["image"] == "png"
    assert same(decode(stored)["a"][0], image)
    assert same(decode_input(stored)["a"][0], image)


def test_which_side_is_up_is_kept() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.open(io.BytesIO(file_of(picture("RGB"), "JPEG", exif=exif)))

    assert decode(encode(photo)).getexif()[0x0112] == 6


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "F", "I", "HSV"])
def test_modes_that_png_cannot_hold_are_refused(mode: str) -> None:
    image = picture("RGB").convert(mode) if mode in ("HSV", "YCbCr", "CMYK") else picture(mode)

    with pytest.raises(InvalidInput, match=rf"^x: an image of mode '{mode}' .*convert"):
        encode({"x": image})


def test_animated_images_are_refused() -> None:
    frames = [picture("L"), ImageChops.invert(picture("L"))]
    data = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])

    with pytest.raises(InvalidInput, match="animated"):
        encode(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("wrap", [bytes, Binary])
def test_a_model_is_given_an_image_for_the_bytes_of_a_file(form: str, wrap: Any) -> None:
    data = file_of(picture("RGB"), form)

    given = decode_input({"x": wrap(data)})["x"]

    assert same(given, Image.open(io.BytesIO(data)))
    assert decode({"x": data}) == {"x": data}


@pytest.mark.parametrize("cut", [10, 60, 250])
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_damaged_files_are_named(form: str, cut: int) -> None:
    data = file_of(picture("RGB", (200, 200)), form)[:cut]
    assert len(data) == cut

    with pytest.raises(InvalidInput, match=r"^x: an image cannot be read"):
        decode_input({"x": data})
    with pytest.raises(InvalidInput, match=r"^x: an image cannot be read"):
        decode({"x": {"image": "png", "data": data}})


@pytest.mark.parametrize("size", [(8100, 8100), (20_000, 20_000)])
def test_an_image_that_unpacks_to_too_much_is_refused_before(size: tuple[int, int]) -> None:
    data = file_of(Image.new("1", size), "PNG")
    assert len(data) < 100_000

    with pytest.raises(InvalidInput, match=r"^x: an image .*(too large|exceeds limit)"):
        decode_input({"x": data})


@pytest.mark.parametrize(
    "document",
    [
        {"image": "cat.png", "data": b""},
        {"image": "png", "data": "text"},
        {"image": "png", "data": b"", "more": 1},
        {"image": "png"},
    ],
)
def test_documents_that_only_resemble_an_image_stay_as_they_are(document: dict[str, Any]) -> None:
    assert decode(document) == document


def test_other_bytes_stay_bytes() -> None:
    assert decode_input({"x": b"\x89PN", "y": b"", "z": Binary(b"\xff\xd8\xff", 128)}) == {
        "x": b"\x89PN",
        "y": b"",
        "z": Binary(b"\xff\xd8\xff", 128),
    }


def test_without_pillow_documents_stay_and_models_are_refused() -> None:
    data = images.encode_image(picture("L"))["data"]
    script = f"""
import sys
sys.modules["PIL"] = None
from superduper.errors import MissingExtra
from superduper.fields.codec import decode, decode_input
stored = {{"x": {{"image": "png", "data": {data!r}}}}}
assert decode(stored) == stored
for value in (stored, {{"x": stored["x"]["data"]}}):
    try:
        decode_input(value)
    except MissingExtra as error:
        assert "x: reading an image needs" in str(error)
        assert "pip install 'superduper-imputations[images]'" in str(error)
    else:
        raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script], check=True)
