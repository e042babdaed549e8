"""Read a file's bytes into a Picture: its format, its limits, and every pixel."""

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
    turning,
    unread,
    writing,
)
from worker.images.clock import DECODE_SECONDS, Clock
from worker.images.formats import BY_NAME
from worker.images.picture import Frame, Picture
from worker.images.tiff_directories import Tag
from worker.pixels import Array

# Pillow's own limit would be raised before that of `_check_size`, whose text names the setting.
Image.MAX_IMAGE_PIXELS = None

MOST_FRAMES = 500  # the default limit of frames in one picture
ORIENTATION = 0x0112  # Exif 2.32, table 4
NOT_A_PICTURE = "not a picture, or damaged from its first bytes"
HEIC = (
    "HEIC pictures and videos are not handled: no decoder for them comes under a licence that Veil "
    "may use. Convert it to JPEG or AVIF"
)
MAX_REASON = 160  # characters of a library's error that a message quotes


def decode(
    content: bytes,
    max_pixels: int,
    max_frames: int = MOST_FRAMES,
    keep_exif: Collection[str] = (),
    seconds: float = DECODE_SECONDS,
) -> Picture:
    """Return the picture in `content`, every frame fully decoded and upright.

    `keep_exif` names the fields of worker.exif_fields that the output keeps.

    Raises EmptyObject, UnreadableImage (no picture, or damaged), UnsupportedImage (a kind that is
    not handled) or ImageTooLarge. The latter is raised before any pixel is decoded if all frames
    together have more than `max_pixels`, or if there are more than `max_frames`. It is raised
    between frames and strips if decoding takes more than `seconds`; a call into a library cannot
    be interrupted.
    """
    if not content:
        raise EmptyObject("the file is empty: replace it by the picture")
    camera_raw.check(content)
    clock = Clock(seconds)
    form = _form_of(content)
    try:
        return _decoded(form, content, max_pixels, max_frames, keep_exif, clock)
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


def is_recognised(content: bytes) -> bool:
    """Return whether `content` begins like a picture of any format, handled or not."""
    return signatures.name_of(content) is not None


def _decoded(
    form: str,
    content: bytes,
    max_pixels: int,
    max_frames: int,
    keep_exif: Collection[str],
    clock: Clock,
) -> Picture:
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
    frames, durations = _frames(image, form, content, clock)
    if form != "TIFF":
        frames = _in_one_mode(frames)
        if len(frames) > 1:
            encoding["duration"] = durations
    return Picture(tuple(frames), form, encoding)


def _form_of(content: bytes) -> str:
    """Return Pillow's name of the format of `content`; raise for a format that is not handled."""
    name = signatures.name_of(content)
    if name is None:
        raise UnreadableImage(NOT_A_PICTURE)
    if name == signatures.HEIF:
        raise UnsupportedImage(HEIC)
    if name not in BY_NAME:
        titles = ", ".join(form.title for form in BY_NAME.values())
        raise UnsupportedImage(f"{name} pictures are not handled: use {titles}")
    return name


def _open(form: str, content: bytes, size: headers.Size) -> Any:
    """Return `content` opened by Pillow's plugin for `form`.

    Pillow decides which pixels are decoded, so it must not find more of them than `size` states.
    """
    try:
        if form == "JPEG":
            # Pillow's factory for JPEGs would parse the directory of further pictures.
            image: Any = JpegImageFile(io.BytesIO(content))
        else:
            image = Image.open(io.BytesIO(content), formats=(form,))
    except UnidentifiedImageError:
        if kind := camera_raw.kind(content):
            raise UnsupportedImage(
                f"TIFFs of this kind ({kind}) are not handled: convert it to RGB or gray"
            ) from None
        raise UnreadableImage(NOT_A_PICTURE) from None
    except MemoryError:
        raise
    except Exception as error:
        raise UnreadableImage(f"the picture's header is damaged ({_first_line(error)})") from error
    is_larger = image.width * image.height > size.width * size.height
    if is_larger or getattr(image, "n_frames", 1) > size.frames:
        raise UnreadableImage(
            "the picture is damaged: its header and its parts state different sizes"
        )
    return image


def _check_size(form: str, size: headers.Size, max_pixels: int, max_frames: int) -> None:
    """Raise ImageTooLarge for more frames or pixels than the limits allow."""
    if size.frames > max_frames:
        raise ImageTooLarge(
            f"this {form} has {size.frames:,} frames, the limit is {max_frames:,}: "
            "raise VEIL_MAX_FRAMES"
        )
    counted = size.pixels * BY_NAME[form].cost
    if counted <= max_pixels:
        return
    frames = f"{size.frames} frames of " if size.frames > 1 else ""
    is_plain = counted == size.frames * size.width * size.height
    note = "" if is_plain else f", which count as {counted:,},"
    raise ImageTooLarge(
        f"{frames}{size.width} × {size.height} pixels{note} are over the limit of {max_pixels:,}: "
        "raise VEIL_MAX_PIXELS"
    )


def _is_deep_png(form: str, content: bytes) -> bool:
    """Return whether this is a PNG of 16 bits, which Pillow shows in 8 unless it is gray."""
    return form == "PNG" and content[containers.PNG_BITS] == 16


def _jpeg(image: Any, content: bytes, keep_exif: Collection[str]) -> Picture:
    """Return the picture of a JPEG.

    It is decoded from the file without its metadata, because that file may be published. Only its
    orientation remains if EXIF turns it, because blocks keep their coefficients where they are.
    """
    if image.mode not in jpeg.COLOURS:
        raise UnsupportedImage(f"JPEGs of mode {image.mode} are not handled: convert it to RGB")
    metadata = _metadata(image, keep_exif)
    bare = jpeg.reassembled(content, metadata.get("icc_profile"), metadata.get("exif"))
    orientation, turn = _orientation(image), _turn(image)
    frame = Frame(_turned(jpeg.decoded(bare, image.mode), turn), image.mode)
    encoding = metadata | writing.jpeg_options(image, jpeg.is_stored_as_rgb(bare))
    if not jpeg_scans.all_agree(bare) or not jpeg_scans.ends_with_its_blocks(bare):
        return Picture((frame,), "JPEG", encoding)
    if turn is not None:
        block = exif.with_orientation(metadata.get("exif"), orientation)
        bare = jpeg.reassembled(bare, metadata.get("icc_profile"), block)
    return Picture((frame,), "JPEG", encoding, bare, orientation)


def _frames(image: Any, form: str, content: bytes, clock: Clock) -> tuple[list[Frame], list[int]]:
    """Return the frames of `image`, and the duration of each in milliseconds."""
    frames, durations = [], []
    for number in range(getattr(image, "n_frames", 1)):
        clock.check()
        image.seek(number)
        if form == "TIFF":
            frames.append(_tiff_page(image, content, clock))
        else:
            frames.append(_frame(image, form, content))
        durations.append(image.info.get("duration") or 0)
    return frames, durations


def _frame(image: Any, form: str, content: bytes) -> Frame:
    """Return the frame that `image` is at, of any format but TIFF."""
    image.load()
    turn = _turn(image)
    if form == "BMP" and image.mode == "RGBA":
        image = _without_alpha(image)
    if not _is_deep_png(form, content) or image.mode == "I;16":
        frame = _loaded(image)
    elif "transparency" in image.info or getattr(image, "n_frames", 1) > 1:
        raise UnsupportedImage(
            "this 16-bit PNG has a transparent value or several frames, which is not handled"
        )
    else:
        frame = deep.read_png(content, np.asarray(image))
    return Frame(_turned(frame.pixels, turn), frame.mode)


def _without_alpha(image: Any) -> Any:
    """Return an opaque BMP as RGB; raise UnsupportedImage for others, which Pillow cannot write."""
    if np.asarray(image.getchannel("A")).min() < 255:
        raise UnsupportedImage("BMPs with transparency are not handled: use PNG")
    return image.convert("RGB")


def _tiff_page(image: Any, content: bytes, clock: Clock) -> Frame:
    """Return the page that `image` is at. Pillow turns it upright itself."""
    tiff.check(image, content, clock)
    turn, is_deep = _turn(image), tiff.is_deep(image)
    extra = image.tag_v2.get(Tag.EXTRA_SAMPLES)
    image.load()
    if image.mode in ("P", "PA"):
        image.putpalette(tiff.palette(image), "RGB;L")
    if image.mode.startswith("I;16"):
        return deep.gray_page(np.asarray(image), tiff.bits(image), tiff.has_white_at_zero(image))
    if not is_deep:
        return _loaded(image)
    if image.mode not in ("RGB", "RGBA"):
        raise UnsupportedImage(
            f"TIFFs of mode {image.mode} with 16 bits are not handled: convert it to RGB"
        )
    return deep.read_tiff(content, image.tell(), np.asarray(image), turn, extra)


def _loaded(image: Any) -> Frame:
    """Return what Pillow has loaded, in one of Frame's modes.

    Colours of fully transparent pixels are blanked.
    """
    if image.mode.startswith("I;16"):
        if "transparency" in image.info:
            raise UnsupportedImage(
                "this PNG has 16-bit gray with a transparent value, which is not handled"
            )
        return Frame(np.array(image).astype(np.uint16), "I;16")
    if image.mode == "P" and len(image.palette.palette) < 3 * (int(np.asarray(image).max()) + 1):
        raise UnreadableImage("the picture is damaged: it has colours that are not in its palette")
    image = _in_frame_mode(image)
    pixels = np.array(image)
    if image.mode in ("LA", "RGBA"):
        pixels[pixels[..., -1] == 0] = 0
    return Frame(pixels, image.mode)


def _in_frame_mode(image: Any) -> Any:
    """Return `image` in one of Frame's modes of 8 bits; raise UnsupportedImage for other modes."""
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("L", "LA", "La") else "RGBA")
    elif image.mode in ("P", "PA", "YCbCr", "RGBX"):
        image = image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    if image.mode not in ("L", "LA", "RGB", "RGBA", "CMYK"):
        raise UnsupportedImage(f"pictures of mode {image.mode} are not handled: convert it to RGB")
    return image


def _in_one_mode(frames: list[Frame]) -> list[Frame]:
    """Return the frames of an animation in one mode, with transparency if one of them has it."""
    if len({frame.mode for frame in frames}) == 1:
        return frames
    mode = "RGBA" if any(frame.mode in ("LA", "RGBA") for frame in frames) else "RGB"
    return [Frame(np.array(Image.fromarray(frame.pixels).convert(mode)), mode) for frame in frames]


def _turn(image: Any) -> deep.Turn | None:
    """Return what turns the pixels upright, or None."""
    return turning.TURNS.get(_orientation(image))


def _orientation(image: Any) -> int:
    """Return the orientation of `image`, from 1 to 8.

    EXIF that cannot be read turns nothing, as in viewers.
    """
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:
        return turning.UPRIGHT
    return orientation if orientation in turning.TURNS else turning.UPRIGHT


def _turned(pixels: Array, turn: deep.Turn | None) -> Array:
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:MAX_REASON]


def _metadata(image: Any, keep_exif: Collection[str]) -> dict[str, Any]:
    """Return the metadata that outputs keep: the colour profile and the EXIF fields `keep_exif`."""
    options: dict[str, Any] = {}
    if profile := colour_profile.checked(image.info.get("icc_profile"), image.mode):
        options["icc_profile"] = profile
    if image.format in exif.FORMATS and (block := exif.kept(image, keep_exif)):
        options["exif"] = block
    return options
