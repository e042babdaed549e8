"""Bytes to pixels and back: formats, orientation, colour profile, metadata and limits."""

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from tasks.errors import EmptyObject, ImageTooLarge, UnreadableImage, UnsupportedImage
from worker.detector import Pixels

# The limit is checked below, from the header, by name and by setting; Pillow's own would come first.
Image.MAX_IMAGE_PIXELS = None

CONTENT_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
NAMED_FORMATS = ("GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "ICO", "PSD", "PPM", "TGA")  # known, not handled
WEBP_QUALITY = 90  # a lossy WebP does not say which quality it was written with
PROGRESSIVE = "progressive"
ORIENTATION = 0x0112  # EXIF 2.32, table 4
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WHITE_PERCENTILE = 99.5
BLACK: dict[str, tuple[int, ...]] = {
    "L": (0,),
    "LA": (0, 255),
    "RGB": (0, 0, 0),
    "RGBA": (0, 0, 0, 255),
    "CMYK": (0, 0, 0, 255),
    "I;16": (0,),
}


@dataclass(frozen=True)
class Picture:
    """One decoded picture, upright.

    `pixels` is uint8 [h, w] (L), [h, w, 2] (LA), [h, w, 3] (RGB), [h, w, 4] (RGBA, CMYK), or uint16
    [h, w] (I;16). `encoding` holds the options with which Pillow writes the same kind of file again.
    """

    pixels: NDArray[Any]
    mode: str
    format: str
    encoding: dict[str, Any] = field(default_factory=dict)

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def content_type(self) -> str:
        return CONTENT_TYPES[self.format]

    @property
    def black(self) -> tuple[int, ...]:
        """The value of an opaque black pixel, one number a channel."""
        return BLACK[self.mode]

    def views(self) -> Iterator[Pixels]:
        """What an eye may see of the picture, each uint8 RGB [h, w, 3]: where faces are looked for.

        A picture with transparency is looked at three times: its colours alone, which a tool can lay bare, on white
        and on black. A 16-bit one twice: as most viewers show it, and stretched to the range that it uses.
        """
        if self.mode == "I;16":
            # White is what nearly all pixels stay below: a few hot ones must not darken the rest.
            brightest = max(float(np.percentile(self.pixels, WHITE_PERCENTILE)), 1.0)
            stretched = (self.pixels.astype(np.float32) * (255 / brightest)).clip(0, 255).astype(np.uint8)
            for gray in ((self.pixels >> 8).astype(np.uint8), stretched):
                yield np.repeat(gray[..., None], 3, axis=2)
            return
        image = Image.fromarray(self.pixels, self.mode) if self.mode == "CMYK" else Image.fromarray(self.pixels)
        if self.mode not in ("LA", "RGBA"):
            yield np.asarray(image.convert("RGB"))
            return
        alpha = self.pixels[..., -1]
        colours = self.pixels[..., :-1]
        yield np.ascontiguousarray(np.broadcast_to(colours, (*alpha.shape, 3)))
        if alpha.min() < 255:
            for ground in ("white", "black"):
                below = Image.new("RGBA", image.size, ground)
                yield np.asarray(Image.alpha_composite(below, image.convert("RGBA")).convert("RGB"))


def decode(content: bytes, max_pixels: int) -> Picture:
    """The picture in `content`, fully decoded and upright.

    Raises EmptyObject, UnreadableImage (no picture, or damaged), UnsupportedImage (a kind that is not
    handled, several frames) or ImageTooLarge (more than `max_pixels`, known before any pixel is decoded).
    """
    if not content:
        raise EmptyObject("the file is empty: upload the picture again")
    image = _open(content)
    if image.width * image.height > max_pixels:
        raise ImageTooLarge(
            f"{image.width} × {image.height} pixels are over the limit of {max_pixels:,}: raise VEIL_MAX_PIXELS"
        )
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise UnsupportedImage(f"this {image.format} has {image.n_frames} frames; only single pictures are handled")
    if image.format == "PNG" and content[24] == 16 and image.mode != "I;16":
        raise UnsupportedImage("this PNG has 16-bit colour, which is not handled: convert it to 8 bits")
    if image.format == "PNG" and not _png_is_whole(content):
        raise UnreadableImage("this PNG is damaged or cut short: a checksum in it is wrong")
    encoding = _encoding(image, content)
    try:
        image.load()
        pixels, mode = _pixels(_upright(image))
    except UnsupportedImage:
        raise
    except MemoryError:
        raise ImageTooLarge("not enough memory to decode this picture: lower VEIL_MAX_PIXELS") from None
    except Exception as error:
        raise UnreadableImage(f"the picture is damaged or cut short ({_first_line(error)})") from error
    return Picture(pixels, mode, "JPEG" if image.format == "MPO" else str(image.format), encoding)


def encode(picture: Picture, pixels: NDArray[Any]) -> bytes:
    """`pixels`, shaped as `picture.pixels`, as a file of the picture's format.

    Of all metadata only the colour profile is written: EXIF, XMP, comments, thumbnails and further
    pictures never get here.
    """
    image = Image.fromarray(pixels, picture.mode) if picture.mode == "CMYK" else Image.fromarray(pixels)
    target = io.BytesIO()
    try:
        image.save(target, picture.format, **picture.encoding)
    except OSError:
        if not picture.encoding.get(PROGRESSIVE):
            raise
        # Pillow's buffer holds two bytes a pixel of a progressive JPEG; a baseline one may have any size.
        target = io.BytesIO()
        image.save(target, picture.format, **picture.encoding | {PROGRESSIVE: False})
    return target.getvalue()


def is_recognised(content: bytes) -> bool:
    """Whether `content` begins like a picture of any kind, handled or not, whole or damaged."""
    try:
        _open(content)
    except UnsupportedImage:
        return True
    except UnreadableImage:
        return False
    return True


def _open(content: bytes) -> Any:
    try:
        return Image.open(io.BytesIO(content), formats=tuple(CONTENT_TYPES))
    except UnidentifiedImageError:
        pass
    except Exception as error:
        raise UnreadableImage(f"the picture's header is damaged ({_first_line(error)})") from error
    try:
        other = Image.open(io.BytesIO(content), formats=NAMED_FORMATS)
    except Exception:
        if content[4:8] == b"ftyp":
            raise UnsupportedImage("HEIC, AVIF and videos are not handled: use JPEG, PNG or WebP") from None
        raise UnreadableImage("not a picture, or damaged from its first bytes") from None
    raise UnsupportedImage(f"{other.format} pictures are not handled: use JPEG, PNG or WebP")


def _upright(image: Any) -> Any:
    """`image` as it is meant to be seen. EXIF that can't be read turns nothing, in a viewer as here."""
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION))
    except Exception:
        turn = None
    return image if turn is None else image.transpose(turn)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]


def _encoding(image: Any, content: bytes) -> dict[str, Any]:
    """Pillow's options for a file like this one; the colour profile is all that is kept of its metadata."""
    options: dict[str, Any] = {}
    if profile := image.info.get("icc_profile"):
        options["icc_profile"] = profile
    if image.format in ("JPEG", "MPO"):
        # The source's own tables: neither coarser nor needlessly finer than what was there.
        options["qtables"] = list(image.quantization.values()) if image.quantization else None
        options["subsampling"] = JpegImagePlugin.get_sampling(image)
        options[PROGRESSIVE] = bool(image.info.get(PROGRESSIVE))
    elif image.format == "WEBP":
        options |= {"lossless": True} if _webp_is_lossless(content) else {"quality": WEBP_QUALITY}
    return options


def _png_is_whole(content: bytes) -> bool:
    """Whether all chunks are there and as their checksums say; Pillow leaves those of the pixels unchecked."""
    view, at = memoryview(content), 8
    while at + 12 <= len(view):
        end = at + 8 + int.from_bytes(view[at : at + 4])
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4]):
            return False
        if content[at + 4 : at + 8] == b"IEND":
            return True
        at = end + 4
    return False


def _webp_is_lossless(content: bytes) -> bool:
    """Whether the pixels are in a chunk of the lossless kind; a colour profile may come before it."""
    at = 12
    while at + 8 <= len(content) and content[at : at + 4] not in (b"VP8 ", b"VP8L"):
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return content[at : at + 4] == b"VP8L"


def _pixels(image: Any) -> tuple[NDArray[Any], str]:
    """The pixels in one of Picture's modes. Colours that full transparency hides are blanked."""
    if "transparency" in image.info and image.mode == "I;16":
        raise UnsupportedImage("this PNG has 16-bit gray with a transparent value, which is not handled")
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("L", "LA", "La") else "RGBA")
    elif image.mode in ("P", "PA"):
        image = image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    if image.mode not in ("L", "LA", "RGB", "RGBA", "CMYK", "I;16"):
        raise UnsupportedImage(f"pictures of mode {image.mode} are not handled: convert it to RGB")
    pixels = np.array(image)
    if image.mode in ("LA", "RGBA"):
        pixels[pixels[..., -1] == 0] = 0
    return pixels, image.mode
