"""The EXIF fields that an output keeps on request, checked by type and written again."""

import re
from collections.abc import Collection
from typing import Any

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from worker.exif_fields import KEEPABLE, Kind

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF")  # the formats whose outputs can hold EXIF
PREFIX = b"Exif\0\0"
DATE = re.compile(r"\d{4}:\d\d:\d\d \d\d:\d\d:\d\d")
OFFSET = re.compile(r"[+-]\d\d:\d\d")
# EXIF stores whole numbers in 16 bits, and numerators and denominators in 31 bits and a sign.
SHORT_LIMIT = 1 << 16
RATIO_LIMIT = 1 << 31


def kept(image: Any, names: Collection[str]) -> bytes | None:
    """Return the fields `names` of a Pillow image as an EXIF block that begins with ``Exif``.

    Returns None if the image has none of them. Fields whose value is not of the expected kind are
    left out, because they could hold anything.
    """
    if not names:
        return None
    try:
        source = image.getexif().get_ifd(ExifTags.IFD.Exif)
    except Exception:  # unreadable EXIF is no reason to refuse a picture
        return None
    block = Image.Exif()
    fields = block.get_ifd(ExifTags.IFD.Exif)
    for name in names:
        tag, kind = KEEPABLE[name]
        value = _checked(source.get(tag), kind)
        if value is not None:
            fields[tag] = value
    return _written(block) if fields else None


def with_orientation(content: bytes | None, orientation: int) -> bytes:
    """Return the EXIF block `content`, or an empty one, with an orientation from 1 to 8."""
    block = Image.Exif()
    if content:
        block.load(content)
        block.get_ifd(ExifTags.IFD.Exif)
    block[ExifTags.Base.Orientation] = orientation
    return _written(block)


def _written(block: Image.Exif) -> bytes:
    content = block.tobytes()
    return content if content.startswith(PREFIX) else PREFIX + content


def _checked(value: Any, kind: Kind) -> Any:
    """Return `value` if it is of `kind`, else None."""
    if kind == "whole":
        return value if isinstance(value, int) and 0 <= value < SHORT_LIMIT else None
    if kind == "ratio":
        return _ratio(value)
    text = str(value).rstrip("\0 ") if isinstance(value, str) else ""
    pattern = DATE if kind == "date" else OFFSET
    return text if pattern.fullmatch(text) else None


def _ratio(value: Any) -> IFDRational | None:
    if not isinstance(value, IFDRational):
        return None
    numerator, denominator = int(value.numerator), int(value.denominator)
    if abs(numerator) >= RATIO_LIMIT or not 0 < denominator < RATIO_LIMIT:
        return None
    return IFDRational(numerator, denominator)
