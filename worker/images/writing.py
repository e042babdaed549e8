"""From frames back to a file of the same kind, with nothing in it but what is asked for."""

import io
import os
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
from PIL import Image, JpegImagePlugin

from worker.images import containers, deep, jpeg2000, palette
from worker.images.picture import Picture
from worker.pixels import Array

WEBP_QUALITY = 90  # a lossy WebP does not say which quality it was written with, nor does an AVIF
AVIF_QUALITY = 80
AVIF_SPEED = 8
# of zlib: photographs are 4 % larger than at its default, 6, and take less than half the time
PNG_LEVEL = 4
TIFF_JPEG_QUALITY = 90
TIFF_COMPRESSIONS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
DEFLATE = "tiff_adobe_deflate"
NOT_DISPOSED, TO_BACKGROUND = 1, 2  # GIF89a, 23.c.iv
PROGRESSIVE = "progressive"
PALETTE = "palette"
RATE = "rate"  # how many times smaller than its pixels a JPEG 2000 was
LOSSY = 1.5  # a file that is so many times smaller than a lossless one


def encode(picture: Picture, frames: Sequence[Array]) -> bytes:
    """A file of the picture's format with `frames` in it, one for each of `picture.frames` and
    shaped as its pixels.

    Of all metadata only the colour profile and the EXIF fields that were asked for are written:
    XMP, comments, thumbnails and further pictures never get here. A JPEG whose frame is the
    picture's own, nothing changed, keeps its compressed data.
    """
    unchanged = all(new is frame.pixels for new, frame in zip(frames, picture.frames, strict=True))
    if unchanged and picture.reassembled is not None:
        return picture.reassembled
    options = dict(picture.encoding)
    if picture.format == "PNG" and frames[0].dtype == np.uint16:
        return deep.write_png(frames[0], options.get("icc_profile"), options.get("exif"))
    if picture.format == "TIFF" and any(pixels.dtype == np.uint16 for pixels in frames):
        cmyk = [number for number, frame in enumerate(picture.frames) if frame.mode == "CMYK"]
        return deep.write_tiff(frames, options.get("icc_profile"), cmyk)
    if options.pop(PALETTE, False) and frames[0].ndim == 3:
        images = [
            palette.indexed(new, frame.pixels)
            for new, frame in zip(frames, picture.frames, strict=True)
        ]
    else:
        images = [
            _image(pixels, frame.mode) for pixels, frame in zip(frames, picture.frames, strict=True)
        ]
    if picture.format == "GIF" and _make_transparent(images):
        options["disposal"] = TO_BACKGROUND
    if picture.format == "JPEG2000":
        return _jpeg2000(images, options)
    return _saved(images, picture.format, options)


def options(image: Any, content: bytes) -> dict[str, Any]:
    """The options with which Pillow writes a file like `content`, which it has opened as
    `image`.
    """
    found: dict[str, Any] = {}
    form, animated = image.format, getattr(image, "n_frames", 1) > 1
    if animated and form != "TIFF":
        found |= {
            name: image.info[name] for name in ("loop", "default_image") if name in image.info
        }
    if form == "PNG":
        found |= {"compress_level": PNG_LEVEL}
        found |= {"disposal": 0, "blend": 0} if animated else {PALETTE: image.mode == "P"}
    elif form == "GIF":
        found |= {PALETTE: True, "disposal": NOT_DISPOSED}
    elif form == "WEBP":
        found |= (
            {"lossless": True}
            if containers.webp_is_lossless(content)
            else {"quality": WEBP_QUALITY}
        )
    elif form == "TIFF":
        found |= _tiff_options(image)
    elif form == "AVIF":
        found |= {
            "quality": AVIF_QUALITY,
            "speed": AVIF_SPEED,
            "subsampling": containers.avif_subsampling(content),
        }
    elif form == "JPEG2000":
        found |= _jpeg2000_options(image, content)
    return found


def jpeg_options(image: Any, stored_as_rgb: bool) -> dict[str, Any]:
    """As `options`, for a JPEG: the source's own tables, neither coarser nor needlessly finer than
    what was there.
    """
    return {
        "qtables": list(image.quantization.values()) if image.quantization else None,
        "subsampling": JpegImagePlugin.get_sampling(image),
        PROGRESSIVE: bool(image.info.get(PROGRESSIVE)),
        "keep_rgb": stored_as_rgb,
    }


def _tiff_options(image: Any) -> dict[str, Any]:
    compression = image.info.get("compression")
    if compression not in TIFF_COMPRESSIONS or (
        compression == "jpeg" and image.mode not in ("L", "RGB", "CMYK")
    ):
        compression = DEFLATE
    return {"compression": compression} | (
        {"quality": TIFF_JPEG_QUALITY} if compression == "jpeg" else {}
    )


def _make_transparent(images: list[Image.Image]) -> bool:
    """Name the transparent colour as a GIF does, by its place; whether there is one."""
    transparent = [image for image in images if "transparency" in image.info]
    for image in transparent:
        image.info["transparency"] = image.info["transparency"].index(0)
    return bool(transparent)


def _jpeg2000_options(image: Any, content: bytes) -> dict[str, Any]:
    size = image.width * image.height * len(image.getbands()) * (2 if image.mode == "I;16" else 1)
    return {
        "no_jp2": content.startswith(jpeg2000.CODESTREAM),
        "mct": int("RGB" in image.mode),
        "irreversible": not jpeg2000.is_lossless(content),
        RATE: max(1.0, size / len(content)),
    }


def _jpeg2000(images: list[Image.Image], options: dict[str, Any]) -> bytes:
    """Lossless if the source was: the reversible wavelet can be cut at a rate as well, and only the
    size tells.
    """
    rate, profile = options.pop(RATE), options.pop("icc_profile", None)
    content = b"" if options["irreversible"] else _saved(images, "JPEG2000", options)
    raw = sum(np.asarray(image).nbytes for image in images)
    if options["irreversible"] or len(content) > LOSSY * raw / rate:
        content = _saved(
            images, "JPEG2000", options | {"quality_mode": "rates", "quality_layers": [rate]}
        )
    return jpeg2000.with_profile(content, profile) if profile and not options["no_jp2"] else content


def _image(pixels: Array, mode: str) -> Image.Image:
    return Image.fromarray(pixels, mode) if mode == "CMYK" else Image.fromarray(pixels)


def _saved(images: list[Image.Image], form: str, options: dict[str, Any]) -> bytes:
    if len(images) > 1:
        options = options | {"save_all": True, "append_images": images[1:]}
        if options.get("default_image"):  # which stands before the animation and has no duration
            options["duration"] = options["duration"][1:]
    try:
        return _written(images[0], form, options)
    except OSError:
        if not options.get(PROGRESSIVE):
            raise
        # Pillow's buffer holds two bytes a pixel of a progressive JPEG; a baseline one may have any
        # size.
        return _written(images[0], form, options | {PROGRESSIVE: False})


def _written(image: Image.Image, form: str, options: dict[str, Any]) -> bytes:
    """The file of `image`. Pillow encodes a JPEG without the interpreter's lock only into a file of
    the system's.
    """
    with _file_in_memory() if form == "JPEG" else io.BytesIO() as file:
        image.save(file, form, **options)
        file.seek(0)
        return file.read()


def _file_in_memory() -> IO[bytes]:
    """A file of the system's that is on no disk; Python's own where there is none."""
    try:
        return os.fdopen(os.memfd_create("picture"), "w+b")
    except (AttributeError, OSError):  # not Linux, or not allowed
        return io.BytesIO()
