"""Faults of files that change no pixel are accepted, with a note, and all others are refused."""

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.errors import ImageTooLarge, UnreadableImage, UnsupportedImage
from worker import images
from worker.images import png
from worker.images.jpeg import markers, tolerance
from worker.images.jpeg.segments import JUNK, SCAN_PARAMETERS
from worker.images.signatures import name_of

MANY = 10**7
CASES = Path(__file__).parents[5] / "shared/cases/files"
WIDTH, HEIGHT = 211, 123
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
PICTURE = Image.fromarray(NOISE)


def written(image, form, **options):
    target = io.BytesIO()
    image.save(target, form, **options)
    return target.getvalue()


def decoded(content):
    return images.decode(bytes(content), MANY)


def pixels(content):
    (frame,) = decoded(content).frames
    return frame.pixels


def round_trip(content):
    """Return the picture of `content`, and that of its output after masking."""
    picture = decoded(content)
    output = images.encode(picture, [frame.pixels.copy() for frame in picture.frames])
    return picture, decoded(output)


# --- JPEG

MODES = ("RGB", "L", "CMYK")
KINDS = {
    "baseline": {},
    "restarts after each block": {"restart_marker_blocks": 1},
    "restarts within rows": {"restart_marker_blocks": 5},
    "restarts after rows": {"restart_marker_rows": 1},
    "progressive": {"progressive": True},
}
SAMSUNG = b"\0\0\xa1\n\x08\0\0\0Image_UTC_Data1234567890123SEFHj\0\0\0\1\0\0\0SEFT"
WITH_THUMBNAIL = b"\0\0\xa1\n\x05\0\0\0Image" + written(Image.new("RGB", (8, 8)), "JPEG") + b"SEFT"


@pytest.fixture(params=[(mode, kind) for mode in MODES for kind in KINDS], ids=" ".join)
def jpeg_file(request):
    mode, kind = request.param
    return written(Image.fromarray(NOISE).convert(mode), "JPEG", quality=90, **KINDS[kind])


@pytest.mark.parametrize("stray", [b"\0", b"\0" * 300, b"\x55" * 40], ids=["1", "300", "other"])
def test_stray_bytes_before_markers_change_no_pixel_and_are_removed(jpeg_file, stray):
    scan = jpeg_file.index(b"\xff\xda")
    restarts = re.sub(rb"(\xff[\xd0-\xd7])", lambda marker: stray + marker[1], jpeg_file[scan:-2])
    picture = decoded(jpeg_file[:scan] + restarts + stray + b"\xff\xd9")
    expected = decoded(jpeg_file)
    assert np.array_equal(picture.frames[0].pixels, expected.frames[0].pixels)
    if len(stray) > 1:  # libjpeg passes over single bytes without a warning
        assert picture.notes == (tolerance.STRAY_BYTES,)
        assert picture.reassembled == expected.reassembled


@pytest.mark.parametrize(
    "trailer",
    [b"", b"\xff", b"\xff\xff", SAMSUNG, WITH_THUMBNAIL],
    ids=["none", "half of it", "fill bytes", "Samsung's", "Samsung's with a thumbnail"],
)
def test_a_missing_end_marker_is_added_if_all_blocks_are_there(jpeg_file, trailer):
    picture, expected = decoded(jpeg_file[:-2] + trailer), decoded(jpeg_file)
    assert picture.notes == (tolerance.NO_END_MARKER,)
    assert picture.reassembled == expected.reassembled
    assert np.array_equal(picture.frames[0].pixels, expected.frames[0].pixels)


@pytest.mark.parametrize(
    "trailer", [b"\0" * 10, b"abcd" * 20, SAMSUNG + b"\0"], ids=["zeros", "text", "cut short"]
)
def test_other_bytes_in_place_of_the_end_marker_are_refused(jpeg_file, trailer):
    with pytest.raises(UnreadableImage):
        decoded(jpeg_file[:-2] + trailer)


def test_a_jpeg_without_its_last_blocks_is_refused_whatever_follows(jpeg_file):
    for lost in (3, 4, 9, 30, 200):
        for end in (b"", b"\xff\xd9", SAMSUNG, bytes(400) + b"\xff\xd9", bytes(400) + SAMSUNG):
            with pytest.raises(UnreadableImage):
                decoded(jpeg_file[:-lost] + end)


def test_a_progressive_jpeg_without_its_last_scan_is_refused():
    content = written(Image.fromarray(NOISE), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    with pytest.raises(UnreadableImage):
        decoded(content[:last])


@pytest.mark.parametrize("parameters", [b"\0\0\0", b"\0\0\x10", b"\x05\x06\x21"])
def test_scan_parameters_of_a_baseline_jpeg_are_set_right(parameters):
    content = written(Image.fromarray(NOISE), "JPEG")
    end = content.index(b"\xff\xda") + 14
    assert content[end - 3 : end] == b"\0\x3f\0"
    picture = decoded(content[: end - 3] + parameters + content[end:])
    assert picture.reassembled == decoded(content).reassembled
    assert picture.notes == (SCAN_PARAMETERS,)
    assert np.array_equal(picture.frames[0].pixels, pixels(content))


def with_junk(content, junk, before):
    """Return the JPEG `content` with the bytes `junk` before the first segment `before`."""
    at = content.index(b"\xff" + bytes([before]))
    return content[:at] + junk + content[at:]


@pytest.mark.parametrize("junk", [b"\1", b"hello", b"\xff\0\0\2", b"\xff\0" + bytes(900)])
def test_bytes_after_metadata_in_a_header_are_removed(junk):
    content = written(PICTURE, "JPEG")
    picture = decoded(with_junk(content, junk, markers.DQT))
    assert picture.notes == (JUNK,)
    assert picture.reassembled == decoded(content).reassembled


@pytest.mark.parametrize("before", [0xC0, markers.DHT, markers.SOS])
def test_bytes_after_a_segment_that_pixels_need_are_refused(before):
    with pytest.raises(UnreadableImage):
        decoded(with_junk(written(PICTURE, "JPEG"), b"hello", before))


def test_an_end_of_metadata_that_hides_a_table_is_refused():
    content = written(PICTURE, "JPEG", comment=b"a comment")
    at = content.index(b"a comment")
    for name in (markers.DQT, markers.DHT):
        place = content.index(b"\xff" + bytes([name]))
        block = b"\xff\xfe\0\x0b" + b"a comment"
        with pytest.raises(UnreadableImage):
            decoded(content[:place] + block[:-5] + content[place:])
    with pytest.raises(UnreadableImage):
        decoded(content[: at + 4] + content[at + 9 :])


def test_many_bytes_between_segments_are_no_jpeg():
    with pytest.raises(UnreadableImage):
        decoded(with_junk(written(PICTURE, "JPEG"), bytes(1 << 11), markers.DQT))


def test_what_follows_junk_in_the_header_of_a_jpeg_must_be_whole():
    content = with_junk(written(PICTURE, "JPEG"), b"hello", markers.DQT)
    for at in range(2, len(content) - 2, 71):
        with pytest.raises(UnreadableImage):
            decoded(content[:at])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_in_xmp_alone_turns_nothing(form):
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/>'
        b"</rdf:RDF></x:xmpmeta>"
    )
    if form == "PNG":
        body = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp
        content = png.with_chunks(written(Image.fromarray(NOISE), "PNG"), [(b"iTXt", body)])
    else:
        content = written(Image.fromarray(NOISE), form, xmp=xmp)
    picture = decoded(content)
    assert (picture.width, picture.height) == (WIDTH, HEIGHT)
    assert (picture.reassembled is not None) == (form != "PNG")


# --- PNG

PNG = written(Image.fromarray(NOISE), "PNG")


def wrong_checksum(name, body=b"some text\0"):
    return png.chunk(name, body)[:-1] + b"?"


@pytest.mark.parametrize("name", [b"tEXt", b"zTXt", b"iTXt", b"tIME", b"pHYs", b"gAMA", b"iCCP"])
def test_a_wrong_checksum_of_a_chunk_without_pixels_is_noted(name):
    picture = decoded(PNG[:33] + wrong_checksum(name) + PNG[33:])
    assert name.decode() in picture.notes[0]
    assert np.array_equal(picture.frames[0].pixels, NOISE)


@pytest.mark.parametrize("name", [b"tRNS", b"fcTL", b"PLTE", b"IDAT", b"voId"])
def test_a_wrong_checksum_of_any_other_chunk_is_refused(name):
    with pytest.raises(UnreadableImage, match="checksum"):
        decoded(PNG[:33] + wrong_checksum(name) + PNG[33:])


@pytest.mark.parametrize("size", [100, 1_500_000])
@pytest.mark.parametrize("compressed", [False, True])
def test_texts_of_any_length_are_dropped(size, compressed):
    text = b"A" * size
    body = b"XML:com.adobe.xmp\0"
    body += b"\1\0\0\0" + zlib.compress(text) if compressed else b"\0\0\0\0" + text
    picture, output = round_trip(png.with_chunks(PNG, [(b"iTXt", body)]))
    assert np.array_equal(output.frames[0].pixels, NOISE)
    assert picture.notes == ()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_a_png_without_an_end_is_read_if_all_of_its_pixels_are_there(mode):
    image = PICTURE.convert(mode)
    content = written(image, "PNG")
    end = content.index(b"IEND") - 4
    expected = decoded(content)
    for rest in (b"", content[end : end + 9], struct.pack(">I4s", 100, b"IDAT"), b"\0"):
        picture = decoded(content[:end] + rest)
        assert picture.notes == (png.NO_END,)
        assert np.array_equal(picture.frames[0].pixels, expected.frames[0].pixels)
        decoded(images.encode(picture, [picture.frames[0].pixels]))


def test_a_png_without_an_end_that_lacks_a_row_is_refused():
    image = PICTURE
    complete, shorter = written(image, "PNG"), written(image.crop((0, 0, image.width, 9)), "PNG")
    end = shorter.index(b"IEND") - 4
    with pytest.raises(UnreadableImage, match="do not lead to an end"):
        decoded(complete[: png.IHDR_END] + shorter[png.IHDR_END : end])
    for at in range(png.IHDR_END, complete.index(b"IEND") - 4, 3001):
        with pytest.raises(UnreadableImage):
            decoded(complete[:at])


def animated():
    """Return the chunks of a PNG of three frames, without the signature."""
    frames = [Image.fromarray(np.roll(NOISE, shift, axis=1)) for shift in range(3)]
    target = io.BytesIO()
    frames[0].save(target, "PNG", save_all=True, append_images=frames[1:], duration=100)
    content, at, found = target.getvalue(), len(png.SIGNATURE), []
    while at < len(content):
        length = int.from_bytes(content[at : at + 4])
        found.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += png.CHUNK_OVERHEAD + length
    return found


def whole(chunks):
    return png.SIGNATURE + b"".join(png.chunk(name, body) for name, body in chunks)


@pytest.mark.parametrize("number", [0, 9, 2**31])
def test_frames_of_a_png_that_are_not_in_order_are_left_out(number):
    chunks = animated()
    last = max(at for at, (name, _) in enumerate(chunks) if name == b"fcTL")
    name, body = chunks[last]
    chunks[last] = name, number.to_bytes(4) + body[4:]
    picture = decoded(whole(chunks))
    assert picture.notes == (png.NO_ANIMATION,)
    assert len(picture.frames) == 1
    assert np.array_equal(picture.frames[0].pixels[..., :3], NOISE)


def test_an_animation_without_an_end_is_refused():
    with pytest.raises(UnreadableImage, match="do not lead to an end"):
        decoded(whole(animated()[:-1]))


# --- GIF

GIF = written(Image.fromarray(NOISE).quantize(16), "GIF")


@pytest.mark.parametrize("end", [b"", b"\0;", b"\0\0\0;"])
def test_a_gif_may_end_without_its_marker_or_with_zeros_before_it(end):
    assert GIF.endswith(b";")
    picture = decoded(GIF[:-1] + end)
    assert np.array_equal(picture.frames[0].pixels, pixels(GIF))
    assert len(picture.notes) == (end == b"")


def test_a_gif_that_repeats_and_has_no_end_marker_may_have_lost_frames():
    frames = [Image.fromarray(NOISE).quantize(16), Image.new("P", (WIDTH, HEIGHT))]
    content = written(frames[0], "GIF", save_all=True, append_images=frames[1:], loop=0)
    first_frame = content[: content.rindex(b"!\xf9")]
    for cut in (content[:-1], first_frame):
        with pytest.raises(UnreadableImage):
            decoded(cut)


def gif(frames, screen=(20, 16)):
    """Return a GIF of `frames`, each (left, top, width, height, disposal)."""
    content = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + b"\xff\0\0\0\0\xff"
    for left, top, width, height, disposal in frames:
        one = written(Image.new("P", (width, height)), "GIF", interlace=0)
        at = one.index(b",", 13 + 3 * 2)
        flags = one[at + 9]
        data = one[at + 10 + (3 << (flags & 7) + 1 if flags & 0x80 else 0) : -1]
        content += b"!\xf9\x04" + bytes([disposal << 2]) + b"\x0a\0\0\0"
        content += b"," + struct.pack("<HHHHB", left, top, width, height, 0) + data
    return content + b";"


def alpha(frame):
    return frame.pixels[..., 3] if frame.mode == "RGBA" else np.full(frame.pixels.shape[:2], 255)


@pytest.mark.parametrize("disposal", [0, 1, 2, 3])
def test_what_no_frame_of_a_gif_covers_is_transparent(disposal):
    content = gif([(2, 3, 8, 6, disposal), (0, 0, 20, 4, 1)])
    first, second = np.zeros((2, 16, 20), bool)
    first[3:9, 2:10] = second[:4] = True
    if disposal in (0, 1):
        second |= first
    picture, output = round_trip(content)
    for frames in (picture.frames, output.frames):
        assert np.array_equal(alpha(frames[0]) > 0, first)
        assert np.array_equal(alpha(frames[1]) > 0, second)


def test_a_gif_whose_first_frame_covers_its_screen_stays_opaque():
    picture = decoded(gif([(0, 0, 20, 16, 1), (2, 3, 8, 6, 1)]))
    assert {frame.mode for frame in picture.frames} == {"RGB"}


# --- BMP

MASKS = {
    "565": (16, (0xF800, 0x7E0, 0x1F)),
    "555": (16, (0x7C00, 0x3E0, 0x1F)),
    "231": (16, (0x60, 0x1C, 0x1)),
    "3103": (16, (0xE000, 0x1FF8, 0x7)),
    "4444": (16, (0xF00, 0xF0, 0xF, 0xF000)),
    "1924": (16, (0xE000, 0x1FF0, 0xF, 0x0)),
    "32": (32, (0xFF0000, 0xFF00, 0xFF)),
    "red last": (32, (0xFF, 0xFF00, 0xFF0000)),
    "shifted": (32, (0xFF000000, 0xFF0000, 0xFF00)),
    "7187": (32, (0xFE000000, 0x01FFFF80, 0x7F)),
    "1010102": (32, (0x3FF00000, 0xFFC00, 0x3FF, 0xC0000000)),
    "61754": (32, (0xFC000000, 0x03FF8000, 0x7C00, 0x3E0)),
    "alpha": (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
    "alpha first": (32, (0xFF000000, 0xFF0000, 0xFF00, 0xFF)),
}


def bmp(values, bits, masks, compression=3, header=108, top_down=False, sizes=None):
    """Return a BMP of the packed `values` [h, w]."""
    height, width = values.shape
    rows = values if top_down else values[::-1]
    row_bytes = (width * bits + 31) // 32 * 4
    data = b"".join(row.astype(f"<u{bits // 8}").tobytes().ljust(row_bytes, b"\0") for row in rows)
    stated_height = -height if top_down else height
    info = struct.pack("<IiiHHI", header, width, stated_height, 1, bits, compression)
    offset = 14 + max(header, 40 + 4 * len(masks))
    file_bytes, data_bytes = sizes or (offset + len(data), len(data))
    info += struct.pack("<IiiII", data_bytes, 0, 0, 0, 0)
    info += struct.pack(f"<{len(masks)}I", *masks)
    file_header = b"BM" + struct.pack("<IHHI", file_bytes, 0, 0, offset)
    return file_header + info.ljust(offset - 14, b"\0") + data


def packed(colours, masks):
    """Return `colours` [h, w, channels], each from 0 to 1, as integers with bit fields."""
    values = np.zeros(colours.shape[:2], np.uint64)
    for channel, mask in enumerate(masks):
        shift = (mask & -mask).bit_length() - 1 if mask else 0
        fields = (colours[..., channel] * (mask >> shift)).round().astype(np.uint64)
        values |= fields << np.uint64(shift)
    return values


@pytest.mark.parametrize("header", [40, 52, 56, 108, 124])
@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_a_bmp_of_any_bit_fields_is_read(name, top_down, header):
    bits, masks = MASKS[name]
    if len(masks) == 4 and header < 56:
        masks = masks[:3]
    y, x = np.mgrid[:13, :17]
    colours = np.stack([x / 16, y / 12, (x + y) / 28, (16 - x) / 16], axis=-1)
    content = bmp(packed(colours, masks), bits, masks, header=header, top_down=top_down)
    picture, output = round_trip(content)
    found = picture.frames[0].pixels
    has_alpha = len(masks) == 4 and masks[3] > 0
    assert picture.frames[0].mode == ("RGBA" if has_alpha else "RGB")
    visible = found[..., 3] > 0 if has_alpha else np.ones((13, 17), bool)
    for channel in range(found.shape[2]):
        depth = masks[channel].bit_count()
        steps = 2**depth - 1
        expected = (colours[..., channel] * steps).round() * 255 / steps
        assert np.abs(found[..., channel] - expected)[visible].max() <= 0.5
    assert np.array_equal(output.frames[0].pixels, found)


def test_a_header_of_40_bytes_may_have_a_mask_of_alpha():
    masks = MASKS["alpha"][1]
    colours = np.full((3, 5, 4), 0.6)
    frame = decoded(bmp(packed(colours, masks), 32, masks, compression=6, header=40)).frames[0]
    assert (frame.pixels == 153).all()
    assert frame.mode == "RGBA"


def test_alpha_that_is_zero_everywhere_is_unused():
    masks = MASKS["alpha"][1]
    colours = np.dstack([np.full((3, 5, 3), 0.6), np.zeros((3, 5))])
    frame = decoded(bmp(packed(colours, masks), 32, masks)).frames[0]
    assert (frame.mode, frame.pixels.min()) == ("RGB", 153)


@pytest.mark.parametrize("sizes", [(0, 0), (1, 1), (10**9, 7), (46, 0)])
@pytest.mark.parametrize("compression", [0, 3])
def test_the_sizes_that_a_bmp_states_do_not_matter(sizes, compression):
    masks = MASKS["32"][1] if compression else ()
    values = packed(np.full((6, 7, 3), 0.6), MASKS["32"][1])
    content = bmp(values, 32, masks, compression, header=40, sizes=sizes)
    assert (pixels(content) == 153).all()
    assert (pixels(content + b"something else") == 153).all()


@pytest.mark.parametrize("compression", [0, 3])
def test_a_bmp_without_its_last_row_is_refused(compression):
    masks = MASKS["32"][1] if compression else ()
    values = packed(np.full((6, 7, 3), 0.6), MASKS["32"][1])
    content = bmp(values, 32, masks, compression, header=40, sizes=(0, 0))
    for lost in (1, 27, 28, 100):
        with pytest.raises(UnreadableImage):
            decoded(content[:-lost])


def test_bit_fields_with_gaps_are_refused():
    masks = (0xF0F000, 0xFF, 0xFF000000)
    with pytest.raises(UnsupportedImage, match="gaps"):
        decoded(bmp(np.zeros((2, 2), np.uint32), 32, masks))


# --- the collection of faults

REFUSED = {
    "gif_bomb_disposal2.gif": ImageTooLarge,
    "raw_with_thumbnail.dng": UnsupportedImage,
}


@pytest.mark.skipif(not CASES.is_dir(), reason="the collection of faults is not on this machine")
def test_each_file_of_the_collection_is_read_or_refused_as_it_should_be():
    seen = 0
    for path in sorted(CASES.iterdir()):
        content = path.read_bytes()
        if name_of(content) is None:
            continue
        seen += 1
        if path.name in REFUSED:
            with pytest.raises(REFUSED[path.name]):
                decoded(content)
            continue
        picture, output = round_trip(content)
        assert (output.width, output.height) == (picture.width, picture.height), path.name
        sizes = (48, 64) if path.name == "tiff_orientation_6_as_byte.tif" else (64, 48)
        assert (picture.width, picture.height) == sizes, path.name
        assert len(picture.frames) == 1
    assert seen >= 20
