"""Name the format of a file by its first bytes, before any library sees the file.

Some plugins of Pillow decode pixels, or reserve memory for them, when they open a file. Only the
one plugin of a handled format is ever asked, and no plugin is asked about a format that is not
handled.
"""

import re

# Handled formats have Pillow's names. The first pattern that matches from the file's start decides.
SIGNATURES: tuple[tuple[str, re.Pattern[bytes]], ...] = tuple(
    (name, re.compile(pattern, re.DOTALL))
    for name, pattern in (
        ("JPEG", rb"\xff\xd8\xff"),
        ("PNG", rb"\x89PNG\r\n\x1a\n"),
        ("WEBP", rb"RIFF....WEBP"),
        ("TIFF", rb"II\*\0|MM\0\*|II\+\0|MM\0\+|II\0\*|MM\*\0"),
        ("GIF", rb"GIF8[79]a"),
        # The length of the second header tells a BMP from a text that begins with BM.
        ("BMP", rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0"),
        ("JPEG2000", rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"),
        ("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"),
        ("PSD", rb"8BP[SB]\0[\x01\x02]"),
        ("ICNS", rb"icns"),
        ("DDS", rb"DDS \x7c\0\0\0"),
        ("EXR", rb"\x76\x2f\x31\x01"),
        ("QOI", rb"qoif"),
        ("HDR", rb"#\?R(?:ADIANC|GB)E"),
        ("FITS", rb"SIMPLE  = "),
        ("PPM", rb"P[1-6fFy][\s#]|P7\nWIDTH|P0CMYK|PyRGBA"),
        ("SGI", rb"\x01\xda[\0\x01][\x01\x02]\0[\x01-\x03]"),
        ("PCX", rb"\n[\0\x02-\x05][\0\x01][\x01\x02\x04\x08]"),
        ("ICO", rb"\0\0\x01\0[^\0].|\0\0\x01\0\0[^\0]"),
        ("CUR", rb"\0\0\x02\0[\x01-\x7f]\0...\0.{4}.{2}[\0-\x03]"),
        # TGA has no signature: colour map, kind, a size, a depth and bits that must be 0 stand in
        # for one.
        (
            "TGA",
            rb".(?:\x01[\x01\x09].{4}[\x0f\x10\x18\x20]|\0[\x02\x03\x0a\x0b]\0{5}).{4}(?!\0\0).."
            rb"(?!\0\0)..[\x08\x0f\x10\x18\x20][\0-\x3f]",
        ),
    )
)
AVIF_BRANDS = {b"avif", b"avis"}
HEIF = "HEIF"  # any other file of ISO/IEC 14496-12: HEIC pictures and videos


def name_of(content: bytes) -> str | None:
    """Return the name of the format that `content` begins like, or None if it is not known."""
    if content[4:8] == b"ftyp" and len(content) > 12:
        return _name_by_brands(content)
    for name, pattern in SIGNATURES:
        if pattern.match(content):
            return name
    return None


def _name_by_brands(content: bytes) -> str:
    major, size = content[8:12], int.from_bytes(content[:4])
    if major in AVIF_BRANDS:
        return "AVIF"
    brands = content[16 : min(size, 1024)]
    compatible = {brands[at : at + 4] for at in range(0, len(brands), 4)}
    return "AVIF" if major in (b"mif1", b"msf1") and AVIF_BRANDS & compatible else HEIF
