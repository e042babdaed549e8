"""Of all metadata in a file only the colour profile reaches the output."""

import io
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from tests.metadata import leaks
from worker import images

# Pillow warns of the broken index of further pictures that these files have.
pytestmark = pytest.mark.filterwarnings("ignore:Image appears to be a malformed MPO file")

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SECRET = b"Erika Mustermann, 48.1371 N 11.5754 E"
KEPT_JPEG = {
    "SOI",
    "APP0 JFIF",
    "APP2 ICC_PROFILE",
    "APP14 Adobe",
    "DQT",
    "SOF0",
    "SOF2",
    "DHT",
    "SOS",
    "EOI",
}
KEPT_PNG = {b"IHDR", b"iCCP", b"PLTE", b"IDAT", b"IEND", b"pHYs"}
KEPT_WEBP = {b"VP8X", b"ICCP", b"ALPH", b"VP8 ", b"VP8L"}


def scene(mode="RGB"):
    y, x = np.mgrid[:40, :60]
    return Image.fromarray(np.stack([x * 4, y * 6, x + y], -1).astype(np.uint8)).convert(mode)


def written(image, form, **options):
    target = io.BytesIO()
    image.save(target, form, **options)
    return target.getvalue()


def thumbnail():
    """Return a small JPEG with SECRET in it, like those that cameras put into EXIF."""
    return written(scene().resize((16, 12)), "JPEG", comment=SECRET)


def exif():
    """Return EXIF with a name, a place, a maker's note and a thumbnail, as a TIFF file."""
    block = Image.Exif()
    block[0x010E] = SECRET.decode()  # ImageDescription
    block[0x013B] = SECRET.decode()  # Artist
    block.get_ifd(0x8769)[0x927C] = SECRET  # MakerNote
    block.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + SECRET  # UserComment
    block.get_ifd(0x8825).update(
        {1: "N", 2: (48.0, 8.0, 13.56), 3: "E", 4: (11.0, 34.0, 31.44), 29: SECRET.decode()}
    )
    content = bytearray(block.tobytes()[6:])
    # The thumbnail goes into a second directory at the end (Exif 2.32, 4.5.8), which the first one
    # names.
    little = content[:2] == b"II"
    form = "<" if little else ">"
    first = struct.unpack_from(form + "I", content, 4)[0]
    end = first + 2 + 12 * struct.unpack_from(form + "H", content, first)[0]
    struct.pack_into(form + "I", content, end, len(content))
    small = thumbnail()
    at = len(content) + 2 + 3 * 12 + 4
    entries = [(0x0103, 3, 6), (0x0201, 4, at), (0x0202, 4, len(small))]
    content += struct.pack(form + "H", len(entries))
    for tag, kind, value in entries:
        content += struct.pack(form + "HHI", tag, kind, 1) + struct.pack(
            form + ("HH" if kind == 3 else "I"), *([value, 0] if kind == 3 else [value])
        )
    return b"Exif\0\0" + bytes(content + struct.pack(form + "I", 0) + small)


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><dc:creator>'
    + SECRET
    + b"</dc:creator></rdf:RDF></x:xmpmeta>"
)


def segment(marker, body):
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def iptc():
    """Return a by-line (IPTC-NAA 2:80) as Photoshop stores it."""
    line = struct.pack(">BBBH", 0x1C, 2, 80, len(SECRET)) + SECRET
    return (
        b"Photoshop 3.0\0"
        + struct.pack(">4sHHI", b"8BIM", 0x0404, 0, len(line))
        + line
        + bytes(len(line) % 2)
    )


def box(name, body):
    return struct.pack(">I4s", 8 + len(body), name) + body


def jumbf(kind, label, *content):
    """Return a JUMBF superbox (ISO/IEC 19566-5, A.2 and A.3) of the type `kind`, 4 or 16 bytes."""
    identifier = kind + bytes.fromhex("00110010800000aa00389b71")[: 16 - len(kind)]
    return box(b"jumb", box(b"jumd", identifier + b"\x03" + label + b"\0") + b"".join(content))


def c2pa():
    """Return a C2PA manifest store with a claim's preview of the picture."""
    embedded = box(b"bfdb", b"\0image/jpeg\0") + box(b"bidb", thumbnail())
    kind = bytes.fromhex("40cb0c32bb8a489da70b2ad6f47f4369")
    preview = jumbf(kind, b"c2pa.thumbnail.claim.jpeg", embedded)
    return jumbf(b"c2pa", b"c2pa", jumbf(b"c2ma", b"urn:uuid:" + SECRET, preview))


def jpeg(mode="RGB", **options):
    """Return a JPEG with all segments that cameras and programs add, and bytes after its end."""
    content = written(
        scene(mode), "JPEG", exif=exif(), xmp=XMP, comment=SECRET, icc_profile=PROFILE, **options
    )
    extra = b"".join(
        [
            segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + SECRET),
            segment(0xE2, b"MPF\0" + SECRET),
            segment(0xE3, b"Meta\0" + SECRET),
            segment(0xED, iptc()),
            segment(
                0xEB, b"JP\0\1\0\0\0\1" + c2pa()
            ),  # the number of a part: exiftool makes room for all before it
            segment(0xFE, SECRET),
        ]
    )
    return content[:2] + extra + content[2:] + SECRET + thumbnail()


def png(mode="RGB"):
    """Return a PNG with all chunks that can hold text or a picture, and bytes after its end."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", SECRET.decode())
    info.add_text("Compressed", SECRET.decode(), zip=True)
    info.add_itxt("XML:com.adobe.xmp", XMP.decode())
    info.add_itxt("Title", SECRET.decode(), zip=True)
    info.add(b"tIME", b"\x07\xea\x01\x01\0\0\0")
    info.add(b"prVt", SECRET)
    info.add(b"caBX", c2pa())
    info.add(b"afTr", SECRET, after_idat=True)
    content = written(
        scene(mode), "PNG", pnginfo=info, exif=exif(), icc_profile=PROFILE, dpi=(300, 300)
    )
    return content + SECRET + thumbnail()


def webp(mode="RGB", **options):
    """Return a WebP with EXIF, XMP, an unknown chunk, and bytes after its end."""
    content = written(scene(mode), "WEBP", exif=exif(), xmp=XMP, icc_profile=PROFILE, **options)
    chunk = b"C2PA" + struct.pack("<I", len(SECRET)) + SECRET + bytes(len(SECRET) % 2)
    content = b"RIFF" + struct.pack("<I", len(content) + len(chunk) - 8) + content[8:] + chunk
    return content + SECRET + thumbnail()


def tiff(**options):
    """Return a TIFF with all kinds of metadata, a second directory, and bytes between and after."""
    exif_block = Image.Exif()
    exif_block[0x010E] = exif_block[0x013B] = SECRET.decode()
    exif_block[0x02BC] = XMP
    for tag in (0x83BB, 0x8649, 0xC4A5):  # IPTC, Photoshop, PrintIM
        exif_block[tag] = SECRET
    exif_block.get_ifd(0x8825)[29] = SECRET.decode()
    return (
        written(scene(), "TIFF", exif=exif_block, icc_profile=PROFILE, **options)
        + SECRET
        + thumbnail()
    )


def gif():
    """Return a GIF with a comment, XMP as Adobe's programs write it, and bytes after its end."""
    content = written(scene(), "GIF", comment=SECRET)
    packet = b"!\xff\x0bXMP DataXMP" + bytes([len(XMP) % 256]) + XMP[: len(XMP) % 256] + b"\0"
    at = content.index(b"!\xfe")
    return content[:at] + packet + content[at:] + SECRET + thumbnail()


def avif():
    """Return an AVIF with EXIF and XMP, and an unknown box after all others."""
    content = written(scene(), "AVIF", exif=exif(), xmp=XMP, icc_profile=PROFILE)
    return content + struct.pack(">I4s", 8 + len(SECRET), b"free") + SECRET


def jpeg2000():
    """Return a JPEG 2000 with a comment, UUID boxes with XMP and EXIF, and an XML box."""
    content = written(scene(), "JPEG2000", comment=SECRET)
    boxes = [(b"uuid", bytes.fromhex("be7acfcb97a942e89c71999491e3afac") + XMP)]
    boxes += [
        (b"uuid", b"JpgTiffExif->JP2" + exif()[6:]),
        (b"xml ", XMP),
        (b"free", SECRET + thumbnail()),
    ]
    return content + b"".join(
        struct.pack(">I4s", 8 + len(body), name) + body for name, body in boxes
    )


def animated(form):
    """Return three frames with the metadata that the format can hold."""
    frames = [scene(), scene().rotate(90), scene().rotate(180)]
    return written(
        frames[0], form, save_all=True, append_images=frames[1:], duration=100, exif=exif(), xmp=XMP
    )


OTHERS = {
    "TIFF": tiff(),
    "LZW TIFF": tiff(compression="tiff_lzw"),
    "GIF": gif(),
    "AVIF": avif(),
    "JPEG 2000": jpeg2000(),
    "animated WebP": animated("WEBP"),
    "animated PNG": animated("PNG"),
    "animated AVIF": animated("AVIF"),
}
FILES = {
    "JPEG": jpeg(),
    "gray JPEG": jpeg("L"),
    "CMYK JPEG": jpeg("CMYK"),
    "progressive JPEG": jpeg(progressive=True),
    "PNG": png(),
    "palette PNG": png("P"),
    "gray PNG with alpha": png("LA"),
    "lossy WebP": webp(quality=80),
    "lossless WebP": webp(lossless=True),
    "WebP with alpha": webp("RGBA"),
}


def cleaned(content, touched=True):
    """Return the output of `content`, with the picture's own pixels or with copies."""
    picture = images.decode(content, 10**6)
    return images.encode(
        picture, [frame.pixels.copy() if touched else frame.pixels for frame in picture.frames]
    )


def jpeg_parts(content):
    """Return the names of the segments up to the first scan, and the bytes after the end marker."""
    names, at = ["SOI"], 2
    while content[at + 1] != 0xDA:
        marker, size = content[at + 1], struct.unpack_from(">H", content, at + 2)[0]
        tag = content[at + 4 : at + 2 + size].split(b"\0")[0].decode("latin-1")
        named = {0xDB: "DQT", 0xC0: "SOF0", 0xC2: "SOF2", 0xC4: "DHT", 0xFE: "COM"}
        names.append(
            named.get(marker) or f"APP{marker - 0xE0} {tag[:11] if marker != 0xEE else tag[:5]}"
        )
        at += 2 + size
    return names, content[content.rindex(b"\xff\xd9") + 2 :]


def png_parts(content):
    names, at = [], 8
    while at < len(content):
        names.append(content[at + 4 : at + 8])
        at += 12 + struct.unpack_from(">I", content, at)[0]
    return names


def webp_parts(content):
    names, at = [], 12
    while at < len(content):
        names.append(content[at : at + 4])
        size = struct.unpack_from("<I", content, at + 4)[0]
        at += 8 + size + size % 2
    return names


@pytest.mark.parametrize("name", FILES)
def test_the_files_of_these_tests_hold_what_must_go(name):
    content = FILES[name]
    assert content.count(SECRET) >= 8
    image = Image.open(io.BytesIO(content))
    assert image.getexif()[0x013B] == SECRET.decode()
    assert image.getexif().get_ifd(0x8825)[29] == SECRET.decode()
    assert image.getexif().get_ifd(ExifTags.IFD.IFD1)[0x0202] == len(thumbnail())
    assert content.count(thumbnail()) == (2 if "WebP" in name else 3)
    assert image.info["icc_profile"] == PROFILE


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_files_of_these_tests_hold_what_must_go(name):
    assert OTHERS[name].count(SECRET) >= (1 if "animated" in name else 2)


@pytest.mark.parametrize("touched", [True, False], ids=["masked", "untouched"])
@pytest.mark.parametrize("name", [*FILES, *OTHERS])
def test_no_metadata_is_in_the_bytes_of_the_output(name, touched):
    out = cleaned((FILES | OTHERS)[name], touched)
    for trace in (
        SECRET,
        SECRET[:16],
        SECRET.decode().encode("utf-16-le"),
        b"Exif",
        b"xmp",
        b"XMP",
        b"http",
        b"MPF",
        b"8BIM",
    ):
        assert trace not in out
    assert thumbnail()[200:260] not in out
    assert out.count(b"\xff\xd8\xff") == (1 if name.endswith("JPEG") else 0)


def test_another_program_finds_no_metadata_in_any_output(tmp_path):
    if shutil.which("exiftool") is None:
        pytest.skip("exiftool, the independent reader of this test, is not on this machine")
    for number, content in enumerate((FILES | OTHERS).values()):
        (tmp_path / f"{number}.before").write_bytes(content)
        for touched in (True, False):
            (tmp_path / f"{number}.{touched}").write_bytes(cleaned(content, touched))
    found = {Path(path).name: tags for path, tags in leaks(sorted(tmp_path.iterdir())).items()}
    assert len(found) == 3 * len(FILES | OTHERS)
    assert [name for name, tags in found.items() if name.endswith("before") and not tags] == []
    assert {
        name: tags for name, tags in found.items() if tags and not name.endswith("before")
    } == {}


def further_pictures():
    """Return a JPEG with a second picture in it (CIPA DC-007)."""
    return written(
        scene(), "MPO", save_all=True, append_images=[Image.new("RGB", (60, 40), (1, 200, 3))]
    )


@pytest.mark.parametrize(
    ("content", "tag"),
    [
        (jpeg(), "GPS:GPSLatitude"),
        (jpeg(), "XMP-dc:Creator"),
        (jpeg(), "IPTC:By-line"),
        (jpeg(), "ExifIFD:MakerNoteUnknownText"),
        (jpeg(), "File:Comment"),
        (jpeg(), "IFD1:ThumbnailImage"),
        (jpeg(), "Jpeg2000:C2paThumbnailClaimJpegData"),
        (png(), "Jpeg2000:C2paThumbnailClaimJpegData"),
        (further_pictures(), "MPImage2:MPImage2"),
    ],
)
def test_metadata_that_another_program_finds_in_the_source_is_not_in_the_output(
    tmp_path, content, tag
):
    if shutil.which("exiftool") is None:
        pytest.skip("exiftool, the independent reader of this test, is not on this machine")
    before, masked, untouched = (tmp_path / name for name in ("before", "masked", "untouched"))
    before.write_bytes(content)
    masked.write_bytes(cleaned(content))
    untouched.write_bytes(cleaned(content, touched=False))
    found = leaks([before, masked, untouched])
    assert tag in found[str(before)]
    assert found[str(masked)] == found[str(untouched)] == []


@pytest.mark.parametrize("touched", [True, False], ids=["masked", "untouched"])
@pytest.mark.parametrize("name", FILES)
def test_no_metadata_is_found_when_the_output_is_opened(name, touched):
    image = Image.open(io.BytesIO(cleaned(FILES[name], touched)))
    image.load()
    assert not dict(image.getexif())
    assert not any(image.getexif().get_ifd(ifd) for ifd in ExifTags.IFD)
    assert not getattr(image, "text", {})
    assert set(image.info) <= {
        "icc_profile", "jfif", "jfif_version", "jfif_unit", "jfif_density", "adobe",
        "adobe_transform", "progressive", "progression", "loop", "duration", "timestamp",
        "background", "dpi",
    }  # fmt: skip
    assert image.info.get("icc_profile") == (
        PROFILE if image.mode in ("RGB", "RGBA", "P") else None
    )


@pytest.mark.parametrize("touched", [True, False], ids=["masked", "untouched"])
@pytest.mark.parametrize("name", [name for name in FILES if "JPEG" in name])
def test_a_jpeg_output_has_only_the_segments_of_a_picture(name, touched):
    names, after = jpeg_parts(cleaned(FILES[name], touched))
    assert set(names) <= KEPT_JPEG
    assert after == b""


@pytest.mark.parametrize("name", [name for name in FILES if "PNG" in name])
def test_a_png_output_has_only_the_chunks_of_a_picture(name):
    names = png_parts(cleaned(FILES[name]))
    assert set(names) <= KEPT_PNG
    assert names[-1] == b"IEND"


@pytest.mark.parametrize("name", [name for name in FILES if "WebP" in name])
def test_a_webp_output_has_only_the_chunks_of_a_picture(name):
    out = cleaned(FILES[name])
    assert set(webp_parts(out)) <= KEPT_WEBP
    assert len(out) == 8 + struct.unpack_from("<I", out, 4)[0]


def test_further_pictures_in_a_jpeg_do_not_survive():
    content = further_pictures()
    assert Image.open(io.BytesIO(content)).n_frames == 2
    picture = images.decode(content, 10**6)
    (frame,) = picture.frames
    out = images.encode(picture, [frame.pixels.copy()])
    assert images.encode(picture, [frame.pixels]).count(b"\xff\xd8\xff") == 1
    assert (picture.format, picture.content_type) == ("JPEG", "image/jpeg")
    assert out.count(b"\xff\xd8\xff") == 1
    assert np.abs(frame.pixels.astype(int) - np.asarray(scene())).mean() < 8
    assert getattr(Image.open(io.BytesIO(out)), "n_frames", 1) == 1


def test_a_preview_under_a_wrong_checksum_is_not_carried_over():
    # A chunk that no decoder reads could still hold the source picture.
    body = b"prVt" + thumbnail()
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    content = written(scene(), "PNG")
    at = content.index(b"IDAT") - 4
    assert SECRET not in cleaned(content[:at] + chunk + content[at:])


def test_the_palettes_unused_colours_do_not_survive():
    image = scene().quantize(16)
    palette = image.getpalette()[: 16 * 3] + list(SECRET[:36])
    image.putpalette(palette)
    content = written(image, "PNG")
    assert SECRET[:36] in content
    assert SECRET[:36] not in cleaned(content)
