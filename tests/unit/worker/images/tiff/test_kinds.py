"""Unusual TIFFs are read completely and as libtiff's programs show them, or refused."""

import io
import struct
import subprocess
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

from tasks.errors import ImageTooLarge, UnreadableImage, UnsupportedImage
from worker import images
from worker.images.tiff import camera_raw

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


@pytest.mark.parametrize("first", [True, False])
def test_a_page_that_is_a_thumbnail_is_left_out(first):
    tiff = Tiff()
    pages = [(FULL, {}), (REDUCED, {"width": 16, "height": 12})]
    for mark, shape in pages if first else pages[::-1]:
        tiff.page(mark, **shape)
    assert [frame.width for frame in decoded(tiff.content).frames] == [WIDTH]


def test_a_page_that_is_called_a_thumbnail_and_is_the_largest_is_a_page():
    tiff = Tiff()
    tiff.page(FULL)
    tiff.page(REDUCED, width=WIDTH + 1, height=HEIGHT)
    assert [frame.width for frame in decoded(tiff.content).frames] == [WIDTH, WIDTH + 1]


def test_a_thumbnail_of_a_kind_that_is_not_handled_does_not_cost_the_picture():
    tiff = Tiff()
    tiff.page(FULL)
    entries = [
        (tag, kind, (6,) if tag == 259 else values)
        for tag, kind, values in tiff.picture(width=16, height=12, samples=3, photometric=6)
    ]
    at, _ = tiff.directory([*entries, REDUCED])
    struct.pack_into("<I", tiff.content, tiff.link, at)
    assert len(decoded(tiff.content).frames) == 1


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


# --- kinds that Pillow does not read by itself


def entries_of(tiff, data, *changes, **shape):
    """Return the entries of a page of `data`, with `changes` in place of those of the same tag.

    An entry without values is left out.
    """
    changed = {entry[0]: entry for entry in changes}
    kept = [entry for entry in tiff.picture(data, **shape) if entry[0] not in changed]
    return kept + [entry for entry in changes if entry[2]]


def one_page(data, *changes, order="<", big=False, **shape):
    tiff = Tiff(order, big)
    at, _ = tiff.directory(entries_of(tiff, data, *changes, **shape))
    struct.pack_into(order + ("Q" if big else "I"), tiff.content, tiff.link, at)
    return bytes(tiff.content)


GRAY = RAMP.astype(np.uint8)


@pytest.mark.parametrize("big", [False, True])
def test_a_page_without_the_tag_of_its_compression_is_uncompressed(big):
    content = one_page(GRAY.tobytes(), (259, SHORT, ()), big=big)
    assert np.array_equal(seen(content)[0], RAMP)


@pytest.mark.parametrize("kind", [BYTE, SHORT, LONG])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_of_any_type_turns_the_page(orientation, kind):
    content = one_page(GRAY.tobytes(), (274, kind, (orientation,)))
    expected = Image.fromarray(GRAY)
    exif = expected.getexif()
    exif[0x0112] = orientation
    expected = ImageOps.exif_transpose(expected)
    assert np.array_equal(seen(content)[0], np.asarray(expected))


def planes(count, order, compressed=False):
    """Return a TIFF of 16 bits whose channels are stored one after the other, and its pixels."""
    values = np.random.default_rng(3).integers(0, 1 << 16, (HEIGHT, WIDTH, count), np.uint16)
    tiff = Tiff(order)
    data = [values[..., number].astype(f"{order}u2").tobytes() for number in range(count)]
    if compressed:
        data = [zlib.compress(plane) for plane in data]
    offsets = tuple(tiff.data(plane) for plane in data)
    extra = [(338, SHORT, (2,))] if count == 4 else []
    changes = [
        (258, SHORT, (16,) * count),
        (259, SHORT, (8 if compressed else 1,)),
        (262, SHORT, (2,)),
        (273, LONG, offsets),
        (277, SHORT, (count,)),
        (279, LONG, tuple(map(len, data))),
        (284, SHORT, (2,)),
        *extra,
    ]
    at, _ = tiff.directory(entries_of(tiff, b"", *changes))
    struct.pack_into(order + "I", tiff.content, tiff.link, at)
    return bytes(tiff.content), values


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("count", [3, 4])
def test_planes_of_16_bits_are_read(count, order, compressed):
    content, values = planes(count, order, compressed)
    (frame,) = decoded(content).frames
    if count == 4:
        values[values[..., 3] == 0] = 0
    assert np.array_equal(frame.pixels, values)


def test_planes_of_16_bits_that_are_cut_short_are_refused():
    content, _ = planes(3, "<")
    with pytest.raises(UnreadableImage):
        decoded(content.replace(struct.pack("<HHI", 279, 4, 3), struct.pack("<HHI", 279, 4, 2)))


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2), (4, 2), (4, 4)])
@pytest.mark.parametrize("width", [WIDTH, WIDTH - 3])
def test_uncompressed_ycbcr_is_read_with_its_subsampling(subsampling, width):
    across, down = subsampling
    columns, rows = -(-width // across), -(-HEIGHT // down)
    blocks = np.random.default_rng(5).integers(40, 200, (rows, columns, across * down + 2))
    data = blocks.astype(np.uint8).tobytes()
    shape = {"samples": 3, "photometric": 6, "width": width}
    content = one_page(data, (530, SHORT, subsampling), **shape)
    y, x = np.mgrid[:HEIGHT, :width]
    block = blocks[y // down, x // across]
    luma = np.take_along_axis(block, (y % down * across + x % across)[..., None], -1)[..., 0]
    blue, red = block[..., -2] - 128, block[..., -1] - 128
    green = -0.344136 * blue - 0.714136 * red
    expected = np.stack([luma + 1.402 * red, luma + green, luma + 1.772 * blue], axis=-1)
    found = decoded(content).frames[0].pixels
    assert np.abs(found - expected.clip(0, 255)).max() <= 2
    with pytest.raises(UnreadableImage):
        decoded(one_page(data[:-1], (530, SHORT, subsampling), **shape))


# --- fax

TEXT = np.indices((90, 70)).sum(axis=0) % 23 < 6
TEXT[30:50, 20:60] ^= np.random.default_rng(1).random((20, 40)) < 0.3
FAXES = {
    "group 4": ("group4", {}),
    "group 4 in strips": ("group4", {278: 17}),
    "group 4, white is 0": ("group4", {262: 0}),
    "group 4, lowest bit first": ("group4", {266: 2}),
    "group 3": ("group3", {}),
    "group 3 with fill bits": ("group3", {292: 4}),
    "group 3 in two dimensions": ("group3", {292: 1}),
    "Huffman": ("tiff_ccitt", {}),
}


def fax(name):
    compression, tags = FAXES[name]
    target = io.BytesIO()
    Image.fromarray(TEXT).save(target, "TIFF", compression=compression, tiffinfo=tags)
    return target.getvalue()


@pytest.mark.parametrize("name", FAXES)
def test_a_fax_is_read_and_written_in_black_and_white(name):
    picture = decoded(fax(name))
    (frame,) = picture.frames
    assert np.array_equal(frame.pixels, TEXT * 255)
    masked = frame.pixels.copy()
    masked[10:40, 10:40] = 100
    output = images.encode(picture, [masked])
    with Image.open(io.BytesIO(output)) as image:
        assert (image.mode, image.info["compression"]) == ("1", "group4")
        found = np.asarray(image)
    masked[10:40, 10:40] = 0
    assert np.array_equal(found, masked > 0)


@pytest.mark.parametrize("name", FAXES)
def test_a_damaged_fax_is_refused(name, capfd):
    content = fax(name)
    with Image.open(io.BytesIO(content)) as image:
        start, length = image.tag_v2[273][0], image.tag_v2[279][0]
    for place in range(start + 2, start + length - 12, max(1, length // 40)):
        damaged = bytearray(content)
        damaged[place] ^= 0x14
        try:
            found = decoded(damaged).frames[0].pixels
        except UnreadableImage:
            continue
        # Other code words: a picture that was drawn so could not be told from this one.
        assert (found != TEXT * 255).any()
    cut = content[:start] + content[start : start + length // 2].ljust(length, b"\0")
    with pytest.raises(UnreadableImage):
        decoded(cut + content[start + length :])


def test_a_fax_beside_a_page_in_colour_stays_black_and_white():
    target = io.BytesIO()
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    fax_page = Image.fromarray(TEXT)
    fax_page.save(target, "TIFF", compression="group4")
    with TiffImagePlugin.AppendingTiffWriter(target) as file:
        colour.save(file, "TIFF", compression="tiff_lzw")
    picture = decoded(target.getvalue())
    output = decoded(images.encode(picture, [frame.pixels.copy() for frame in picture.frames]))
    for before, after in zip(picture.frames, output.frames, strict=True):
        assert np.array_equal(before.pixels, after.pixels)
        assert before.mode == after.mode


# --- pages that are compressed and described in different ways

COLOUR = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
OPACITY = np.full((20, 30, 1), 128, np.uint8)
RGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def paged(*pages):
    """Return a TIFF of pages, each of pixels and Pillow's options."""
    target = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(target) as file:
        for pixels, options in pages:
            Image.fromarray(pixels).save(file, "TIFF", **options)
            file.newFrame()
    return target.getvalue()


def written_again(content):
    """Return the frames of a TIFF before and after writing, and what Pillow says of the latter."""
    picture = decoded(content)
    output = images.encode(picture, [frame.pixels.copy() for frame in picture.frames])
    described = []
    for number in range(len(picture.frames)):
        with Image.open(io.BytesIO(output)) as image:
            image.seek(number)
            tags = image.tag_v2
            described.append((image.info["compression"], tags.get(282), tags.get(34675)))
    return picture.frames, decoded(output).frames, described


def test_each_page_keeps_its_compression():
    before, after, described = written_again(
        paged(
            (COLOUR, {"compression": "jpeg"}),
            (TEXT, {"compression": "group4"}),
            (np.dstack([COLOUR, OPACITY]), {"compression": "tiff_lzw"}),
            (COLOUR, {"compression": "packbits"}),
        )
    )
    assert [one[0] for one in described] == ["jpeg", "group4", "tiff_lzw", "packbits"]
    for one, other in zip(before[1:], after[1:], strict=True):
        assert one.mode == other.mode
        assert np.array_equal(one.pixels, other.pixels)


@pytest.mark.parametrize("is_deep", [False, True])
def test_each_page_keeps_its_profile_and_its_density(is_deep):
    lossless = {"compression": "tiff_lzw"}
    deep_page = [(COLOUR[..., 0].astype(np.uint16) * 257, {})] * is_deep
    _, _, described = written_again(
        paged(
            (COLOUR, lossless),
            (COLOUR, {"dpi": (300, 300), "icc_profile": RGB, **lossless}),
            (COLOUR[..., 0].copy(), lossless),
            (COLOUR, {"dpi": (72, 72), **lossless}),
            *deep_page,
        )
    )
    expected = [(None, None), (300, RGB), (None, None), (72, None)]
    assert [one[1:] for one in described[:4]] == expected


def test_a_thumbnail_before_the_first_page_decides_nothing():
    thumbnail = {"compression": "jpeg", "dpi": (10, 10), "tiffinfo": {254: 1}, "icc_profile": RGB}
    before, after, described = written_again(
        paged((COLOUR[:4, :6].copy(), thumbnail), (COLOUR, {"compression": "tiff_lzw"}))
    )
    assert described == [("tiff_lzw", None, None)]
    assert np.array_equal(before[0].pixels, after[0].pixels)


# --- old-style JPEG


def old_jpeg(jpeg, size=(WIDTH, HEIGHT), whole=True):
    tiff = Tiff()
    place = tiff.data(jpeg)
    reference = [(513, LONG, (place,)), (514, LONG, (len(jpeg),))] if whole else []
    changes = [(259, SHORT, (6,)), (273, LONG, (place,)), (279, LONG, (len(jpeg),)), *reference]
    shape = {"width": size[0], "height": size[1], "samples": 3, "photometric": 6}
    at, _ = tiff.directory(entries_of(tiff, b"", *changes, **shape))
    struct.pack_into("<I", tiff.content, tiff.link, at)
    return bytes(tiff.content)


def jpeg_of(mode="RGB"):
    target = io.BytesIO()
    Image.fromarray(GRAY).convert(mode).save(target, "JPEG")
    return target.getvalue()


def test_old_style_jpeg_is_read_and_written_without_loss():
    picture = decoded(old_jpeg(jpeg_of()))
    (frame,) = picture.frames
    assert np.abs(frame.pixels[..., 0] - RAMP).max() < 12
    output = images.encode(picture, [frame.pixels.copy()])
    assert np.array_equal(decoded(output).frames[0].pixels, frame.pixels)


def test_old_style_jpeg_that_is_damaged_or_no_whole_jpeg_is_refused():
    jpeg = jpeg_of()
    with pytest.raises(UnreadableImage):
        decoded(old_jpeg(jpeg[:-40] + jpeg[-2:]))
    with pytest.raises(UnsupportedImage, match="another size"):
        decoded(old_jpeg(jpeg, (WIDTH - 1, HEIGHT)))
    with pytest.raises(UnsupportedImage, match="old-style"):
        decoded(old_jpeg(jpeg, whole=False))
