"""Name the format of a file by its first bytes, before any library reads the file.

Some of Pillow's plugins decode pixels, or reserve memory for them, when they open a file. Veil
therefore calls only the plugin of a handled format, and none for formats that are not handled.
"""

import re

# Formats and patterns of the file's first bytes; the first match decides. Handled formats have
# Pillow's names.
SIGNATURES: tuple[tuple[str, re.Pattern[bytes]], ...] = tuple(
    (name, re.compile(pattern, re.DOTALL))
    for name, pattern in (
        ("JPEG", rb"\xff\xd8\xff"),
        ("PNG", rb"\x89PNG\r\n\x1a\n"),
        ("WEBP", rb"RIFF....WEBP"),
        ("TIFF", rb"II\*\0|MM\0\*|II\+\0|MM\0\+|II\0\*|MM\*\0"),
        ("GIF", rb"GIF8[79]a"),
        # The length of the second header distinguishes a BMP from a text that begins with BM.
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
        # TGA has no signature. The pattern checks the colour map, the kind, a size that is not 0,
        # the depth, and bits that must be 0.
        (
            "TGA",
            rb".(?:\x01[\x01\x09].{4}[\x0f\x10\x18\x20]|\0[\x02\x03\x0a\x0b]\0{5}).{4}(?!\0\0).."
            rb"(?!\0\0)..[\x08\x0f\x10\x18\x20][\0-\x3f]",
        ),
    )
)
AVIF_BRANDS = {b"avif", b"avis"}
HEIF = "HEIF"  # any other file with a file type box (ISO/IEC 14496-12): HEIC pictures, videos
MAX_FILE_TYPE_BYTES = 1024  # the part of the file type box that is read


def name_of(content: bytes) -> str | None:
    """Return the name of the format whose signature `content` has, or None if it is unknown."""
    if content[4:8] == b"ftyp" and len(content) > 12:
        return _name_by_brands(content)
    for name, pattern in SIGNATURES:
        if pattern.match(content):
            return name
    return None


def _name_by_brands(content: bytes) -> str:
    """Return AVIF or HEIF, by the brands in the file type box (ISO/IEC 14496-12, 4.3)."""
    major, size = content[8:12], int.from_bytes(content[:4])
    if major in AVIF_BRANDS:
        return "AVIF"
    brands = content[16 : min(size, MAX_FILE_TYPE_BYTES)]
    compatible = {brands[at : at + 4] for at in range(0, len(brands), 4)}
    return "AVIF" if major in (b"mif1", b"msf1") and AVIF_BRANDS & compatible else HEIF
