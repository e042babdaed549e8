"""The EXIF fields that an output keeps on request, checked by type and written again."""

import re
from typing import Any

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from worker.metadata.exif_fields import KEEPABLE, Kind
from worker.metadata.kept import Kept

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF")  # the formats whose outputs can hold EXIF
PREFIX = b"Exif\0\0"
DATE = re.compile(r"\d{4}:\d\d:\d\d \d\d:\d\d:\d\d")
OFFSET = re.compile(r"[+-]\d\d:\d\d")
# EXIF stores whole numbers in 16 bits, and numerators and denominators in 31 bits and a sign.
SHORT_LIMIT = 1 << 16
RATIO_LIMIT = 1 << 31
# The tags of the position (Exif 2.32, table 15): the reference and the value of latitude and
# longitude, with the references and the largest number of degrees.
COORDINATES = ((1, 2, "NS", 90), (3, 4, "EW", 180))
ROUNDED_DECIMALS = 2  # of a degree: up to 1.1 km
# Altitude and direction of view: the tag and the values of the reference, and the tag of the value.
HEIGHT_AND_DIRECTION = ((5, (b"\0", b"\1"), 6), (16, ("T", "M"), 17))


def kept(image: Any, keep: Kept) -> bytes | None:
    """Return the fields of a Pillow image that `keep` names as a block that begins with ``Exif``.

    Returns None if the image has none of them. Fields whose value is not of the expected kind are
    left out, because they could hold anything.
    """
    if not keep.exif and keep.gps == "false":
        return None
    try:
        exif = image.getexif()
        source, position = (
            exif.get_ifd(name) for name in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
        )
    except Exception:  # unreadable EXIF is no reason to refuse a picture
        return None
    block = Image.Exif()
    fields = block.get_ifd(ExifTags.IFD.Exif)
    for name in keep.exif:
        tag, kind = KEEPABLE[name]
        value = _checked(source.get(tag), kind)
        if value is not None:
            fields[tag] = value
    place = _position(position, keep)
    block.get_ifd(ExifTags.IFD.GPSInfo).update(place)
    return _written(block) if fields or place else None


def with_orientation(content: bytes | None, orientation: int) -> bytes:
    """Return the EXIF block `content`, or an empty one, with an orientation from 1 to 8."""
    block = Image.Exif()
    if content:
        block.load(content)
        block.get_ifd(ExifTags.IFD.Exif)
        block.get_ifd(ExifTags.IFD.GPSInfo)
    block[ExifTags.Base.Orientation] = orientation
    return _written(block)


def _written(block: Image.Exif) -> bytes:
    content = block.tobytes()
    return content if content.startswith(PREFIX) else PREFIX + content


def _position(source: Any, keep: Kept) -> dict[int, Any]:
    """Return the fields of the position that `keep` allows, none without latitude and longitude."""
    if keep.gps == "false":
        return {}
    fields: dict[int, Any] = {}
    for reference_tag, tag, references, largest in COORDINATES:
        reference = str(source.get(reference_tag, "")).rstrip("\0 ")
        parts = source.get(tag, ())
        ratios = [_ratio(part) for part in parts] if isinstance(parts, tuple) else []
        if len(ratios) != 3 or None in ratios or reference not in tuple(references):
            return {}
        degrees = sum(float(part) / 60**place for place, part in enumerate(ratios) if part)
        if not 0 <= degrees <= largest:
            return {}
        if keep.gps == "rounded":
            unit = 10**ROUNDED_DECIMALS
            ratios = [IFDRational(round(degrees * unit), unit), IFDRational(0), IFDRational(0)]
        fields |= {reference_tag: reference, tag: tuple(ratios)}
    return fields if keep.gps == "rounded" else fields | _height_and_direction(source)


def _height_and_direction(source: Any) -> dict[int, Any]:
    """Return altitude and direction of view, where they are of the expected kinds."""
    fields: dict[int, Any] = {}
    for reference_tag, references, tag in HEIGHT_AND_DIRECTION:
        reference, value = source.get(reference_tag, references[0]), _ratio(source.get(tag))
        if value is not None and reference in references:
            fields |= {reference_tag: reference, tag: value}
    return fields


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
