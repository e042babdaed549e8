"""The formats that Veil handles, with what outputs keep of each and what is refused.

The table in docs/formats.md is generated from this list.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """One format: `name` is Pillow's name, the others describe it in the documentation.

    `kept` lists what an output keeps besides the dimensions. Each pixel counts `cost` times against
    the limit of pixels, because the format's library needs that much more memory.
    """

    name: str
    title: str
    content_type: str
    read: str
    kept: str
    refused: str
    cost: int = 1


FORMATS = (
    Format(
        "JPEG",
        "JPEG",
        "image/jpeg",
        "baseline, progressive, gray, RGB, CMYK and YCCK",
        "quantisation tables, subsampling, progressive; if every decoder shows the same pixels, "
        "the coefficients of all blocks that no mask touches, the orientation, and without a face "
        "the compressed data, bit for bit",
        "12 bits, lossless, hierarchical, blocks that are damaged or missing. Of an MPO the first "
        "picture is anonymized and the others are dropped; an MPO with a larger picture is refused",
    ),
    Format(
        "PNG",
        "PNG, APNG",
        "image/png",
        "1 to 16 bits, palette, alpha, animated",
        "every pixel outside the masks, 8 or 16 bits, alpha, palette of up to 256 colours, timing "
        "and repeats",
        "a wrong checksum of pixels, 16-bit gray with a transparent value, 16-bit animations, "
        "frames that the header does not count",
    ),
    Format(
        "WEBP",
        "WebP",
        "image/webp",
        "lossy, lossless, alpha, animated",
        "lossy or lossless, alpha, timing and repeats; without a face the compressed data of a "
        "still picture",
        "–",
        cost=3,
    ),
    Format(
        "TIFF",
        "TIFF",
        "image/tiff",
        "pages, 1 to 16 bits, gray, RGB, CMYK, YCbCr, palette, alpha; uncompressed, LZW, Deflate, "
        "PackBits, JPEG, fax; pages that are thumbnails are left out",
        "pages, 8 or 16 bits, alpha, the compression of each page (16 bits and old-style JPEG "
        "become Deflate), fax in black and white",
        "camera raws (DNG, NEF, CR2, CR3, ARW, …), pages with a larger picture below them, rare "
        "compressions, 16-bit CMYK, signed numbers, 32 bits and floating point",
    ),
    Format(
        "GIF",
        "GIF",
        "image/gif",
        "still, animated, transparent",
        "palette, timing and repeats; without a face the compressed data",
        "an animation without an end marker",
        cost=2,
    ),
    Format(
        "BMP",
        "BMP",
        "image/bmp",
        "1 to 32 bits, RLE, bit fields, alpha",
        "true colour or gray, alpha",
        "bit fields with gaps, a JPEG or PNG in it",
    ),
    Format(
        "AVIF",
        "AVIF",
        "image/avif",
        "8 bits, alpha, animated; with the extra `avif` 10 and 12 bits, still",
        "alpha, timing, primaries and transfer, 10 or 12 bits; without a face the compressed data "
        "of a still picture without alpha",
        "10 and 12 bits with animation, or with both transparency and a colour profile; a larger "
        "item or more frames than viewers show",
        cost=3,
    ),
    Format(
        "JPEG2000",
        "JPEG 2000",
        "image/jp2",
        "8 bits, 16-bit gray, alpha",
        "lossless, or lossy at the source's rate; alpha, 16-bit gray; without a face the "
        "compressed data",
        "more than 8 bits in colour, several codestreams",
        cost=6,
    ),
)
BY_NAME = {form.name: form for form in FORMATS}
CONTENT_TYPES = {form.name: form.content_type for form in FORMATS}


def markdown_table() -> str:
    """Return the formats as a Markdown table, for docs/formats.md."""
    rows = ["| format | read | kept | refused by name |", "| --- | --- | --- | --- |"]
    rows += [f"| {form.title} | {form.read} | {form.kept} | {form.refused} |" for form in FORMATS]
    return "\n".join(rows)
