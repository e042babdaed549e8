"""Write frames as a file of the source's kind, without metadata that was not asked for."""

import io
import os
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
from PIL import Image, JpegImagePlugin, TiffImagePlugin

from worker.images import (
    bmp,
    containers,
    deep,
    jpeg2000,
    palette,
    png,
)
from worker.images.heif import avif, deep_avif
from worker.images.jpeg import blocks
from worker.images.picture import Frame, Picture
from worker.images.tiff import fax
from worker.images.turning import turned_back
from worker.pixels import Array

# A lossy WebP or AVIF does not state the quality with which it was written.
WEBP_QUALITY = 90
AVIF_QUALITY = 80
AVIF_SPEED = 8
# Of zlib. Photographs are 4 % larger than at its default, 6, and take less than half the time.
PNG_LEVEL = 4
TIFF_JPEG_QUALITY = 90
TIFF_COMPRESSIONS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
TIFF_JPEG_MODES = ("L", "RGB", "CMYK")
DEFLATE, FAX = "tiff_adobe_deflate", "group4"
ANIMATION_OPTIONS = ("loop", "default_image")
NOT_DISPOSED, TO_BACKGROUND = 1, 2  # disposal methods (GIF89a, 23.c.iv)
# A lossless JPEG 2000 may be this many times as large as its source. If it would be larger, the
# source was lossy.
MAX_LOSSLESS_SIZE = 1.5
# Keys of Picture.encoding that are not options of Pillow.
PALETTE = "palette"  # whether the source has a palette
PAGES = "pages"  # the options of each page of a TIFF
COLOUR = "colour"  # primaries and transfer of an AVIF (H.273)
DEPTH = "depth"  # bits a colour of an AVIF
CHUNKS = "chunks"  # the chunks of a PNG that Pillow does not write
RESOLUTION = "resolution"  # the resolution box of a JPEG 2000
RATE = "rate"  # how many times smaller than its pixels a JPEG 2000 is
# An option of Pillow that `_saved` drops if it fails.
PROGRESSIVE = "progressive"


def encode(
    picture: Picture, frames: Sequence[Array], changed: Sequence[blocks.Mask | None] = ()
) -> bytes:
    """Return a file of the picture's format with `frames` in it.

    `frames` has an array for each of `picture.frames`, of the same shape and dtype. Only the
    description of colour, the density and the metadata that was asked for are written besides;
    comments, thumbnails and further pictures are not part of a Picture. A JPEG keeps its compressed
    data if its frame is the picture's own array. Otherwise it keeps that of all blocks without a
    pixel that is `changed`, which marks the changed pixels of each frame.
    """
    unchanged = all(new is frame.pixels for new, frame in zip(frames, picture.frames, strict=True))
    if picture.reassembled is not None:
        if unchanged:
            return picture.reassembled
        if picture.format == "JPEG" and changed and changed[0] is not None:
            original, new, marked = (
                turned_back(pixels, picture.orientation)
                for pixels in (picture.frames[0].pixels, frames[0], changed[0])
            )
            mode = picture.frames[0].mode
            content = blocks.encode(picture.reassembled, Frame(original, mode), new, marked)
            if content is not None:
                return content
    options = dict(picture.encoding)
    colour, chunks = options.pop(COLOUR, None), list(options.pop(CHUNKS, ()))
    if picture.format == "PNG":
        options.pop("dpi", None)  # a chunk states it more exactly
        if packet := options.pop("xmp", None):
            chunks.append(png.xmp_chunk(packet))
    content = _encoded(picture, frames, options)
    if colour is not None:
        return avif.with_colour(content, colour)
    return png.with_chunks(content, chunks)


def _encoded(picture: Picture, frames: Sequence[Array], options: dict[str, Any]) -> bytes:
    """Return the file of `frames`, without what Pillow does not write."""
    if picture.format == "TIFF":
        return _tiff(picture, frames, options[PAGES])
    if picture.format == "PNG" and frames[0].dtype == np.uint16:
        return deep.write_png(frames[0], options.get("icc_profile"), options.get("exif"))
    if picture.format == "AVIF" and frames[0].dtype == np.uint16:
        return deep_avif.write(frames[0], options, AVIF_SPEED)
    options.pop(DEPTH, None)
    if picture.format == "BMP" and picture.frames[0].mode == "RGBA":
        return bmp.with_alpha(frames[0], options.get("dpi"))
    images = _images(picture, frames, options.pop(PALETTE, False))
    if picture.format == "GIF" and _mark_transparency(images):
        options["disposal"] = TO_BACKGROUND
    if picture.format == "JPEG2000":
        return _jpeg2000(images, options)
    return _saved(images, picture.format, options)


def _tiff(picture: Picture, frames: Sequence[Array], pages: Sequence[dict[str, Any]]) -> bytes:
    """Return a TIFF, each page with the options of its own.

    If one of them has 16 bits, all are compressed alike.
    """
    if any(pixels.dtype == np.uint16 for pixels in frames):
        cmyk = [number for number, frame in enumerate(picture.frames) if frame.mode == "CMYK"]
        return deep.write_pages(frames, pages, cmyk)
    target = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(target) as file:
        for pixels, frame, options in zip(frames, picture.frames, pages, strict=True):
            _save_page(file, _image(pixels, frame.mode), frame, options)
    return target.getvalue()


def _save_page(file: Any, image: Image.Image, source: Frame, options: dict[str, Any]) -> None:
    """Append a page to `file`, Pillow's writer of a TIFF."""
    if options["compression"] == FAX:
        image = _in_black_and_white(image, source)
        options = options | {"compression": FAX if image.mode == "1" else DEFLATE}
    elif options["compression"] == "jpeg":
        options = options | {"quality": TIFF_JPEG_QUALITY}
    image.save(file, "TIFF", **options)
    file.newFrame()


def _images(picture: Picture, frames: Sequence[Array], has_palette: bool) -> list[Image.Image]:
    """Return `frames` as Pillow's images, with a palette if the source has one."""
    pairs = zip(frames, picture.frames, strict=True)
    if has_palette and frames[0].ndim == 3:
        return [palette.indexed(pixels, frame.pixels) for pixels, frame in pairs]
    return [_image(pixels, frame.mode) for pixels, frame in pairs]


def options(image: Any, content: bytes) -> dict[str, Any]:
    """Return the options with which Pillow writes a file like `content`, but no JPEG or TIFF.

    `image` is `content` opened by Pillow.
    """
    form = image.format
    found = _animation_options(image)
    if form == "PNG":
        found |= _png_options(image, content)
    elif form == "GIF":
        found |= {PALETTE: True, "disposal": NOT_DISPOSED}
    elif form == "WEBP":
        found |= _webp_options(content)
    elif form == "AVIF":
        found |= _avif_options(content)
    elif form == "JPEG2000":
        found |= _jpeg2000_options(image, content)
    return found


def jpeg_options(image: Any, stored_as_rgb: bool) -> dict[str, Any]:
    """Return the options with which Pillow writes a JPEG like `image`.

    The source's quantization tables keep the output from being coarser, or larger than needed.
    """
    return {
        "qtables": list(image.quantization.values()) if image.quantization else None,
        "subsampling": JpegImagePlugin.get_sampling(image),
        PROGRESSIVE: bool(image.info.get(PROGRESSIVE)),
        "keep_rgb": stored_as_rgb,
    }


def _is_animated(image: Any) -> bool:
    return getattr(image, "n_frames", 1) > 1


def _animation_options(image: Any) -> dict[str, Any]:
    if not _is_animated(image):
        return {}
    return {name: image.info[name] for name in ANIMATION_OPTIONS if name in image.info}


def _png_options(image: Any, content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"compress_level": PNG_LEVEL, CHUNKS: png.kept_chunks(content)}
    if _is_animated(image):
        return found | {"disposal": 0, "blend": 0}
    return found | {PALETTE: image.mode == "P"}


def _webp_options(content: bytes) -> dict[str, Any]:
    if containers.webp_is_lossless(content):
        return {"lossless": True}
    return {"quality": WEBP_QUALITY}


def _avif_options(content: bytes) -> dict[str, Any]:
    return {
        "quality": AVIF_QUALITY,
        "speed": AVIF_SPEED,
        "subsampling": containers.avif_subsampling(content),
        COLOUR: avif.colour(content),
        DEPTH: containers.avif_depth(content),
    }


def tiff_page_options(image: Any) -> dict[str, Any]:
    """Return the options with which Pillow writes a page like the one that `image` is at."""
    compression = image.info.get("compression")
    if compression in fax.COMPRESSIONS:
        return {"compression": FAX}
    is_kept = compression in TIFF_COMPRESSIONS
    if compression == "jpeg":
        is_kept = image.mode in TIFF_JPEG_MODES
    return {"compression": compression if is_kept else DEFLATE}


def _in_black_and_white(image: Image.Image, source: Frame) -> Image.Image:
    """Return `image` in black and white if its `source` is; other pages stay as they are."""
    is_bilevel = source.mode == "L" and not ((source.pixels > 0) & (source.pixels < 255)).any()
    return image.convert("1", dither=Image.Dither.NONE) if is_bilevel else image


def _mark_transparency(images: list[Image.Image]) -> bool:
    """Replace the alpha of each palette by the index of its transparent colour, as GIFs have it.

    Colours of which a mask left a part of their alpha become opaque. Returns whether an image has
    transparency.
    """
    for image in images:
        alpha = image.info.pop("transparency", b"")
        if 0 in alpha:
            image.info["transparency"] = alpha.index(0)
    return any("transparency" in image.info for image in images)


def _jpeg2000_options(image: Any, content: bytes) -> dict[str, Any]:
    sample_bytes = 2 if image.mode == "I;16" else 1
    size = image.width * image.height * len(image.getbands()) * sample_bytes
    return {
        "no_jp2": content.startswith(jpeg2000.CODESTREAM_START),
        "mct": int("RGB" in image.mode),
        "irreversible": not jpeg2000.is_lossless(content),
        RATE: max(1.0, size / len(content)),
        RESOLUTION: jpeg2000.resolution(content),
    }


def _jpeg2000(images: list[Image.Image], options: dict[str, Any]) -> bytes:
    """Return a JPEG 2000, lossless if the source was.

    The reversible wavelet does not prove that the source was lossless, because its data can be cut
    off at a rate as well. If the lossless output is much larger than the source, it was lossy.
    """
    rate, profile = options.pop(RATE), options.pop("icc_profile", None)
    resolution = options.pop(RESOLUTION, None)
    is_lossy = options["irreversible"]
    if not is_lossy:
        content = _saved(images, "JPEG2000", options)
        raw_bytes = sum(np.asarray(image).nbytes for image in images)
        is_lossy = len(content) > MAX_LOSSLESS_SIZE * raw_bytes / rate
    if is_lossy:
        lossy_options = options | {"quality_mode": "rates", "quality_layers": [rate]}
        content = _saved(images, "JPEG2000", lossy_options)
    if options["no_jp2"]:
        return content
    return jpeg2000.with_header(content, profile, resolution)


def _image(pixels: Array, mode: str) -> Image.Image:
    return Image.fromarray(pixels, mode) if mode == "CMYK" else Image.fromarray(pixels)


def _saved(images: list[Image.Image], form: str, options: dict[str, Any]) -> bytes:
    if len(images) > 1:
        options = options | {"save_all": True, "append_images": images[1:]}
        if options.get("default_image"):  # it precedes the animation and has no duration
            options["duration"] = options["duration"][1:]
    try:
        return _written(images[0], form, options)
    except OSError:
        if not options.get(PROGRESSIVE):
            raise
        # Pillow's buffer for a progressive JPEG has two bytes a pixel. A baseline one may have any
        # size.
        return _written(images[0], form, options | {PROGRESSIVE: False})


def _written(image: Image.Image, form: str, options: dict[str, Any]) -> bytes:
    """Return the file of `image`.

    Pillow releases the interpreter's lock while it encodes a JPEG only if it writes to a file of
    the operating system.
    """
    with _file_in_memory() if form == "JPEG" else io.BytesIO() as file:
        image.save(file, form, **options)
        file.seek(0)
        return file.read()


def _file_in_memory() -> IO[bytes]:
    """Return a file of the operating system that is on no disk, or a BytesIO if there is none."""
    try:
        return os.fdopen(os.memfd_create("picture"), "w+b")
    except (AttributeError, OSError):  # not Linux, or not allowed
        return io.BytesIO()
