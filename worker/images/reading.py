"""From a file's bytes to a Picture: recognised by content, bounded by the header, decoded whole."""

import io
from collections.abc import Collection
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from tasks.errors import EmptyObject, ImageTooLarge, UnreadableImage, UnsupportedImage, VeilError
from worker.images import (
    camera_raw,
    colour_profile,
    containers,
    deep,
    exif,
    headers,
    jpeg,
    jpeg2000,
    jpeg_scans,
    signatures,
    tiff,
    unread,
    writing,
)
from worker.images.clock import DECODE_SECONDS, Clock
from worker.images.formats import BY_NAME
from worker.images.picture import Frame, Picture
from worker.pixels import Array

# The limit is checked below, from the header, by name and by setting; Pillow's own would come
# first.
Image.MAX_IMAGE_PIXELS = None

MOST_FRAMES = 500
ORIENTATION = 0x0112  # EXIF 2.32, table 4
TURNS: dict[int, deep.Turn] = {
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: np.rot90(p, 1),
}
HEIC = (
    "HEIC pictures and videos are not handled: no decoder for them comes under a licence that Veil may use. "
    "Convert it to JPEG or AVIF"
)


def decode(
    content: bytes,
    max_pixels: int,
    max_frames: int = MOST_FRAMES,
    keep_exif: Collection[str] = (),
    seconds: float = DECODE_SECONDS,
) -> Picture:
    """The picture in `content`, every frame fully decoded and upright.

    Raises EmptyObject, UnreadableImage (no picture, or damaged), UnsupportedImage (a kind that is
    not handled) or ImageTooLarge (all frames together have more than `max_pixels`, or there are
    more than `max_frames`; known before any pixel is decoded; or decoding takes more than
    `seconds`, which is checked between frames and strips: one call into a library can't be ended).
    `keep_exif` names the fields of worker.exif_fields that the output keeps.
    """
    if not content:
        raise EmptyObject("the file is empty: upload the picture again")
    camera_raw.check(content)
    clock = Clock(seconds)
    form = _form_of(content)
    try:
        size = headers.measure(form, content, max_pixels, max_frames)
        containers.check(form, content)
        _check_size(form, size, max_pixels, max_frames)
        image = _open(form, content, size)
        unread.check(form, image, content)
        if form == "JPEG":
            return _jpeg(image, content, keep_exif)
        if form == "JPEG2000":
            image.info["icc_profile"] = jpeg2000.profile(content)
        encoding = writing.options(image, content) | _metadata(image, keep_exif)
        frames = _frames(image, form, content, encoding, clock)
    except VeilError:
        raise
    except MemoryError:
        raise ImageTooLarge(
            "not enough memory to decode this picture: lower VEIL_MAX_PIXELS"
        ) from None
    except Exception as error:
        raise UnreadableImage(
            f"the picture is damaged or cut short ({_first_line(error)})"
        ) from error
    return Picture(tuple(frames), form, encoding)


def is_recognised(content: bytes) -> bool:
    """Return whether `content` begins like a picture of any kind, handled or not, whole or
    damaged.
    """
    return signatures.name_of(content) is not None


def _form_of(content: bytes) -> str:
    """Return the format of `content`, by Pillow's name; raises for one that is not handled."""
    name = signatures.name_of(content)
    if name is None:
        raise UnreadableImage("not a picture, or damaged from its first bytes")
    if name == signatures.HEIF:
        raise UnsupportedImage(HEIC)
    if name not in BY_NAME:
        raise UnsupportedImage(
            f"{name} pictures are not handled: use {', '.join(form.title for form in BY_NAME.values())}"
        )
    return name


def _open(form: str, content: bytes, size: headers.Size) -> Any:
    """Return `content` opened by the one plugin of `form`.

    Pillow decides which pixels are seen, so a file that it measures differently from its structure
    is refused.
    """
    try:
        # Not by way of Pillow's factory, which would parse the directory of further pictures.
        image = (
            JpegImageFile(io.BytesIO(content))
            if form == "JPEG"
            else Image.open(io.BytesIO(content), formats=(form,))
        )
    except UnidentifiedImageError:
        if kind := camera_raw.kind(content):
            raise UnsupportedImage(
                f"TIFFs of this kind ({kind}) are not handled: convert it to RGB or gray"
            ) from None
        raise UnreadableImage("not a picture, or damaged from its first bytes") from None
    except MemoryError:
        raise
    except Exception as error:
        raise UnreadableImage(f"the picture's header is damaged ({_first_line(error)})") from error
    if (
        image.width * image.height > size.width * size.height
        or getattr(image, "n_frames", 1) > size.frames
    ):
        raise UnreadableImage(
            "the picture is damaged: its header and its parts state different sizes"
        )
    return image


def _check_size(form: str, size: headers.Size, max_pixels: int, max_frames: int) -> None:
    if size.frames > max_frames:
        raise ImageTooLarge(
            f"this {form} has {size.frames:,} frames, the limit is {max_frames:,}: raise VEIL_MAX_FRAMES"
        )
    _refuse_large(
        size.frames, size.width, size.height, size.pixels * BY_NAME[form].cost, max_pixels
    )


def _refuse_large(count: int, width: int, height: int, pixels: int, max_pixels: int) -> None:
    if pixels > max_pixels:
        frames = f"{count} frames of " if count > 1 else ""
        counted = "" if pixels == count * width * height else f", which count as {pixels:,},"
        raise ImageTooLarge(
            f"{frames}{width} × {height} pixels{counted} are over the limit of {max_pixels:,}: raise VEIL_MAX_PIXELS"
        )


def _is_deep(image: Any, form: str, content: bytes) -> bool:
    """Whether a channel has 16 bits, which Pillow shows of PNG and TIFF in gray alone."""
    if form == "PNG":
        return content[containers.PNG_BITS] == 16
    return bool(image.mode == "I;16")


def _jpeg(image: Any, content: bytes, keep_exif: Collection[str]) -> Picture:
    """A JPEG is decoded from what is left of it without its metadata: that alone could be
    published.
    """
    if image.mode not in jpeg.COLOURS:
        raise UnsupportedImage(f"JPEGs of mode {image.mode} are not handled: convert it to RGB")
    metadata = _metadata(image, keep_exif)
    bare = jpeg.reassembled(content, metadata.get("icc_profile"), metadata.get("exif"))
    turn = _turn(image)
    frame = Frame(_turned(jpeg.decoded(bare, image.mode), turn), image.mode)
    encoding = metadata | writing.jpeg_options(image, jpeg.is_stored_as_rgb(bare))
    is_kept = turn is None and jpeg_scans.all_agree(bare) and jpeg_scans.ends_with_its_blocks(bare)
    return Picture((frame,), "JPEG", encoding, bare if is_kept else None)


def _frames(
    image: Any, form: str, content: bytes, encoding: dict[str, Any], clock: Clock
) -> list[Frame]:
    count = getattr(image, "n_frames", 1)
    frames, durations = [], []
    for number in range(count):
        clock.check()
        image.seek(number)
        frames.append(
            _tiff_page(image, content, clock) if form == "TIFF" else _frame(image, form, content)
        )
        durations.append(image.info.get("duration") or 0)
    if count > 1 and form != "TIFF":
        encoding["duration"] = durations
    return frames if form == "TIFF" else _alike(frames)


def _frame(image: Any, form: str, content: bytes) -> Frame:
    image.load()
    turn = _turn(image)
    if form == "BMP" and image.mode == "RGBA":
        if np.asarray(image.getchannel("A")).min() < 255:
            raise UnsupportedImage(
                "BMPs with transparency are not handled: use PNG"
            )  # Pillow writes none
        image = image.convert("RGB")
    if not _is_deep(image, form, content) or image.mode == "I;16":
        frame = _shallow(image)
    elif "transparency" in image.info or getattr(image, "n_frames", 1) > 1:
        raise UnsupportedImage(
            "this 16-bit PNG has a transparent value or several frames, which is not handled"
        )
    else:
        frame = deep.read_png(content, np.asarray(image))
    return Frame(_turned(frame.pixels, turn), frame.mode)


def _tiff_page(image: Any, content: bytes, clock: Clock) -> Frame:
    """The page that `image` is at; Pillow turns it upright itself."""
    tiff.check(image, content, clock)
    turn, extra, is_deep = _turn(image), image.tag_v2.get(tiff.EXTRA_SAMPLES), tiff.is_deep(image)
    image.load()
    if image.mode in ("P", "PA"):
        image.putpalette(tiff.palette(image), "RGB;L")
    if image.mode.startswith("I;16"):
        return deep.gray_page(np.asarray(image), tiff.bits(image), tiff.has_white_at_zero(image))
    if not is_deep:
        return _shallow(image)
    if image.mode not in ("RGB", "RGBA"):
        raise UnsupportedImage(
            f"TIFFs of mode {image.mode} with 16 bits are not handled: convert it to RGB"
        )
    return deep.read_tiff(content, image.tell(), np.asarray(image), turn, extra)


def _shallow(image: Any) -> Frame:
    """What Pillow has loaded, in one of Frame's modes. Colours that full transparency hides are
    blanked.
    """
    if image.mode.startswith("I;16"):
        if "transparency" in image.info:
            raise UnsupportedImage(
                "this PNG has 16-bit gray with a transparent value, which is not handled"
            )
        return Frame(np.array(image).astype(np.uint16), "I;16")
    if image.mode == "P" and len(image.palette.palette) < 3 * (int(np.asarray(image).max()) + 1):
        raise UnreadableImage("the picture is damaged: it has colours that are not in its palette")
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("L", "LA", "La") else "RGBA")
    elif image.mode in ("P", "PA", "YCbCr", "RGBX"):
        image = image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    if image.mode not in ("L", "LA", "RGB", "RGBA", "CMYK"):
        raise UnsupportedImage(f"pictures of mode {image.mode} are not handled: convert it to RGB")
    pixels = np.array(image)
    if image.mode in ("LA", "RGBA"):
        pixels[pixels[..., -1] == 0] = 0
    return Frame(pixels, image.mode)


def _alike(frames: list[Frame]) -> list[Frame]:
    """All frames of an animation in one mode, with transparency if one has it."""
    if len({frame.mode for frame in frames}) == 1:
        return frames
    mode = "RGBA" if any(frame.mode in ("LA", "RGBA") for frame in frames) else "RGB"
    return [Frame(np.array(Image.fromarray(frame.pixels).convert(mode)), mode) for frame in frames]


def _turn(image: Any) -> deep.Turn | None:
    """How the pixels are turned to be seen as meant. EXIF that can't be read turns nothing, in a
    viewer as here.
    """
    try:
        return TURNS.get(image.getexif().get(ORIENTATION))
    except Exception:
        return None


def _turned(pixels: Array, turn: deep.Turn | None) -> Array:
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]


def _metadata(image: Any, keep_exif: Collection[str]) -> dict[str, Any]:
    """What is kept of the file's metadata: the colour profile, and the EXIF fields that were asked
    for.
    """
    options: dict[str, Any] = {}
    if profile := colour_profile.checked(image.info.get("icc_profile"), image.mode):
        options["icc_profile"] = profile
    if image.format in exif.FORMATS and (block := exif.kept(image, keep_exif)):
        options["exif"] = block
    return options
