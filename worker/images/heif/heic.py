"""HEIC and HEIF pictures, read by pi-heif (the extra `heif`), and written as JPEG or AVIF.

ISO/IEC 23008-12. The picture is the file's primary item, turned and mirrored as its properties say.
Thumbnails, depth, gain maps, further pictures and sequences are no part of the output.
"""

import base64
import re
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from tasks.errors import UnreadableImage, UnsupportedImage
from worker.images import colour_profile, display
from worker.images.heif import avif, deep_avif
from worker.images.loading import blanked
from worker.images.picture import Frame, Picture
from worker.images.writing import AVIF_QUALITY, AVIF_SPEED, COLOUR, DEPTH
from worker.metadata import exif, xmp
from worker.metadata.kept import Kept
from worker.pixels import Array

try:
    import pi_heif
except ImportError:
    pi_heif = None

# How many times a pixel counts against the limit, in 8 bits, and where more bits are kept.
COST, DEEP_COST = 2, 6
JPEG_QUALITY = 92
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # by the number of channels
NAMED = {420: "4:2:0", 422: "4:2:2", 444: "4:4:4"}
BRANDS = re.compile(rb"hei[cxms]|hev[cx]|mi[fa][1-9a-z]|msf1")
MISSING = (
    "HEIC pictures need the extra `heif`: install Veil with it, or convert them to JPEG or AVIF"
)
REFUSED = "VEIL_HEIF_OUTPUT refuses HEIC: set it to jpeg or avif, or convert the picture to JPEG"
VIDEO = "videos and other files in containers of ISO media are not handled: extract a picture"
# Primaries of H.273, with the tags of a profile for them: XYZ of red, green and blue, adapted to
# D50, in units of 1/65536.
SRGB_PRIMARIES, UNSPECIFIED, DISPLAY_P3 = 1, 2, 12
P3_COLUMNS = {
    b"rXYZ": (0x83DF, 0x3DBF, -0x45),
    b"gXYZ": (0x4ABF, 0xB137, 0x0ABB),
    b"bXYZ": (0x2838, 0x110B, 0xC8B9),
}
# A gray ramp of 16 × 16 pixels, with which a process loads the decoder before it is locked up.
SAMPLE = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAaptZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAA"
    "AAAAAAAAAAAAAA5waXRtAAAAAAACAAAAEGlkYXQAAAAAABAAEAAAADhpbG9jAQAAAERAAAIAAQAAAAAAAAHOAAEA"
    "AAAAAAAAMwACAAEAAAAAAAAAAQAAAAAAAAAIAAAAOGlpbmYAAAAAAAIAAAAVaW5mZQIAAAEAAQAAaHZjMQAAAAAV"
    "aW5mZQIAAAAAAgAAZ3JpZAAAAADVaXBycAAAALNpcGNvAAAAc2h2Y0MBA3AAAAAAAAAAAAAe8AD8/fj4AAAPAyAA"
    "AQAYQAEMAf//A3AAAAMAkAAAAwAAAwAeugJAIQABACdCAQEDcAAAAwCQAAADAAADAB6gIIEFluqumubAgAAAAwCA"
    "AAADAIQiAAEABkQBwXPBiQAAABRpc3BlAAAAAAAAAEAAAABAAAAAFGlzcGUAAAAAAAAAEAAAABAAAAAQcGl4aQAA"
    "AAADCAgIAAAAGmlwbWEAAAAAAAAAAgABAoECAAICA4QAAAAaaXJlZgAAAAAAAAAOZGltZwACAAEAAQAAADttZGF0"
    "AAAALygBr1IVryTmA5vEOKbWTNBa6pIsoKbW8+M/AqNrnHX67nyE5oCWkB8PdIvgEMOA"
)


def is_installed() -> bool:
    return pi_heif is not None


def check_installed(content: bytes, keep: Kept) -> None:
    """Raise UnsupportedImage for a file that is no HEIC, or if HEIC is not read."""
    if not BRANDS.fullmatch(content[8:12]):
        raise UnsupportedImage(VIDEO)
    if keep.heif == "refuse":
        raise UnsupportedImage(REFUSED)
    if not is_installed():
        raise UnsupportedImage(MISSING)


def size(content: bytes) -> tuple[int, int]:
    """Return the largest width and height that an item of the file states.

    Raises UnreadableImage and ImageTooLarge as avif.measure does.
    """
    measured = avif.measure_boxes(content)
    return measured.width, measured.height


def keeps_depth(keep: Kept) -> bool:
    """Return whether outputs have more than 8 bits a colour if their sources have."""
    return keep.heif == "avif" and deep_avif.is_installed()


def read(content: bytes, keep: Kept) -> Picture:
    """Return the primary picture of `content` as one that is written as JPEG or AVIF.

    Raises UnreadableImage for damage, UnsupportedImage for what the output cannot show.
    """
    library: ModuleType = pi_heif
    library.options.THUMBNAILS = library.options.DEPTH_IMAGES = library.options.AUX_IMAGES = False
    try:
        image = library.open_heif(content, convert_hdr_to_8bit=not keeps_depth(keep))
        primary = image[image.primary_index]
        # A copy, because the library frees its memory, without what follows each row.
        pixels = np.asarray(primary)[:, : primary.size[0]].copy()
    except (ValueError, EOFError, SyntaxError, RuntimeError, OSError) as error:
        raise UnreadableImage(f"the picture is damaged or cut short ({error})") from None
    subsampling = NAMED.get(primary.info.get("chroma"), "4:2:0")
    if keep.heif == "avif":
        return _as_avif(pixels, primary.info, subsampling, keep)
    frame = _frame(pixels)
    encoding = _metadata(primary.info, frame.mode, keep)
    encoding |= {"quality": JPEG_QUALITY, "subsampling": subsampling}
    way = display.of(profile=encoding.get("icc_profile"))
    return Picture((Frame(frame.pixels, frame.mode, way),), "JPEG", encoding)


def _as_avif(pixels: Array, info: dict[str, Any], subsampling: str, keep: Kept) -> Picture:
    """Return the picture of what pi-heif decoded as one that is written as AVIF."""
    depth, named = 8, info.get("nclx_profile") or {}
    if pixels.dtype == np.uint16:
        if not deep_avif.is_installed():
            raise UnsupportedImage(deep_avif.MISSING)
        depth = info["bit_depth"]
        frame = deep_avif.frame_of(pixels >> 16 - depth, depth)
    elif named.get("transfer_characteristics") in (display.PQ, display.HLG):
        raise UnsupportedImage(deep_avif.MISSING)
    else:
        frame = blanked(pixels, MODES[pixels.shape[2] if pixels.ndim == 3 else 1])
    colour = (
        named.get("color_primaries", UNSPECIFIED),
        named.get("transfer_characteristics", UNSPECIFIED),
    )
    encoding = _kept(info, info.get("icc_profile"), frame.mode, keep) | {
        "quality": AVIF_QUALITY,
        "speed": AVIF_SPEED,
        "subsampling": subsampling,
        DEPTH: depth,
        COLOUR: None if UNSPECIFIED in colour else colour,
    }
    profile = encoding.get("icc_profile")
    way = display.of(None if profile else colour[1], profile)
    return Picture((Frame(frame.pixels, frame.mode, way),), "AVIF", encoding)


def _frame(pixels: Array) -> Frame:
    """Return the frame of what pi-heif decoded; raise UnsupportedImage for other kinds."""
    if pixels.dtype == np.uint16:  # gray of more than 8 bits
        raise UnsupportedImage("gray HEIC of more than 8 bits is not handled: convert it to PNG")
    if pixels.ndim == 2:
        return Frame(pixels, "L")
    if pixels.shape[2] == 4:
        if pixels[..., 3].min() < 255:
            raise UnsupportedImage(
                "HEIC with transparency is not handled, because JPEG has none: convert it to PNG"
            )
        pixels = np.ascontiguousarray(pixels[..., :3])
    return Frame(pixels, "RGB")


def _metadata(info: dict[str, Any], mode: str, keep: Kept) -> dict[str, Any]:
    """Return the metadata that the JPEG keeps: its colours, and what `keep` chooses."""
    profile = info.get("icc_profile") or _profile_of(info.get("nclx_profile"))
    return _kept(info, profile, mode, keep)


def _kept(info: dict[str, Any], profile: bytes | None, mode: str, keep: Kept) -> dict[str, Any]:
    """Return the metadata that an output with the colour `profile` keeps."""
    options: dict[str, Any] = {}
    if checked := colour_profile.checked(profile, mode):
        options["icc_profile"] = checked
    holder = Image.new("RGB", (1, 1))
    holder.info["exif"] = info.get("exif") or b""
    if block := exif.kept(holder, keep):
        options["exif"] = block
    if packet := xmp.kept(info.get("xmp"), keep.xmp):
        options["xmp"] = packet
    return options


def _profile_of(named: dict[str, Any] | None) -> bytes | None:
    """Return a colour profile for named colours, or None for sRGB's.

    Raises UnsupportedImage for colours of HDR, which a JPEG of 8 bits cannot hold.
    """
    if not named:
        return None
    if named.get("transfer_characteristics") in (display.PQ, display.HLG):
        raise UnsupportedImage(
            "HEIC in HDR (PQ or HLG) is not handled, because JPEG has 8 bits: convert it to JPEG"
        )
    if named.get("color_primaries") != DISPLAY_P3:
        return None
    return _display_p3()


def _display_p3() -> bytes:
    """Return a profile of Display P3: sRGB's with other primaries."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    date = colour_profile.DATE
    profile[date] = bytes(date.stop - date.start)
    count = int.from_bytes(profile[128:132])
    for number in range(count):
        at = 132 + 12 * number
        name = bytes(profile[at : at + 4])
        if name in P3_COLUMNS:
            start = int.from_bytes(profile[at + 4 : at + 8]) + 8
            for place, value in enumerate(P3_COLUMNS[name]):
                profile[start + 4 * place : start + 4 * place + 4] = value.to_bytes(4, signed=True)
    return bytes(profile)
