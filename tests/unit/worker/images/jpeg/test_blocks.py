"""Where a face is hidden in a JPEG, all blocks that no mask touches keep their coefficients."""

import io
import itertools

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from tasks.errors import VeilError
from worker import images
from worker.detection.faces import Sightings
from worker.images.jpeg import blocks, markers, transcoder
from worker.images.jpeg.decoding import is_stored_as_rgb
from worker.images.jpeg.segments import ADOBE_BYTES, parsed
from worker.images.turning import turned_back
from worker.masking import hiding
from worker.masking.regions import MaskStyle, Part
from worker.metadata.kept import Kept

MAX_PIXELS = 10**7
STYLE = MaskStyle("fill", 1.0, 0.0)


def scene(width=157, height=123, mode="RGB", seed=0):
    chance = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    noise = chance.integers(0, 60, (height, width, 3))
    pixels = noise + np.stack([x, y, (x + y) // 2], -1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def written(image, **options):
    target = io.BytesIO()
    image.save(target, "JPEG", **options)
    return target.getvalue()


def encoded(picture, *boxes, style=STYLE):
    """Return the output of `picture` with `boxes` hidden, and the changed pixels."""
    frame = picture.frames[0]
    if not boxes:
        return images.encode(picture, [frame.pixels]), np.zeros(frame.pixels.shape[:2], bool)
    sightings = Sightings.of(np.array(boxes, np.float32))
    pixels, changed = hiding.hide_and_mark(frame.pixels, [Part(sightings, style)], frame.black)
    return images.encode(picture, [pixels], [changed]), changed


def hidden(content, *boxes, style=STYLE):
    """Return the picture `content`, its output with `boxes` hidden, and the changed pixels."""
    picture = images.decode(content, MAX_PIXELS)
    return (picture, *encoded(picture, *boxes, style=style))


def sampling(content):
    """Return the factors of each component: pixels of a sample, across and down."""
    frame = next(one.body for one in parsed(content) if one.marker in markers.FRAME_HEADERS)
    factors = [(one >> 4, one & 15) for one in frame[7::3]]
    widest, highest = (max(one[place] for one in factors) for place in (0, 1))
    return [(widest // across, highest // down) for across, down in factors]


def assert_only_masks_change(content, *boxes, style=STYLE):
    """Check the coefficients and the pixels of the output for `content`, and return the output."""
    picture, output, changed = hidden(content, *boxes, style=style)
    factors = sampling(content)
    before = transcoder.coefficients(content, len(factors))
    after = transcoder.coefficients(output, len(factors))
    changed = turned_back(changed, picture.orientation)
    near = np.zeros(changed.shape, np.uint8)
    for old, new, (across, down) in zip(before, after, factors, strict=True):
        for row, column in np.ndindex(*old.shape[:2]):
            rows = slice(row * 8 * down, (row + 1) * 8 * down)
            columns = slice(column * 8 * across, (column + 1) * 8 * across)
            if changed[rows, columns].any():
                near[rows, columns] = 1
            else:
                assert np.array_equal(old[row, column], new[row, column])
    far = cv2.dilate(near, np.ones((3, 3), np.uint8)) == 0
    shown, original = pixels_of(output), pixels_of(content)
    assert np.array_equal(shown[far], original[far])
    assert far.any()
    return output


def pixels_of(content):
    """Return the pixels of a JPEG as it stores them."""
    return np.asarray(Image.open(io.BytesIO(content)))


KINDS = list(itertools.product(("L", "RGB", "CMYK"), (False, True), (0, 1)))


@pytest.mark.parametrize(("mode", "progressive", "restart"), KINDS)
def test_blocks_without_a_mask_keep_their_coefficients(mode, progressive, restart):
    content = written(
        scene(mode=mode), quality=88, progressive=progressive, restart_marker_rows=restart
    )
    output = assert_only_masks_change(content, (40, 32, 90, 72), (120, 90, 170, 140))
    opened = Image.open(io.BytesIO(output))
    assert bool(opened.info.get("progressive")) is progressive
    assert (b"\xff\xdd\0\4" in output) is bool(restart)
    assert np.asarray(opened.convert("RGB"))[34:70, 42:88].max() < 40


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
@pytest.mark.parametrize("quality", [30, 75, 100])
def test_every_subsampling_is_kept(subsampling, quality):
    pixels = np.ascontiguousarray(scene())
    content = simplejpeg.encode_jpeg(pixels, quality, colorsubsampling=subsampling)
    output = assert_only_masks_change(content, (20, 30, 61, 77))
    assert simplejpeg.decode_jpeg_header(output)[3] == subsampling
    shown = pixels_of(output)[31:76, 21:60].astype(int)
    assert shown.mean() < 5


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(40, 90),
    height=st.integers(40, 90),
    subsampling=st.sampled_from(["444", "422", "420", "440", "411"]),
    corner=st.tuples(st.integers(-10, 85), st.integers(-10, 85)),
    side=st.integers(1, 25),
    style=st.sampled_from([STYLE, MaskStyle("surround", 0.7, 0.1, "ellipse", 0.2)]),
)
def test_any_size_and_any_place_of_a_mask(width, height, subsampling, corner, side, style):
    # A wider hidden part is compressed again: see worker.images.jpeg.scans.
    assume(subsampling != "411" or -width % 32 <= 15)
    pixels = np.ascontiguousarray(scene(width, height))
    content = simplejpeg.encode_jpeg(pixels, 80, colorsubsampling=subsampling)
    left, top = min(corner[0], width - 2), min(corner[1], height - 2)
    assert_only_masks_change(content, (left, top, left + side, top + side), style=style)


def test_components_that_are_stored_as_rgb_stay_so():
    output = assert_only_masks_change(written(scene(), keep_rgb=True), (40, 32, 90, 72))
    assert is_stored_as_rgb(output)
    assert np.asarray(Image.open(io.BytesIO(output)))[34:70, 42:88].max() < 40


def test_ycck_stays_ycck():
    ycck = written(scene(mode="CMYK"), quality=90)
    at = ycck.index(b"Adobe") + ADOBE_BYTES - 1
    content = ycck[:at] + b"\2" + ycck[at + 1 :]
    output = assert_only_masks_change(content, (40, 32, 90, 72))
    assert simplejpeg.decode_jpeg_header(output)[2] == "YCCK"
    inside = images.decode(output, MAX_PIXELS).frames[0].pixels[34:70, 42:88].astype(int)
    assert np.abs(inside - (0, 0, 0, 255)).max() < 25


def test_scans_of_single_components_stay_single():
    interleaved = written(scene(), quality=90, subsampling="4:2:0")
    scans = [transcoder.Scan([number], 0, 63, 0, 0) for number in range(3)]
    segments = parsed(interleaved)
    kept = [one for one in segments if one.marker not in blocks.CODING]
    coded = parsed(transcoder.transcoded(interleaved, [], scans, 1 << 20))
    content = blocks._joined(kept + coded)
    output = assert_only_masks_change(content, (40, 32, 90, 72))
    kinds = [one.marker for one in parsed(output)]
    assert kinds.count(markers.SOS) == 3


def test_a_table_for_each_component_is_kept():
    tables = [[1 + number * 2 + place // 8 for place in range(64)] for number in range(3)]
    content = written(scene(), qtables=tables, subsampling="4:4:4")
    output = assert_only_masks_change(content, (40, 32, 90, 72))
    assert (
        Image.open(io.BytesIO(output)).quantization == Image.open(io.BytesIO(content)).quantization
    )


@pytest.mark.parametrize("optimize", [False, True])
def test_the_size_hardly_changes(optimize):
    content = written(scene(640, 480), quality=85, optimize=optimize)
    output = assert_only_masks_change(content, (300, 200, 400, 300))
    assert 0.9 < len(output) / len(content) < 1.03


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("boxes", [[], [(40, 20, 70, 60)]])
def test_a_turned_picture_keeps_its_blocks_and_its_orientation(orientation, boxes):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "Erika Mustermann"
    content = written(scene(160, 120), exif=exif, quality=90)
    output = assert_only_masks_change(content, *boxes)
    assert Image.open(io.BytesIO(output)).getexif() == (
        {0x0112: orientation} if orientation > 1 else {}
    )
    frame = images.decode(output, MAX_PIXELS).frames[0]
    assert (frame.width, frame.height) == ((160, 120) if orientation < 5 else (120, 160))
    assert not boxes or frame.pixels[22:58, 42:68].max() < 40


def test_kept_exif_and_the_colour_profile_stay_beside_the_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x9003] = "2026:11:29 12:00:00"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = written(scene(), exif=exif, icc_profile=profile)
    picture = images.decode(content, MAX_PIXELS, keep=Kept(exif=("DateTimeOriginal",)))
    for output in (picture.reassembled, encoded(picture, (40, 32, 90, 72))[0]):
        opened = Image.open(io.BytesIO(output))
        assert opened.getexif()[0x0112] == 6
        assert opened.getexif().get_ifd(0x8769) == {0x9003: "2026:11:29 12:00:00"}
        assert opened.info["icc_profile"] == profile


def test_the_output_does_not_depend_on_what_is_hidden():
    """Two pictures that differ only within the mask have the same output."""
    outputs = []
    for seed in (1, 2):
        pixels = np.asarray(scene()).copy()
        # Blocks around differ too where they share a block with the mask, so these are equal.
        pixels[32:80, 48:96] = 0
        pixels[48:64, 64:80] = np.asarray(scene(16, 16, seed=seed))
        content = written(Image.fromarray(pixels), quality=90, subsampling="4:2:0")
        outputs.append(hidden(content, (48, 32, 96, 80))[1])
    assert outputs[0] == outputs[1]


def test_beyond_the_edge_nothing_of_a_hidden_face_remains():
    """A file that was cropped without being compressed again holds there what was cropped."""
    whole = written(scene(160, 120), quality=95, subsampling="4:2:0")
    at = whole.index(b"\xff\xc0") + 5
    content = whole[:at] + (113).to_bytes(2) + (147).to_bytes(2) + whole[at + 4 :]
    _, output, _ = hidden(content, (100, 70, 147, 113))
    at = output.index(b"\xff\xc0") + 5
    uncovered = output[:at] + (120).to_bytes(2) + (160).to_bytes(2) + output[at + 4 :]
    assert pixels_of(uncovered)[72:, 102:].max() < 40


def test_a_result_that_is_wrong_is_not_used(monkeypatch):
    content = written(scene(), quality=90)
    other = written(scene(seed=5), quality=90)
    spliced = blocks.spliced
    for wrong in (
        lambda content, _: spliced(content, []),
        lambda _, patches: spliced(other, patches),
    ):
        monkeypatch.setattr(blocks, "spliced", wrong)
        _, output, _ = hidden(content, (40, 32, 90, 72))
        assert pixels_of(output)[34:70, 42:88].max() < 40
        assert np.abs(pixels_of(output)[90:].astype(int) - pixels_of(content)[90:]).mean() < 3


def test_without_memory_for_the_coefficients_the_picture_is_compressed_again(monkeypatch):
    def refuse(*_):
        raise transcoder.TranscodingFailed("no memory")

    monkeypatch.setattr(blocks, "transcoded", refuse)
    _, output, _ = hidden(written(scene(), progressive=True), (40, 32, 90, 72))
    assert pixels_of(output)[34:70, 42:88].max() < 40


def test_arithmetic_coding_is_not_handled():
    content = written(scene())
    at = content.index(b"\xff\xc0") + 1
    segments = parsed(content[:at] + b"\xc9" + content[at + 1 :])
    assert blocks.layout_of(segments) is None


def test_damaged_files_fail_or_decode_cleanly():
    """A damaged file is published only if its output decodes without a warning."""
    chance = np.random.default_rng(3)
    published = 0
    contents = [
        written(scene(), quality=90, progressive=progressive, restart_marker_rows=restart)
        for progressive, restart in itertools.product((False, True), (0, 1))
    ]
    for number in range(300):
        content = bytearray(contents[number % 4])
        for place in chance.integers(2, len(content), chance.integers(1, 4)):
            content[place] = chance.integers(256)
        try:
            _, output, _ = hidden(bytes(content), (40, 32, 90, 72))
        except VeilError:
            continue
        published += 1
        simplejpeg.decode_jpeg(output, strict=True)
    assert 0 < published < 300


@pytest.mark.parametrize("damage", [b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\xff\xd8" + bytes(50)])
def test_the_transcoder_fails_where_libjpeg_would_end_the_process(damage):
    with pytest.raises(transcoder.TranscodingFailed):
        transcoder.coefficients(damage, 1)


def test_the_transcoder_fails_where_libjpeg_warns():
    content = written(scene())
    with pytest.raises(transcoder.TranscodingFailed):
        transcoder.coefficients(content[: len(content) // 2] + b"\xff\xd9", 3)


def test_the_module_calls_nothing_outside():
    _, module = transcoder._compiled()
    assert module.imports == []
