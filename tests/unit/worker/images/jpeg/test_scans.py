"""Compressed data is kept only if every decoder shows the same pixels of it."""

import io
import struct

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from tasks.errors import UnreadableImage, UnsupportedImage
from worker import images
from worker.images.jpeg import markers
from worker.images.jpeg.markers import DHT, DQT, DRI, SOS
from worker.images.jpeg.scans import all_agree
from worker.images.jpeg.segments import Segment, parsed

SIDE = 64
SMOOTH = np.add.outer(np.arange(SIDE) * 2, np.arange(SIDE)).astype(np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), np.uint8)
FLAT = np.full((SIDE, SIDE), 128, np.uint8)
JFIF = Segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")
SOF0 = 0xC0


def adobe(transform):
    return Segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))


def written(image, **options):
    target = io.BytesIO()
    image.save(target, "JPEG", **options)
    return target.getvalue()


def colours():
    return Image.fromarray(np.stack([SMOOTH, SMOOTH.T, 255 - SMOOTH], axis=-1))


def joined(segments):
    return b"\xff\xd8" + b"".join(segment.written() for segment in segments) + b"\xff\xd9"


def changed(content, change):
    """Return the JPEG `content` with each segment replaced by those that `change` returns."""
    return joined([new for segment in parsed(content) for new in change(segment)])


def gray_scan(pixels):
    (scan,) = (
        s for s in parsed(written(Image.fromarray(pixels), qtables=[[1] * 64])) if s.marker == SOS
    )
    return scan.scan


def sequential(*scans, names=b"\1\2\3", first=(JFIF,), sof=SOF0):
    """Return a JPEG of the components `names` with `scans`, each a name and its data."""
    tables = [
        s
        for s in parsed(written(Image.fromarray(FLAT), qtables=[[1] * 64]))
        if s.marker in (DHT, DQT)
    ]
    frame = struct.pack(">BHHB", 8, SIDE, SIDE, len(names)) + b"".join(
        bytes([name, 0x11, 0]) for name in names
    )
    parts = [Segment(SOS, bytes([1, name, 0, 0, 63, 0]), data) for name, data in scans]
    return joined([*first, *tables, Segment(sof, frame), *parts])


def one_of_each(names=b"\1\2\3", first=(JFIF,)):
    data = [gray_scan(SMOOTH), gray_scan(FLAT), gray_scan(FLAT)]
    return sequential(*zip(names, data, strict=True), names=names, first=first)


def decoded(content):
    return images.decode(content, 10**6)


def is_kept(content):
    """Return whether the compressed data is kept.

    Otherwise the output shows the pixels in which faces were detected.
    """
    picture = decoded(content)
    output = images.encode(picture, [frame.pixels for frame in picture.frames])
    if picture.reassembled is not None:
        assert output == picture.reassembled
        return True
    assert all_agree(output)
    pixels = decoded(output).frames[0].pixels.astype(int)
    assert np.abs(pixels - picture.frames[0].pixels).mean() < 3
    return False


KEPT = {
    "baseline": written(colours()),
    "4:4:4": written(colours(), subsampling=0),
    "gray": written(Image.fromarray(SMOOTH)),
    "optimized": written(colours(), optimize=True),
    "progressive": written(colours(), progressive=True),
    "progressive gray": written(Image.fromarray(NOISE), progressive=True, quality=95),
    "progressive CMYK": written(colours().convert("CMYK"), progressive=True),
    "restarts": written(colours(), restart_marker_blocks=2),
    "restarts in rows, progressive": written(colours(), restart_marker_rows=1, progressive=True),
    "CMYK": written(colours().convert("CMYK")),
    "RGB": written(colours(), keep_rgb=True),
    "a scan for each component": one_of_each(),
    "names from 0": one_of_each(b"\0\1\2"),
    "Adobe": one_of_each(first=(adobe(1),)),
    "odd size": written(colours().crop((0, 0, 51, 37)), restart_marker_blocks=3),
    "odd size, progressive": written(
        colours().crop((0, 0, 51, 37)), progressive=True, restart_marker_blocks=1
    ),
}


@pytest.mark.parametrize("content", KEPT.values(), ids=KEPT)
def test_what_encoders_write_is_kept(content):
    assert is_kept(content)


y, cb, cr = gray_scan(SMOOTH), gray_scan(FLAT), gray_scan(FLAT)
hidden = gray_scan(NOISE)
other_table = Segment(DQT, b"\0" + b"\7" * 64)

DIFFERENT = {
    "luma twice": sequential((1, y), (1, hidden), (2, cb), (3, cr)),
    "luma twice, at the end": sequential((1, y), (2, cb), (3, cr), (1, hidden)),
    "the same scan twice": sequential((1, y), (1, y), (2, cb), (3, cr)),
    "chroma twice": sequential((1, y), (2, hidden), (2, cb), (3, cr)),
    "colours stated in two ways": one_of_each(first=(JFIF, adobe(0))),
    "names that are colours": one_of_each(b"RGB", first=(JFIF,)),
    "names that are colours, without a marker": one_of_each(b"RGB", first=()),
    "names that are colours, as YCbCr": one_of_each(b"RGB", first=(adobe(1),)),
    "unusual names": one_of_each(b"\7\x08\x09", first=()),
    "inks without a marker": changed(
        written(colours().convert("CMYK")), lambda s: [] if s.marker == 0xEE else [s]
    ),
    "a table that is replaced after the first scan": changed(
        sequential((1, y), (2, cb), (3, cr)),
        lambda s: [s, other_table] if s.marker == SOS and s.body[1] == 3 else [s],
    ),
}  # fmt: skip


@pytest.mark.parametrize("content", DIFFERENT.values(), ids=DIFFERENT)
def test_what_decoders_show_differently_is_written_anew(content):
    assert not is_kept(content)


PROGRESSIVE = parsed(written(colours(), progressive=True))
SCANS = [segment for segment in PROGRESSIVE if segment.marker == SOS]


@pytest.mark.parametrize("number", range(len(SCANS)))
@pytest.mark.parametrize("copies", [0, 2])
def test_a_progressive_jpeg_is_kept_only_with_each_scan_once(number, copies):
    content = joined(
        [
            s
            for segment in PROGRESSIVE
            for s in [segment] * (copies if segment is SCANS[number] else 1)
        ]
    )
    assert not all_agree(content)
    try:
        assert decoded(content).reassembled is None
    except UnreadableImage:
        pass  # libjpeg itself refuses the file


@pytest.mark.parametrize(
    ("width", "kept"), [(SIDE, True), (SIDE - 15, True), (SIDE - 16, False), (SIDE - 31, False)]
)
def test_what_blocks_hold_beyond_the_edge_is_not_published(width, kept):
    """A JPEG that was cropped without being compressed again holds cropped pixels in its blocks."""
    whole = simplejpeg.encode_jpeg(np.asarray(colours()), colorsubsampling="411")
    sizes = struct.pack(">HH", SIDE, width)
    cut = changed(
        whole,
        lambda s: [
            Segment(s.marker, s.body[:1] + sizes + s.body[5:])
            if s.marker in markers.FRAME_HEADERS
            else s
        ],
    )
    assert is_kept(cut) is kept


def test_a_gray_jpeg_has_one_scan():
    with pytest.raises(UnreadableImage, match="scan"):
        decoded(sequential((1, y), (1, hidden), names=b"\1"))


def test_a_refinement_comes_after_what_it_refines():
    refinement = next(one for one in SCANS if one.body[-1] >> 4)
    first = next(
        one for one in SCANS if one.body[-3:-1] == refinement.body[-3:-1] and not one.body[-1] >> 4
    )
    swapped = {id(refinement): first, id(first): refinement}
    assert not all_agree(joined([swapped.get(id(segment), segment) for segment in PROGRESSIVE]))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            lambda s: [] if s.marker == DHT else [s], id="Huffman tables that are not there"
        ),
        pytest.param(
            lambda s: [s, Segment(DRI, b"\0\4")] if s.marker == DQT else [s],
            id="restarts that are missing",
        ),
        pytest.param(
            lambda s: [Segment(SOS, s.body, s.scan + b"\xff\xd0")] if s.marker == SOS else [s],
            id="a stray restart",
        ),
        pytest.param(
            lambda s: [Segment(SOS, s.body[:-3] + b"\0\0\0", s.scan)] if s.marker == SOS else [s],
            id="no coefficients",
        ),
        pytest.param(
            lambda s: [Segment(SOS, s.body[:-1] + b"\1", s.scan)] if s.marker == SOS else [s],
            id="bits left out",
        ),
        pytest.param(
            lambda s: (
                [Segment(SOS, b"\3\3\x11\2\x11\1\0\0\x3f\0", s.scan)] if s.marker == SOS else [s]
            ),
            id="order",
        ),
        pytest.param(
            lambda s: [Segment(SOS, b"\1\x09\0\0\x3f\0", s.scan)] if s.marker == SOS else [s],
            id="unknown component",
        ),
        pytest.param(
            lambda s: [Segment(DQT, s.body[:9])] if s.marker == DQT else [s], id="half a table"
        ),
        pytest.param(
            lambda s: [s, Segment(DRI, b"\4")] if s.marker == DQT else [s], id="half an interval"
        ),
        pytest.param(
            lambda s: (
                [Segment(SOF0, s.body[:9] + s.body[6:9] + s.body[12:])] if s.marker == SOF0 else [s]
            ),
            id="two components of one name",
        ),
    ],
)
def test_a_script_that_is_not_as_t81_has_it_does_not_count(change):
    assert not all_agree(changed(written(colours()), change))


def test_restart_markers_that_do_not_count_up_do_not_count():
    content = written(colours(), restart_marker_blocks=2)
    at = content.index(b"\xff\xd1")
    assert all_agree(content)
    assert not all_agree(content[: at + 1] + b"\xd2" + content[at + 2 :])


def test_colours_that_are_stated_twice_and_differently_are_refused():
    with pytest.raises(UnsupportedImage, match="colours"):
        decoded(one_of_each(first=(adobe(0), adobe(1))))


def test_colours_that_are_stated_after_the_picture_do_not_count():
    plain = one_of_each()
    late = changed(plain, lambda s: [s, adobe(0)] if s.marker == SOS and s.body[1] == 3 else [s])
    assert decoded(late).reassembled == decoded(plain).reassembled


def test_what_is_published_of_two_scans_is_what_was_looked_at():
    """Pillow and most viewers show the last scan; the output must not contain the first."""
    picture = decoded(DIFFERENT["luma twice"])
    output = images.encode(picture, [frame.pixels for frame in picture.frames])
    assert y not in output
    assert hidden not in output
    assert sum(segment.marker == SOS for segment in parsed(output)) == 1


def test_coefficients_that_a_table_of_zeros_hides_are_not_published():
    content = bytearray(written(colours()))
    at = content.index(b"\xff\xdb") + 6  # the second value of the first table
    content[at : at + 62] = bytes(62)
    assert all_agree(written(colours()))
    assert not all_agree(bytes(content))
