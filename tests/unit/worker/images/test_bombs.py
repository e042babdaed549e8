"""Files that demand excessive memory or time are refused by name or decoded within bounds."""

import numpy as np
import pytest

from tasks.errors import ImageTooLarge, UnreadableImage, UnsupportedImage, VeilError
from tests import bombs
from worker import images

MOST = 10**6


def test_bombs_are_the_same_for_the_same_seed():
    assert bombs.make(7) == bombs.make(7)


@pytest.mark.parametrize("seed", range(4))
def test_a_kind_that_is_not_handled_is_named_without_asking_pillow(seed, monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("Pillow was asked")

    content = bombs.icon(np.random.default_rng(seed))
    monkeypatch.setattr("PIL.Image.open", refuse)
    with pytest.raises(UnsupportedImage, match=r"^IC(O|NS) pictures are not handled"):
        images.decode(content, MOST)


def test_a_gif_is_measured_before_pillow_makes_room_for_its_first_frame(monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("Pillow was asked")

    monkeypatch.setattr("PIL.Image.open", refuse)
    content = bombs.gif(
        None, [bombs.gif_frame(np.random.default_rng(1), (0, 0), (65_535, 65_535))], (1, 1)
    )
    with pytest.raises(ImageTooLarge, match="65535 × 65535"):
        images.decode(content, MOST)


def tiff(coding, data, *, width=16, height=16, offsets=(8,), lengths=None, rows=16, more=()):
    lengths = lengths or [len(data)] * len(offsets)
    entries = [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [8]),
        (259, 3, [coding]),
        (262, 3, [1]),
    ]
    entries += [(273, 4, list(offsets)), (277, 3, [1]), (278, 4, [rows]), (279, 4, lengths), *more]
    return bombs.tiff(data, entries)


def test_a_strip_that_unpacks_to_more_than_its_pixels_need_is_refused_at_once():
    with pytest.raises(UnreadableImage, match="more than its pixels need"):
        images.decode(tiff(8, bombs.zeros(64 << 20)), MOST)


def test_strips_that_share_their_data_are_refused_and_a_few_are_not():
    shared = tiff(8, bombs.zeros(16), height=1000, offsets=[8] * 1000, rows=1)
    assert images.decode(shared, MOST).height == 1000
    large = tiff(8, bombs.zeros(1 << 20), height=1000, offsets=[8] * 1000, rows=1)
    with pytest.raises(UnreadableImage, match="same bytes again and again"):
        images.decode(large, MOST)


def test_a_tile_may_be_larger_than_a_small_picture_but_not_beyond_measure():
    for side, error in ((256, None), (30_000, ImageTooLarge)):
        data = bombs.zeros(side * side)
        entries = [
            (256, 4, [16]),
            (257, 4, [16]),
            (258, 3, [8]),
            (259, 3, [8]),
            (262, 3, [1]),
            (277, 3, [1]),
        ]
        entries += [(322, 4, [side]), (323, 4, [side]), (324, 4, [8]), (325, 4, [len(data)])]
        if error is None:
            assert images.decode(bombs.tiff(data, entries), MOST).width == 16
        else:
            with pytest.raises(error, match="tiles of 30000 × 30000"):
                images.decode(bombs.tiff(data, entries), MOST)


def test_a_jpeg_in_a_tiff_is_measured_by_its_own_header():
    with pytest.raises(UnreadableImage, match="20000 × 20000"):
        images.decode(tiff(7, bombs.jpeg_header(20_000)), MOST)


def test_pages_in_a_circle_are_refused():
    content = b"II*\0" + (8).to_bytes(4, "little")
    content += bombs.directory([(256, 4, [1]), (257, 4, [1]), (273, 4, [0])], 8, following=8)
    with pytest.raises(UnreadableImage, match="circle"):
        images.decode(content, MOST)


def test_scans_count_with_the_pixels():
    content = bombs.written("JPEG", (900, 900), progressive=True)
    at = content.rindex(b"\xff\xda")
    many = content[:-2] + content[at:-2] * 30 + content[-2:]
    with pytest.raises(ImageTooLarge, match="scans of 810,000 pixels"):
        images.decode(many, MOST)
    with pytest.raises(VeilError) as caught:  # libjpeg: a scan that adds nothing
        images.decode(many, 10 * MOST)
    assert "scans of" not in str(caught.value)


def test_the_size_in_the_av1_data_counts_whatever_the_boxes_say():
    content = bombs.written("AVIF", (3000, 3000), speed=10)
    at = content.index(b"ispe") + 8
    small = content[:at] + (16).to_bytes(4) * 2 + content[at + 8 :]
    with pytest.raises(ImageTooLarge, match="3000 × 3000"):
        images.decode(small, MOST)


def with_component_style(component, precinct_sides, layers):
    """Return a JPEG 2000 in which one component has a coding style of its own."""
    content = bombs.written("JPEG2000", (570, 570), no_jp2=True)
    at = content.index(b"\xff\x52")  # COD
    end, levels = at + 2 + int.from_bytes(content[at + 2 : at + 4]), content[at + 9]
    # The component, that precincts follow, levels, code blocks, style, wavelet, precincts.
    style = bytes([component, 1]) + content[at + 9 : at + 14] + precinct_sides * (levels + 1)
    marker = b"\xff\x53" + (len(style) + 2).to_bytes(2) + style  # COC
    changed = content[: at + 6] + layers.to_bytes(2) + content[at + 8 : end]
    return changed + marker + content[end:]


@pytest.mark.parametrize("component", range(3))
def test_small_precincts_of_one_component_are_refused(component):
    plain = with_component_style(component, b"\x77", 1)
    assert images.decode(plain, 2 * MOST).width == 570
    with pytest.raises(ImageTooLarge, match="precincts"):
        images.decode(with_component_style(component, b"\x11", 1), 2 * MOST)


def test_the_precincts_of_one_component_count_for_each_layer():
    with pytest.raises(ImageTooLarge, match="packets"):
        images.decode(with_component_style(0, b"\x44", 1000), MOST)


def test_the_codestream_of_a_jpeg_2000_is_not_looked_for_in_other_boxes():
    content = bombs.written("JPEG2000", (3000, 3000), "L")
    decoy = bombs.box(
        b"uuid", bytes(16) + b"\xff\x4f\xff\x51\0\x29\0\0" + (1).to_bytes(4) * 8 + bytes(40)
    )
    at = content.index(b"ihdr") + 4
    small = content[:at] + (16).to_bytes(4) * 2 + content[at + 8 :]
    at = small.index(b"jp2h") - 4
    with pytest.raises(ImageTooLarge, match="3000 × 3000"):
        images.decode(small[:at] + decoy + small[at:], MOST)


def avif_with_places(item, method=b"", version=0, count=4096):
    """Return an AVIF with an iloc box of `count` items, whose fields but the method are `item`."""
    entries = b"".join(
        number.to_bytes(2) + method + bytes(2) + item for number in range(1, count + 1)
    )
    places = bytes([version, 0, 0, 0, 0, 0]) + count.to_bytes(2) + entries
    meta = bombs.box(b"meta", bytes(4) + bombs.box(b"iloc", places))
    size = bombs.box(b"ispe", bytes(4) + (16).to_bytes(4) * 2)
    return bombs.box(b"ftyp", b"avif\0\0\0\0avifmif1") + meta + size


@pytest.mark.parametrize(("method", "version"), [(b"", 0), (b"\0\1", 1)])
def test_items_with_pieces_that_take_no_bytes_are_refused(method, version):
    """Without this, 24 kB would make 268 million pieces."""
    content = avif_with_places(b"\xff\xff", method, version)
    with pytest.raises(UnreadableImage, match="pieces at the same place"):
        images.decode(content, MOST)


def test_items_in_too_many_pieces_are_refused():
    piece = b"\xff\xff" + bytes(65_535)  # A length of one byte.
    places = bytes([0, 0, 0, 0, 0x01, 0]) + (2).to_bytes(2)
    places += b"".join(bytes([0, number, 0, 0]) + piece for number in (1, 2))
    meta = bombs.box(b"meta", bytes(4) + bombs.box(b"iloc", places))
    content = bombs.box(b"ftyp", b"avif\0\0\0\0avifmif1") + meta
    with pytest.raises(ImageTooLarge, match="more than 100,000 pieces"):
        images.decode(content, MOST)
