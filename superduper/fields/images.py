"""Pillow images in documents: stored as PNG, as `{image: "png", data}`.

Pillow is imported only to decode; a value can only be an image if Pillow is loaded.
"""

from collections.abc import Mapping
from io import BytesIO
from typing import Any

from superduper.errors import InvalidInput, MissingExtra
from superduper.fields.tensors import load, loaded

MAX_PIXELS = 64_000_000
"""Larger images are refused before they are unpacked: a small file can hold a huge image."""

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"


def is_image(value: Any) -> bool:
    """Whether a value is a Pillow image."""
    pillow = loaded("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def encode_image(image: Any) -> dict[str, Any]:
    """A Pillow image as `{image: "png", data}`; nothing is lost.

    Raises InvalidInput for images that PNG cannot hold as they are.
    """
    if image.mode not in _PNG_MODES:
        raise InvalidInput(
            f"an image of mode {image.mode!r} cannot be stored without loss: "
            "convert it first (image.convert('RGB'))"
        )
    if getattr(image, "n_frames", 1) > 1:
        raise InvalidInput("an animated image cannot be stored: store its frames as a list")
    stream = BytesIO()
    # Light compression: a third of the time for a tenth more bytes. Exif says which side is up.
    image.save(stream, "PNG", compress_level=3, exif=image.info.get("exif"))
    return {"image": "png", "data": stream.getvalue()}


def is_image_document(value: Mapping[str, Any]) -> bool:
    """Whether a document is a stored image."""
    return (
        value.keys() == {"image", "data"}
        and value["image"] == "png"
        and isinstance(value["data"], bytes)
    )


def decode_image_document(value: Mapping[str, Any], needed: bool) -> Any:
    """A stored image as a Pillow image. Without Pillow: as it is, or MissingExtra if `needed`."""
    if not needed and load("PIL") is None:
        return value
    return open_image(value["data"])


def is_image_bytes(data: bytes) -> bool:
    """Whether bytes are those of a PNG or JPEG file, going by how they begin."""
    return data.startswith((_PNG, _JPEG))


def open_image(data: bytes) -> Any:
    """The Pillow image in the bytes of a PNG or JPEG file, unpacked.

    Raises InvalidInput if they are damaged or the image is too large, MissingExtra without Pillow.
    """
    if load("PIL") is None:
        raise MissingExtra.of("images", "reading an image")
    pillow = load("PIL.Image")
    try:
        image = pillow.open(BytesIO(data), formats=("PNG", "JPEG"))
        if image.width * image.height > MAX_PIXELS:
            raise InvalidInput(
                f"an image of {image.width} x {image.height} pixels is too large: "
                f"at most {MAX_PIXELS:,} pixels"
            )
        image.load()
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
        raise InvalidInput(f"an image cannot be read: {error!s:.200}") from error
    return image
