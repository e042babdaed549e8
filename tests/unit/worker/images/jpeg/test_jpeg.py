"""A JPEG without masks keeps its compressed data bit for bit, and a damaged JPEG is refused."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from tasks.errors import UnreadableImage, UnsupportedImage
from worker import images
from worker.anonymizer import Anonymizer, Limits, Stopwatch
from worker.detection.faces import Detections
from worker.images.jpeg import markers
from worker.images.jpeg.decoding import is_stored_as_rgb
from worker.images.jpeg.segments import _scan_end, _segments, reassembled
from worker.masking.regions import MaskStyle

# Pillow warns of the broken indexes that these files have.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Image appears to be a malformed MPO", "ignore:Corrupt EXIF"
)

SECRET = b"Erika Mustermann, 48.1371 N 11.5754 E"
LIMITS = Limits(max_bytes=10**7, max_pixels=10**6, fetch_seconds=5)


def scene(mode="RGB"):
    chance = np.random.default_rng(0)
    y, x = np.mgrid[:120, :160]
    pixels = (
        np.stack([x + chance.integers(0, 30, x.shape), y, x // 2 + y // 2], -1)
        .clip(0, 255)
        .astype(np.uint8)
    )
    return Image.fromarray(pixels).convert(mode)


def written(image, **options):
    target = io.BytesIO()
    image.save(target, "JPEG", **options)
    return target.getvalue()


def segment(marker, body):
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2) + body


def with_metadata(content):
    """Return `content` with text, another program's data, a thumbnail, and bytes after its end."""
    extra = [
        (0xE1, b"Exif\0\0" + SECRET),
        (0xE2, b"MPF\0" + SECRET),
        (0xEB, b"JP" + SECRET),
        (0xED, SECRET),
        (0xFE, SECRET),
    ]
    thumbnail = b"JFXX\0\x10" + written(scene().resize((20, 15)))
    return (
        content[:2]
        + b"".join(segment(*one) for one in [*extra, (0xE0, thumbnail)])
        + content[2:]
        + SECRET
    )


def scans(content):
    """Return the compressed data, and the tables and headers that decode it, in order."""
    needed = markers.TABLES | markers.FRAME_HEADERS | {markers.SOS}
    return [(one.marker, one.body, one.scan) for one in _segments(content) if one.marker in needed]


class Finds:
    def __init__(self, *boxes):
        self._boxes = np.array(boxes, np.float32).reshape(-1, 4)

    def detect(self, picture):
        return Detections(self._boxes, np.full(len(self._boxes), 0.9, np.float32))


def anonymized(content, *boxes):
    made = Anonymizer(detector=Finds(*boxes), style=MaskStyle("fill", 1.0, 0.0), limits=LIMITS)
    return made.anonymize(content, Stopwatch()).content


KINDS = [
    pytest.param(
        mode,
        progressive,
        restart,
        id=f"{mode} {'progressive' if progressive else 'baseline'} {restart}",
    )
    for mode, progressive, restart in itertools.product(["L", "RGB", "CMYK"], [False, True], [0, 2])
]


@pytest.mark.parametrize(("mode", "progressive", "restart"), KINDS)
def test_without_a_face_the_compressed_data_is_kept_bit_for_bit(mode, progressive, restart):
    content = written(scene(mode), quality=88, progressive=progressive, restart_marker_rows=restart)
    again = anonymized(with_metadata(content))
    assert scans(again) == scans(content)
    assert len(scans(content)) >= 3
    assert SECRET not in again
    assert again.count(b"\xff\xd8\xff") == 1
    assert again.endswith(b"\xff\xd9")
    assert len(again) <= len(content)
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(again))), np.asarray(Image.open(io.BytesIO(content)))
    )


def test_cleaning_an_output_again_changes_nothing():
    once = anonymized(with_metadata(written(scene())))
    assert anonymized(once) == once


def test_with_a_face_only_its_blocks_are_compressed_anew():
    content = written(scene(), progressive=True)
    again = anonymized(content, (40, 32, 80, 72))
    assert scans(again) != scans(content)
    assert Image.open(io.BytesIO(again)).info["progressive"]
    pixels = np.asarray(Image.open(io.BytesIO(again))).astype(int)
    assert pixels[36:68, 44:76].max() < 30
    assert np.array_equal(pixels[88:], np.asarray(Image.open(io.BytesIO(content)))[88:])


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_picture_keeps_its_compressed_data_and_its_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = SECRET
    content = written(scene(), exif=exif, quality=95)
    again = anonymized(content)
    assert Image.open(io.BytesIO(again)).getexif() == {0x0112: orientation}
    assert scans(again) == scans(content)
    assert SECRET not in again


@pytest.mark.parametrize("stored", ["RGB", "YCbCr"])
def test_components_stay_what_they_are(stored):
    content = written(scene(), keep_rgb=stored == "RGB", quality=95)
    for again in (anonymized(content), anonymized(content, (40, 32, 80, 72))):
        assert is_stored_as_rgb(again) is (stored == "RGB")
        pixels = np.asarray(Image.open(io.BytesIO(again))).astype(int)
        assert np.abs(pixels[88:] - np.asarray(scene())[88:]).mean() < 5


def test_adobes_inverted_cmyk_stays_inverted():
    content = written(scene("CMYK"), quality=95)
    assert b"Adobe" in content
    for again in (anonymized(content), anonymized(content, (40, 32, 80, 72))):
        assert b"Adobe" in again
        pixels = np.asarray(Image.open(io.BytesIO(again))).astype(int)
        assert np.abs(pixels[88:] - np.asarray(scene("CMYK"))[88:]).mean() < 3


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_a_picture_that_was_cut_and_closed_with_an_end_marker_is_unreadable(progressive, share):
    content = written(scene(), quality=95, progressive=progressive)
    first = content.index(b"\xff\xda")
    cut = content[: first + int((len(content) - first) * share)].rstrip(b"\xff") + b"\xff\xd9"
    with pytest.raises(UnreadableImage):
        images.decode(cut, 10**6)


def test_bytes_hidden_behind_the_last_pixel_are_found():
    content = written(scene())
    with pytest.raises(UnreadableImage):
        images.decode(content[:-2] + SECRET + b"\xff\xd9", 10**6)


@pytest.mark.parametrize("between", [b"\xff" * 3, b"\xff" * 5000, SECRET, b"\0", b"\xff\0"])
def test_bytes_between_the_segments_of_a_header_are_removed(between):
    content = written(scene())
    at = content.index(b"\xff\xdb")
    assert anonymized(content[:at] + between + content[at:]) == anonymized(content)


@pytest.mark.parametrize("between", [SECRET, b"\0", b"\xff\0"])
def test_bytes_between_the_segments_after_the_first_scan_are_damage(between):
    content = written(scene(), progressive=True)
    at = content.rindex(b"\xff\xda")
    with pytest.raises(UnreadableImage):
        images.decode(content[:at] + between + content[at:], 10**6)


def test_a_thumbnail_in_the_jfif_segment_is_dropped():
    content = written(scene())
    pixels = np.full((5, 6, 3), 77, np.uint8).tobytes()
    header = segment(0xE0, content[6:18] + bytes([6, 5]) + pixels)
    again = anonymized(content[:2] + header + content[20:])
    assert again == anonymized(content)


@pytest.mark.parametrize("marker", [0xC3, 0xC5, 0xC7, 0xCB, 0xCF])
def test_other_kinds_of_jpeg_are_refused_by_name(marker):
    content = written(scene())
    at = content.index(b"\xff\xc0")
    with pytest.raises(UnsupportedImage, match="baseline"):
        reassembled(content[: at + 1] + bytes([marker]) + content[at + 2 :])


def test_a_picture_of_very_many_scans_is_refused_before_it_is_decoded():
    content = written(scene(), progressive=True)
    at = content.rindex(b"\xff\xda")
    with pytest.raises(UnsupportedImage, match="scans"):
        images.decode(content[:at] + content[at:-2] * 80 + b"\xff\xd9", 10**6)


def test_a_picture_in_a_picture_is_not_taken_for_one():
    content = written(scene())
    at = content.index(b"\xff\xda")
    for broken in (
        content[:at] + content,
        content[:2] + content,
        content[:at] + b"\xff\xd9",
        b"\xff\xd8\xff\xd9",
    ):
        with pytest.raises((UnreadableImage, UnsupportedImage)):
            reassembled(broken)


def test_arithmetic_coding_is_kept(tmp_path):
    # No installed encoder writes it, so only the marker shows that its tables are kept.
    content = written(scene())
    at = content.index(b"\xff\xc4")
    with_conditioning = content[:at] + segment(0xCC, b"\0\x10") + content[at:]
    assert segment(0xCC, b"\0\x10") in reassembled(with_conditioning)


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (b"\x12\xff\xd9", 1),
        (b"\x12\xff\x00\xff\xd3\x34\xff\xda", 6),  # a stuffed byte and a restart are part of it
        (b"\x12\xff\xff\xff\xd9", 1),  # fill bytes belong to the marker that follows
        (b"\xff\xff\x00\xff\xc4", 3),
        (b"\xff\xd9", 0),
        (b"\x12\xff", 2),  # without a marker it ends with the file
        (b"\x12\x34", 2),
        (b"", 0),
    ],
)
def test_compressed_data_ends_at_the_next_marker(data, end):
    before = b"\xff\xff"
    assert _scan_end(before + data, len(before)) == end + len(before)


def inks_without_marker():
    """Return a JPEG of four inks with Adobe's marker, and without."""
    red, green, blue = scene().split()
    marked = written(Image.merge("CMYK", (red, green, blue, scene("L").rotate(180))), quality=95)
    at = marked.index(b"\xff\xee")
    return marked, marked[:at] + marked[at + 2 + int.from_bytes(marked[at + 2 : at + 4]) :]


def shown_by_pillow(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_inks_without_a_marker_are_shown_as_in_browsers_and_searched_in_both_ways():
    """Chromium, Firefox and Pillow take them for inverted, others only if the marker is there."""
    marked, content = inks_without_marker()
    frame = images.decode(content, 10**6).frames[0]
    assert np.abs(frame.on_white() - shown_by_pillow(content)).mean() < 1
    inks = (255 - frame.pixels.astype(int)) / 255
    uninverted = 255 * (1 - inks[..., :3]) * (1 - inks[..., 3:])
    views = list(frame.views())
    for expected in (shown_by_pillow(content), uninverted):
        assert sum(np.abs(view - expected).mean() < 1 for view in views) == 1
    assert np.abs(uninverted - shown_by_pillow(content)).mean() > 20
    # One of the two ways may look as if it had haze, and has a view without it.
    assert len(views) > len(list(images.decode(marked, 10**6).frames[0].views()))


def test_the_output_of_inks_without_a_marker_shows_the_same_and_has_a_marker():
    _, content = inks_without_marker()
    picture = images.decode(content, 10**6)
    output = images.encode(picture, [frame.pixels for frame in picture.frames])
    assert b"\xff\xee" in output
    assert np.abs(shown_by_pillow(output) - shown_by_pillow(content)).mean() < 3
