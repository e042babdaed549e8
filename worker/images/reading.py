"""Read a file's bytes into a Picture: its format, its limits, and every pixel."""

import io
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from tasks.errors import EmptyObject, ImageTooLarge, UnreadableImage, UnsupportedImage, VeilError
from worker.images import (
    apng,
    bmp,
    colour_profile,
    containers,
    copies,
    deep,
    display,
    gif,
    headers,
    jpeg2000,
    png,
    signatures,
    unread,
    writing,
)
from worker.images.clock import DECODE_SECONDS, Clock
from worker.images.display import Display
from worker.images.formats import BY_NAME
from worker.images.heif import avif, deep_avif, heic
from worker.images.jpeg import tolerance
from worker.images.jpeg.decoding import COLOURS, is_stored_as_rgb
from worker.images.jpeg.scans import all_agree, ends_with_its_blocks
from worker.images.jpeg.segments import (
    JUNK,
    NO_END,
    SCAN_PARAMETERS,
    has_adobe_marker,
    has_junk,
    has_other_parameters,
    reassembled,
    trailer_without_end,
)
from worker.images.loading import blanked, loaded
from worker.images.picture import Frame, Picture
from worker.images.tiff import camera_raw
from worker.images.tiff.directories import Tag
from worker.images.tiff.pages import orientation as page_orientation
from worker.images.tiff.reading import tiff_page
from worker.images.turning import ORIENTATION, SIDEWAYS, TURNS, UPRIGHT, Turn, turned
from worker.metadata import density, exif, xmp
from worker.metadata.kept import NOTHING, Kept
from worker.pixels import Pixels

# Pillow's own limit would be raised before that of `_check_size`, whose text names the setting.
Image.MAX_IMAGE_PIXELS = None

MOST_FRAMES = 500  # the default limit of frames in one picture
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # by the number of channels
NOT_A_PICTURE = "not a picture, or damaged from its first bytes"
MAX_REASON = 160  # characters of a library's error that a message quotes


def decode(
    content: bytes,
    max_pixels: int,
    max_frames: int = MOST_FRAMES,
    keep: Kept = NOTHING,
    seconds: float = DECODE_SECONDS,
) -> Picture:
    """Return the picture in `content`, every frame fully decoded and upright.

    `keep` chooses the metadata that the output keeps.

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
    form = _form_of(content, keep)
    try:
        return _decoded(form, content, max_pixels, max_frames, keep, clock)
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
    keep: Kept,
    clock: Clock,
) -> Picture:
    if form == signatures.HEIF:
        return _heif(content, max_pixels, keep)
    size = headers.measure(form, content, max_pixels, max_frames)
    containers.check(form, content)
    _check_size(form, size, max_pixels, max_frames)
    packet = png.xmp(content) if form == "PNG" and keep.xmp else None
    content, notes = _tolerated(form, content)
    if form == "BMP" and bmp.has_bit_fields(content):
        return _bit_fields(content)
    order = jpeg2000.channel_order(content) if form == "JPEG2000" else None
    is_reordered_ycc = order is not None and jpeg2000.is_ycc(content)
    if is_reordered_ycc:
        content = jpeg2000.with_rgb(content)
    image = _open(form, content, size)
    unread.check(form, image, content)
    if form == "JPEG":
        return _jpeg(image, content, keep)
    if form == "TIFF":
        return _tiff(image, content, keep, clock)
    if form == "JPEG2000":
        image.info["icc_profile"] = jpeg2000.profile(content)
    image.info.setdefault("xmp", packet)
    encoding = _encoding(image, content, keep)
    frames, durations = _frames(image, form, content, clock)
    if order is not None:
        frames = [_reordered(frame, order, is_reordered_ycc) for frame in frames]
    frames = _in_one_mode(frames)
    if len(frames) > 1:
        encoding["duration"] = durations
    frames = _with_display(frames, _display(encoding))
    is_as_stored = order is None and _turn(image) is None
    copy = copies.copied(form, content, frames, encoding) if is_as_stored else None
    return Picture(tuple(frames), form, encoding, copy, notes)


def _reordered(frame: Frame, order: tuple[int, ...], is_ycc: bool) -> Frame:
    """Return `frame` with its channels in `order`, and YCbCr as RGB.

    Further channels, such as alpha, stay where they are.
    """
    pixels = frame.pixels
    if len(order) != 3 or pixels.dtype != np.uint8 or frame.mode not in ("RGB", "RGBA"):
        raise UnsupportedImage("this JPEG 2000 has an order of channels that is not handled")
    colours = np.ascontiguousarray(pixels[..., list(order)])
    if is_ycc:
        colours = np.asarray(Image.fromarray(colours, "YCbCr").convert("RGB"))
    return Frame(np.concatenate([colours, pixels[..., 3:]], axis=-1), frame.mode)


def _display(encoding: Mapping[str, Any]) -> Display | None:
    """Return the way to display values of a picture that is written with `encoding`."""
    colour, chunks = encoding.get(writing.COLOUR), dict(encoding.get(writing.CHUNKS, ()))
    transfer = chunks[b"cICP"][1] if b"cICP" in chunks else None
    if colour is not None and "icc_profile" not in encoding:
        transfer = colour[1]
    gamma = None
    if b"gAMA" in chunks and b"sRGB" not in chunks:
        gamma = int.from_bytes(chunks[b"gAMA"]) / png.GAMMA_UNIT
    return display.of(transfer, encoding.get("icc_profile"), gamma)


def _with_display(frames: list[Frame], way: Display | None) -> list[Frame]:
    """Return `frames` with the way to display values, but for CMYK."""
    if way is None:
        return frames
    return [frame if frame.mode == "CMYK" else replace(frame, display=way) for frame in frames]


def _heif(content: bytes, max_pixels: int, keep: Kept) -> Picture:
    """Return the picture of a HEIC, which is written as `keep` says."""
    width, height = heic.size(content)
    cost = heic.DEEP_COST if heic.keeps_depth(keep) else heic.COST
    size = headers.Size(1, width, height, width * height * cost)
    _check_size(signatures.HEIF, size, max_pixels, 1)
    return heic.read(content, keep)


def _bit_fields(content: bytes) -> Picture:
    """Return the picture of a BMP with bit fields."""
    pixels, dots = bmp.bit_fields(content), bmp.density(content)
    frame = blanked(pixels, MODES[pixels.shape[2]])
    return Picture((frame,), "BMP", {"dpi": dots} if dots else {})


def _tolerated(form: str, content: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Return the file `content` without parts that no pixel depends on, and notes of its faults.

    Raises UnreadableImage for other faults.
    """
    if form == "PNG":
        return png.cleaned(content)
    if form == "BMP":
        return bmp.checked(content), ()
    if form == "GIF" and not containers.gif_size(content, len(content)).has_end:
        return content, ("the GIF had no end marker",)
    return content, ()


def _form_of(content: bytes, keep: Kept) -> str:
    """Return Pillow's name of the format of `content`; raise for a format that is not handled."""
    name = signatures.name_of(content)
    if name is None:
        raise UnreadableImage(NOT_A_PICTURE)
    if name == signatures.HEIF:
        heic.check_installed(content, keep)
        return name
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
    counted = size.pixels * (BY_NAME[form].cost if form in BY_NAME else 1)
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
    return form == "PNG" and content[png.BITS] == 16


def _jpeg(image: Any, content: bytes, keep: Kept) -> Picture:
    """Return the picture of a JPEG.

    It is decoded from the file without its metadata, because that file may be published. Only its
    orientation remains if EXIF turns it, because blocks keep their coefficients where they are.
    """
    if image.mode not in COLOURS:
        raise UnsupportedImage(f"JPEGs of mode {image.mode} are not handled: convert it to RGB")
    metadata = _metadata(image, keep)
    bare = reassembled(
        content, metadata.get("icc_profile"), metadata.get("exif"), metadata.get("xmp")
    )
    orientation, turn = _orientation(image), _turn(image)
    trailer = trailer_without_end(content)
    bare, pixels, notes = tolerance.read(bare, image.mode, trailer)
    # Browsers and Pillow take inks for inverted, other viewers only if Adobe's marker is there.
    is_ambiguous = image.mode == "CMYK" and not has_adobe_marker(bare)
    frame = Frame(turned(pixels, turn), image.mode, inks_are_ambiguous=is_ambiguous)
    encoding = metadata | writing.jpeg_options(image, is_stored_as_rgb(bare))
    (frame,) = _with_display([frame], _display(encoding))
    if has_other_parameters(content):
        notes = (SCAN_PARAMETERS, *notes)
    if has_junk(content):
        if not all_agree(bare):
            raise UnreadableImage(NO_END)
        notes = (JUNK, *notes)
    if not all_agree(bare) or not ends_with_its_blocks(bare):
        return Picture((frame,), "JPEG", encoding, notes=notes)
    if turn is not None:
        block = exif.with_orientation(metadata.get("exif"), orientation)
        bare = reassembled(bare, metadata.get("icc_profile"), block, metadata.get("xmp"))
    return Picture((frame,), "JPEG", encoding, bare, notes, orientation)


def _encoding(image: Any, content: bytes, keep: Kept) -> dict[str, Any]:
    """Return the options with which Pillow writes an upright picture like `image`, but no TIFF."""
    encoding = writing.options(image, content) | _metadata(image, keep)
    if writing.CHUNKS in encoding and _orientation(image) in SIDEWAYS:
        encoding[writing.CHUNKS] = png.turned_density(encoding[writing.CHUNKS])
    return encoding


def _tiff(image: Any, content: bytes, keep: Kept, clock: Clock) -> Picture:
    """Return the picture of a TIFF. Each page has a compression, a profile and a density."""
    previews = camera_raw.previews(content)
    frames, pages = [], []
    for number in range(getattr(image, "n_frames", 1)):
        if number in previews:
            continue
        clock.check()
        image.seek(number)
        # Pillow keeps the profile of the page that it has read before.
        image.info["icc_profile"] = image.tag_v2.get(Tag.ICC_PROFILE)
        options = writing.tiff_page_options(image) | _metadata(image, keep)
        if page_orientation(image) in SIDEWAYS and "dpi" in options:
            options["dpi"] = options["dpi"][::-1]
        frames += _with_display([tiff_page(image, content, clock)], _display(options))
        pages.append(options)
    return Picture(tuple(frames), "TIFF", {writing.PAGES: pages})


def _frames(image: Any, form: str, content: bytes, clock: Clock) -> tuple[list[Frame], list[float]]:
    """Return the frames of `image`, and the duration of each in milliseconds."""
    turn, count = _turn(image), getattr(image, "n_frames", 1)
    if form == "GIF":
        return _drawn(gif.frames(content), turn, clock)
    if form == "PNG" and count > 1:
        if _is_deep_png(form, content):
            raise UnsupportedImage("this 16-bit PNG has several frames, which is not handled")
        return _drawn(apng.frames(content), turn, clock)
    part = avif.crop(content, image.width, image.height) if form == "AVIF" else None
    frames, durations = [], []
    for number in range(count):
        clock.check()
        image.seek(number)
        frame = _frame(image, form, content)
        pixels = frame.pixels if part is None else np.ascontiguousarray(frame.pixels[part])
        frames.append(Frame(turned(pixels, turn), frame.mode))
        durations.append(image.info.get("duration") or 0)
    return frames, durations


def _frame(image: Any, form: str, content: bytes) -> Frame:
    """Return the frame that `image` is at, as stored, of any format but TIFF."""
    image.load()
    if form == "AVIF" and (depth := containers.avif_depth(content)) > 8:
        if getattr(image, "n_frames", 1) > 1:
            raise UnsupportedImage("an animated AVIF of more than 8 bits is not handled")
        frame = deep_avif.read(content, depth, np.asarray(image))
    elif not _is_deep_png(form, content) or image.mode == "I;16":
        frame = loaded(image)
    elif "transparency" in image.info:
        raise UnsupportedImage("this 16-bit PNG has a transparent value, which is not handled")
    else:
        frame = deep.read_png(content, np.asarray(image))
    return frame


def _drawn(
    frames: Iterable[tuple[Pixels, float]], turn: Turn | None, clock: Clock
) -> tuple[list[Frame], list[float]]:
    """Return an animation whose `frames` come with their durations, after `turn`."""
    found, durations = [], []
    for pixels, duration in frames:
        clock.check()
        mode = MODES[pixels.shape[2]]
        found.append(Frame(turned(pixels[..., 0] if mode == "L" else pixels, turn), mode))
        durations.append(duration)
    return found, durations


def _in_one_mode(frames: list[Frame]) -> list[Frame]:
    """Return the frames of an animation in one mode, with transparency if one of them has it."""
    if len({frame.mode for frame in frames}) == 1:
        return frames
    mode = "RGBA" if any(frame.mode in ("LA", "RGBA") for frame in frames) else "RGB"
    return [Frame(np.array(Image.fromarray(frame.pixels).convert(mode)), mode) for frame in frames]


def _turn(image: Any) -> Turn | None:
    """Return what turns the pixels of `image` upright, of any format but TIFF, or None."""
    return TURNS.get(_orientation(image))


def _orientation(image: Any) -> int:
    """Return the orientation of `image`, from 1 to 8, of any format but TIFF.

    EXIF that cannot be read turns nothing, as in viewers.
    """
    try:
        # Image.getexif would also take an orientation from XMP, which browsers ignore.
        block = Image.Exif()
        block.load(image.info.get("exif", b""))
        orientation = block.get(ORIENTATION)
    except Exception:
        return UPRIGHT
    return orientation if orientation in TURNS else UPRIGHT


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:MAX_REASON]


def _metadata(image: Any, keep: Kept) -> dict[str, Any]:
    """Return the metadata that outputs keep: profile, density, and what `keep` chooses."""
    options: dict[str, Any] = {}
    if dots := density.of(image):
        options["dpi"] = dots[::-1] if _orientation(image) in SIDEWAYS else dots
    if profile := colour_profile.checked(image.info.get("icc_profile"), image.mode):
        options["icc_profile"] = profile
    if image.format in exif.FORMATS and (block := exif.kept(image, keep)):
        options["exif"] = block
    if image.format in xmp.FORMATS and _turn(image) is None:  # It describes the stored pixels.
        packet = xmp.kept(image.info.get("xmp"), keep.xmp)
        if packet is not None:
            options["xmp"] = packet
    return options
