"""Unusual TIFFs are read completely and as libtiff's programs show them, or refused."""

import io
import struct
import subprocess

import cv2
import numpy as np
import pytest
from PIL import Image

from tasks.errors import ImageTooLarge, UnreadableImage, UnsupportedImage
from worker import images
from worker.images import camera_raw

MANY = 10**6
HEIGHT, WIDTH = 24, 40
RAMP = np.tile(np.arange(WIDTH) * 255 // (WIDTH - 1), (HEIGHT, 1))
LONG, SHORT, BYTE, IFD, LONG8 = 4, 3, 1, 13, 16
LETTERS = {BYTE: "B", SHORT: "H", LONG: "I", IFD: "I", LONG8: "Q"}


class Tiff:
    """A TIFF that is assembled entry by entry."""

    def __init__(self, order="<", big=False):
        self.order, self.big = order, big
        mark = b"II" if order == "<" else b"MM"
        head = struct.pack(order + "HHHQ", 43, 8, 0, 0) if big else struct.pack(order + "HI", 42, 0)
        self.content = bytearray(mark + head)
        self.link = 8 if big else 4

    def data(self, content):
        at = len(self.content)
        self.content += content + bytes(len(content) % 2)
        return at

    def directory(self, entries):
        """Append a directory of (tag, type, values).

        Returns its offset, and where the offset of the next directory belongs.
        """
        code, place = ("Q", 8) if self.big else ("I", 4)
        fields = b""
        for tag, kind, values in sorted(entries):
            value = struct.pack(f"{self.order}{len(values)}{LETTERS[kind]}", *values)
            if len(value) > place:
                value = struct.pack(self.order + code, self.data(value))
            fields += struct.pack(f"{self.order}HH{code}", tag, kind, len(values)) + value.ljust(
                place, b"\0"
            )
        at = self.data(
            struct.pack(self.order + ("Q" if self.big else "H"), len(entries))
            + fields
            + bytes(place)
        )
        return at, at + (8 if self.big else 2) + len(fields)

    def page(self, *more, **shape):
        """Append a page to the chain."""
        at, link = self.directory([*self.picture(**shape), *more])
        struct.pack_into(self.order + ("Q" if self.big else "I"), self.content, self.link, at)
        self.link = link

    def below(self, *more, **shape):
        """Append a directory that is in no chain, and return its offset."""
        return self.directory([*self.picture(**shape), *more])[0]

    def picture(
        self, data=None, width=WIDTH, height=HEIGHT, bits=8, samples=1, photometric=1, fill=1
    ):
        data = bytes(width * height * samples * bits // 8) if data is None else data
        return [
            (256, LONG, (width,)),
            (257, LONG, (height,)),
            (258, SHORT, (bits,) * samples),
            (259, SHORT, (1,)),
            (262, SHORT, (photometric,)),
            (266, SHORT, (fill,)),
            (273, LONG, (self.data(data),)),
            (277, SHORT, (samples,)),
            (278, LONG, (height,)),
            (279, LONG, (len(data),)),
        ]


def packed(values, bits, order="<"):
    """Return `values` [h, w], each in `bits` bits, as rows padded to whole bytes."""
    if bits == 16:
        return values.astype(f"{order}u2").tobytes()
    rows = ["".join(format(value, f"0{bits}b") for value in row) for row in values.tolist()]
    rows = [row + "0" * (-len(row) % 8) for row in rows]
    return b"".join(int(row, 2).to_bytes(len(row) // 8) for row in rows)


def decoded(content):
    return images.decode(bytes(content), MANY)


def seen(content):
    """Return the detector's view of each page, gray."""
    return [next(frame.views())[..., 0].astype(int) for frame in decoded(content).frames]


def magick(content, system_program):
    """Return a gray or palette page as ImageMagick shows it, RGB."""
    done = subprocess.run(
        [system_program("convert"), "tiff:-", "-depth", "8", "rgb:-"],
        input=bytes(content),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return np.frombuffer(done.stdout, np.uint8).reshape(HEIGHT, WIDTH, 3).astype(int)


# --- camera raws

REDUCED = (254, LONG, (1,))
FULL = (254, LONG, (0,))
MOSAIC = {"bits": 16, "photometric": 32803}
DNG_VERSION = (50706, BYTE, (1, 4, 0, 0))


def raw(order="<", big=False, kind=LONG, preview=(REDUCED,), **shape):
    """Return a raw as cameras write it: a page with a small preview, and the picture below it."""
    tiff = Tiff(order, big)
    tiff.data(bytes(8))
    sub = tiff.below(FULL, width=400, height=300, **(MOSAIC | shape))
    tiff.page(*preview, (330, kind, (sub,)), width=16, height=12, samples=3, photometric=2)
    return tiff.content


def chained(order="<"):
    """Return a raw whose preview and mosaic are pages of one chain."""
    tiff = Tiff(order)
    tiff.page(REDUCED, width=16, height=12)
    tiff.page(FULL, width=400, height=300, **MOSAIC)
    return tiff.content


def marked(*more):
    tiff = Tiff()
    tiff.page(*more)
    return tiff.content


RAWS = {
    "NEF": raw(),
    "big-endian": raw(">"),
    "BigTIFF": raw(big=True, kind=LONG8),
    "SubIFDs of the type IFD": raw(kind=IFD),
    "rendered": raw(photometric=2, samples=3, bits=8),
    "linear": raw(photometric=34892, samples=3),
    "preview that is not said to be one": raw(preview=()),
    "old subfile type": raw(preview=((255, SHORT, (2,)),)),
    "chain": chained(),
    "chain, big-endian": chained(">"),
    "mosaic alone": Tiff().content,
    "DNG": marked(DNG_VERSION),
    "linear page": Tiff().content,
    "mosaic tags": marked((33421, SHORT, (2, 2)), (33422, BYTE, (0, 1, 1, 2))),
    "only a preview": marked(REDUCED),
    "a JPEG beside the page": marked((513, LONG, (8,)), (514, LONG, (100,))),
    "CR2": b"II*\0\x10\0\0\0CR\x02\0" + bytes(100),
    "IIQ": b"II*\0\x10\0\0\0IIII" + bytes(100),
    "RW2": b"IIU\0\x08\0\0\0" + bytes(100),
    "ORF": b"IIRO\x08\0\0\0" + bytes(100),
    "ORF, big-endian": b"MMOR\0\0\0\x08" + bytes(100),
    "RAF": b"FUJIFILMCCD-RAW 0201" + bytes(100),
    "X3F": b"FOVb" + bytes(100),
    "MRW": b"\0MRM" + bytes(100),
    "CRW": b"II\x1a\0\0\0HEAPCCDR" + bytes(100),
    "CR3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(100),
}
for name, photometric in (("mosaic alone", 32803), ("linear page", 34892)):
    alone = Tiff()
    alone.page(bits=16, photometric=photometric)
    RAWS[name] = alone.content


@pytest.mark.parametrize("content", RAWS.values(), ids=RAWS)
def test_a_camera_raw_is_refused_by_name(content):
    with pytest.raises(UnsupportedImage, match="camera raws"):
        decoded(content)


def test_a_picture_below_a_picture_below_a_page_is_found():
    tiff = Tiff()
    inner = tiff.below(FULL, width=400, height=300)
    outer = tiff.below(REDUCED, (330, LONG, (inner,)), width=16, height=12)
    tiff.page((330, LONG, (outer,)), width=16, height=12)
    with pytest.raises(UnsupportedImage, match="camera raws"):
        decoded(tiff.content)


def test_a_later_page_with_a_larger_picture_below_it_is_refused():
    tiff = Tiff()
    sub = tiff.below(REDUCED, width=400, height=300)
    tiff.page()
    tiff.page((330, LONG, (sub,)), width=16, height=12)
    with pytest.raises(UnsupportedImage, match="camera raws"):
        decoded(tiff.content)


@pytest.mark.parametrize("place", [0xFFFFFF, 10**9])
def test_a_raw_that_is_cut_short_is_no_thumbnail(place):
    tiff = Tiff()
    tiff.page((330, LONG, (place,)), width=16, height=12)
    with pytest.raises(UnreadableImage, match="cut short"):
        decoded(tiff.content)


@pytest.mark.parametrize("order", "<>")
def test_smaller_versions_below_a_page_are_left_out(order):
    tiff = Tiff(order)
    half = tiff.below(REDUCED, width=WIDTH // 2, height=HEIGHT // 2)
    quarter = tiff.below(REDUCED, width=WIDTH // 4, height=HEIGHT // 4)
    tiff.page((330, LONG, (half, quarter)))
    picture = decoded(tiff.content)
    assert (picture.width, picture.height, len(picture.frames)) == (WIDTH, HEIGHT, 1)


def test_previews_after_the_picture_are_pages():
    tiff = Tiff()
    tiff.page(FULL)
    tiff.page(REDUCED, width=16, height=12)
    assert [frame.width for frame in decoded(tiff.content).frames] == [WIDTH, 16]


def test_directories_that_lie_over_each_other_are_refused():
    """Without the limit, reading a small file would take minutes."""
    tiff = Tiff()
    many = [tiff.below(FULL) for _ in range(3)]
    shared = tiff.data(struct.pack("<20000I", *many * 6666, 0, 0))
    at, link = tiff.directory(tiff.picture())
    struct.pack_into("<I", tiff.content, 4, at)
    for _ in range(20):
        at = tiff.data(struct.pack("<HHHII", 1, 330, LONG, 20_000, shared) + bytes(4))
        struct.pack_into("<I", tiff.content, link, at)
        link = at + 14
    with pytest.raises(UnreadableImage, match="overlap"):
        camera_raw.check(bytes(tiff.content))


def test_a_chain_of_many_small_directories_is_not_walked_to_its_end():
    links = np.zeros((1_000_000, 18), np.uint8)
    links[:, :14] = np.frombuffer(struct.pack("<HHHII", 1, 254, LONG, 1, 0), np.uint8)
    following = 8 + 18 * np.arange(1, len(links) + 1, dtype="<u4")
    links[:, 14:] = following[:, None].view(np.uint8)
    content = b"II*\0\x08\0\0\0" + links.tobytes()
    with pytest.raises(ImageTooLarge, match="pages"):
        decoded(content)


# --- palettes of 8 bits


def palette(bits):
    """Return the colours of a map of `bits`, [3, n]."""
    steps = np.arange(1 << bits) * 255 // ((1 << bits) - 1)
    return np.stack([steps, 255 - steps, (steps * 7) % 256])


def with_palette(bits, factor, order="<"):
    tiff = Tiff(order)
    numbers = RAMP * ((1 << bits) - 1) // 255
    colours = tuple((palette(bits) * factor).ravel().tolist())
    tiff.page((320, SHORT, colours), data=packed(numbers, bits), bits=bits, photometric=3)
    return tiff.content, np.moveaxis(palette(bits)[:, numbers], 0, -1)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("factor", [1, 256, 257])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_palette_is_read_as_libtiff_reads_it(bits, factor, order, system_program):
    content, colours = with_palette(bits, factor, order)
    (frame,) = decoded(content).frames
    assert np.array_equal(frame.pixels, colours)
    assert np.abs(magick(content, system_program) - colours).max() <= 1
    other = cv2.imdecode(np.frombuffer(bytes(content), np.uint8), cv2.IMREAD_COLOR)
    # OpenCV does not read 2 bits.
    assert other is None or np.array_equal(other[..., ::-1], colours)


def test_each_page_has_a_palette_of_its_own():
    tiff, expected = Tiff(), []
    for factor in (257, 1, 256):
        colours = tuple((palette(8) * factor).ravel().tolist())
        tiff.page((320, SHORT, colours), data=packed(RAMP, 8), photometric=3)
        expected.append(np.moveaxis(palette(8)[:, RAMP], 0, -1))
    frames = decoded(tiff.content).frames
    assert all(
        np.array_equal(frame.pixels, colours)
        for frame, colours in zip(frames, expected, strict=True)
    )


def test_a_palette_with_alpha_is_read_alike():
    tiff = Tiff()
    data = np.stack([RAMP, np.full_like(RAMP, 255)], axis=-1).reshape(HEIGHT, -1)
    colours = (320, SHORT, tuple(palette(8).ravel().tolist()))
    tiff.page(colours, (338, SHORT, (2,)), data=packed(data, 8), samples=2, photometric=3)
    (frame,) = decoded(tiff.content).frames
    assert np.array_equal(frame.pixels[..., :3], np.moveaxis(palette(8)[:, RAMP], 0, -1))


def test_a_palette_without_all_colours_is_refused():
    tiff = Tiff()
    tiff.page((320, SHORT, tuple(range(300))), data=packed(RAMP, 8), photometric=3)
    with pytest.raises(UnreadableImage, match="palette"):
        decoded(tiff.content)


# --- gray


UNKNOWN_TO_PILLOW = [(12, 0, "<"), (12, 0, ">"), (12, 1, ">"), (16, 0, ">")]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_gray_is_no_negative_and_not_darkened(bits, photometric, order, system_program):
    most = (1 << bits) - 1
    values = (RAMP * most / 255).round().astype(int)
    tiff = Tiff(order)
    stored = values if photometric else most - values
    tiff.page(data=packed(stored, bits, order), bits=bits, photometric=photometric)
    shown = values * 255 / most
    if bits in (1, 8, 16):  # ImageMagick shows others with white at 0 as negatives
        assert np.abs(magick(tiff.content, system_program)[..., 0] - shown).max() <= 1
    if (bits, photometric, order) in UNKNOWN_TO_PILLOW:
        with pytest.raises(UnsupportedImage, match="PhotometricInterpretation"):
            decoded(tiff.content)
        return
    picture = decoded(tiff.content)
    assert np.abs(next(picture.frames[0].views())[..., 0] - shown).max() <= 1
    output = images.encode(picture, [picture.frames[0].pixels.copy()])
    assert np.abs(magick(output, system_program)[..., 0] - shown).max() <= 1


def test_pages_of_both_kinds_of_gray():
    tiff = Tiff()
    for photometric in (0, 1, 0):
        stored = RAMP * 257 if photometric else 65535 - RAMP * 257
        tiff.page(data=packed(stored, 16), bits=16, photometric=photometric)
    assert all(np.array_equal(page, RAMP) for page in seen(tiff.content))


def test_signed_numbers_are_refused():
    tiff = Tiff()
    tiff.page((339, SHORT, (2,)))
    with pytest.raises(UnsupportedImage, match="signed"):
        decoded(tiff.content)


def test_a_cmyk_page_beside_one_of_16_bits_stays_cmyk():
    inks = np.stack([RAMP, 255 - RAMP, RAMP // 2, RAMP // 4], axis=-1).astype(np.uint8)
    tiff = Tiff()
    tiff.page(data=inks.tobytes(), samples=4, photometric=5)
    tiff.page(data=packed(RAMP * 257, 16), bits=16)
    picture = decoded(tiff.content)
    output = images.encode(picture, [frame.pixels.copy() for frame in picture.frames])
    assert [frame.mode for frame in decoded(output).frames] == ["CMYK", "I;16"]
    with Image.open(io.BytesIO(output)) as image:
        assert image.mode == "CMYK"
        assert np.array_equal(np.asarray(image), inks)
