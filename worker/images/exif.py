"""The few EXIF fields that an output keeps on request, checked by type and written anew."""

import re
from collections.abc import Collection
from typing import Any

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from worker.exif_fields import KEEPABLE, Kind

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF")
PREFIX = b"Exif\0\0"
DATE = re.compile(r"\d{4}:\d\d:\d\d \d\d:\d\d:\d\d")
OFFSET = re.compile(r"[+-]\d\d:\d\d")
LARGEST = 1 << 31


def kept(image: Any, names: Collection[str]) -> bytes | None:
    """The fields `names` of a Pillow image as an EXIF block that begins with ``Exif``; None where
    it has none.

    A field whose value is not of its kind is left out: it could hold anything.
    """
    if not names:
        return None
    try:
        source = image.getexif().get_ifd(ExifTags.IFD.Exif)
    except Exception:  # EXIF that can't be read is no reason to refuse a picture
        return None
    block = Image.Exif()
    fields = block.get_ifd(ExifTags.IFD.Exif)
    for name in names:
        tag, kind = KEEPABLE[name]
        value = _checked(source.get(tag), kind)
        if value is not None:
            fields[tag] = value
    if not fields:
        return None
    content = block.tobytes()
    return content if content.startswith(PREFIX) else PREFIX + content


def _checked(value: Any, kind: Kind) -> Any:
    if kind == "whole":
        return value if isinstance(value, int) and 0 <= value < 65536 else None
    if kind == "ratio":
        return _ratio(value)
    text = str(value).rstrip("\0 ") if isinstance(value, str) else ""
    return text if (DATE if kind == "date" else OFFSET).fullmatch(text) else None


def _ratio(value: Any) -> IFDRational | None:
    if not isinstance(value, IFDRational):
        return None
    above, below = int(value.numerator), int(value.denominator)
    return IFDRational(above, below) if abs(above) < LARGEST and 0 < below < LARGEST else None
