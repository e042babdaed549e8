"""Small files that make a decoder spend far more memory or time than their size suggests.

Their structure is valid. Each function in KINDS returns one such file for a random generator: with
sizes that are too large or too small, shared data, chains, large counts, nested containers, or
metadata that unpacks to far more.
"""

import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image

SIDES = (9_000, 20_000, 30_000, 60_000)
COUNTS = (5_000, 20_000, 60_000)


def pick(rng, values):
    """Return one of `values` at random."""
    return values[int(rng.integers(len(values)))]


@functools.cache
def written(form, size=(16, 16), mode="RGB", **options):
    target = io.BytesIO()
    Image.new(mode, size).save(target, form, **options)
    return target.getvalue()


@functools.cache
def zeros(count):
    """Return `count` zeros, compressed with Deflate."""
    packer = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    mebibyte = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = packer.compress(bytes(count & (1 << 20) - 1)) + packer.flush()
    checksum = (count % 65_521) << 16 | 1  # Adler-32 of zeros
    return b"\x78\x01" + mebibyte * (count >> 20) + rest + checksum.to_bytes(4)


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width, height, *chunks, bits=8, colours=0):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def png_large(rng):
    side = pick(rng, SIDES)
    width, height = pick(
        rng, [(side, side), (side * 1000, 60), (60, side * 1000), (0x7FFFFFFF, 0x7FFFFFFF)]
    )
    return png(width, height, chunk(b"IDAT", zeros(1 << 20)), bits=pick(rng, [1, 8, 16]))


def png_long_data(rng):
    return png(
        16,
        16,
        chunk(b"IDAT", zeros(int(rng.integers(8, 64)) << 20)),
        bits=pick(rng, [1, 8, 16]),
    )


def png_text(rng):
    packed = zeros(pick(rng, [900_000, 1 << 20, 32 << 20]))
    kinds = {
        b"zTXt": b"Raw profile type exif\0\0" + packed,
        b"iTXt": b"XML:com.adobe.xmp\0\1\0\0\0" + packed,
        b"iCCP": b"profile\0\0" + packed,
    }
    name = pick(rng, list(kinds))
    many = int(rng.integers(1, 90))
    return png(16, 16, *[chunk(name, kinds[name])] * many, chunk(b"IDAT", zeros(17 * 16)))


def png_frames(rng):
    side, count = pick(rng, [16, 900]), pick(rng, [400, 5000, 0x7FFFFFFF])
    control = struct.pack(">IIIIIHHBB", 0, side, side, 0, 0, 1, 10, pick(rng, [0, 1, 2]), 0)
    frames = [
        chunk(b"acTL", struct.pack(">II", count, 0)),
        chunk(b"fcTL", control),
        chunk(b"IDAT", zeros(side * (side + 1))),
    ]
    for number in range(1, min(count, 2000) * 2, 2):
        frames.append(chunk(b"fcTL", struct.pack(">I", number) + control[4:]))
        frames.append(chunk(b"fdAT", struct.pack(">I", number + 1) + zeros(side * (side + 1))[:64]))
    return png(side, side, *frames)


def png_chunks(rng):
    return png(16, 16, chunk(pick(rng, [b"abCd", b"IDAT", b"tEXt"]), b"a\0b") * 300_000)


def gif(rng, frames, screen):
    head = b"GIF89a" + struct.pack("<HH", *screen) + b"\x80\0\0" + bytes(6)
    return head + b"".join(frames) + b";"


def gif_frame(rng, place, size):
    control = b"!\xf9\x04" + bytes([pick(rng, [0, 4, 8, 12])]) + b"\x0a\0\0\0"
    return control + b"," + struct.pack("<HHHH", *place, *size) + b"\0\x02\x02D\x01\0"


def gif_large(rng):
    side = pick(rng, [*SIDES, 65_535])
    screen = pick(rng, [(side, side), (1, 1)])
    place = pick(rng, [(0, 0), (side, side)])
    return gif(
        rng,
        [gif_frame(rng, (0, 0), (1, 1))] * pick(rng, [0, 1])
        + [gif_frame(rng, place, (side, side))],
        screen,
    )


def gif_many(rng):
    side = pick(rng, [1, 900])
    return gif(rng, [gif_frame(rng, (0, 0), (side, side))] * pick(rng, COUNTS), (side, side))


def gif_blocks(rng):
    name = pick(rng, [b"!\xfe", b"!\xff\x0bXMP DataXMP", b"!\x01"])
    block = pick(rng, [b"\1a" * 1_200_000, (b"\xff" + b"a" * 255) * 20_000])
    return gif(rng, [name + block + b"\0", gif_frame(rng, (0, 0), (1, 1))], (1, 1))


def bmp(rng):
    side = pick(rng, SIDES)
    width, height = pick(
        rng,
        [(side, side), (side, -side), (-side, side), (16, 16), (0x7FFFFFFF, 1), (1, -0x80000000)],
    )
    bits, coding = pick(rng, [(24, 0), (8, 1), (4, 2), (1, 0), (32, 3)])
    data = pick(rng, [b"\0\0" * 300_000, b"\0\2\xff\xff" * 50_000, b"\xff\1" * 50_000, bytes(1024)])
    colours = pick(rng, [0, 2, 256, 0xFFFFFFFF])
    header = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, coding, len(data), 0, 0, colours, 0
    )
    body = header + bytes(1024) + data
    return b"BM" + struct.pack("<IHHI", 14 + len(body), 0, 0, 14 + 40 + 1024) + body


def riff(*chunks):
    body = b"WEBP" + b"".join(
        name + struct.pack("<I", len(part)) + part + bytes(len(part) % 2) for name, part in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp(rng):
    side = pick(rng, [16, 700, 16_000])
    wide = (side - 1).to_bytes(3, "little")
    plain = written("WEBP", (16, 16), lossless=True)[12:]
    frame = (b"ANMF", bytes(6) + wide * 2 + bytes(4) + plain)
    canvas = (b"VP8X", b"\x02\0\0\0" + pick(rng, [wide, b"\xff\xff\xff", b"\x0f\0\0"]) * 2)
    chunks = [canvas, (b"ANIM", bytes(6)), *[frame] * pick(rng, [1, 400, 5000])]
    more = pick(rng, [[], [(b"ICCP", bytes(1 << 20))], [(b"XMP ", b"a")] * 300_000])
    lossless = (b"VP8L", b"\x2f" + struct.pack("<I", side - 1 | (side - 1) << 14) + bytes(64))
    return riff(*pick(rng, [chunks + more, [lossless]]))


def directory(entries, at, big=False, following=0):
    """Return a little-endian TIFF directory for the offset `at`, followed by its values.

    `entries` are tags, types, and numbers or bytes. The next directory is at `following`.
    """
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 7: 1, 16: 8}
    inline, offset_format = (8, "<Q") if big else (4, "<I")
    values_offset = at + (16 + 20 * len(entries) if big else 6 + 12 * len(entries))
    fields, values = b"", b""
    for tag, kind, numbers in entries:
        value = numbers
        if not isinstance(numbers, bytes):
            value = np.array(numbers, f"<u{sizes[kind]}").tobytes()
        count = len(value) // sizes[kind]
        if len(value) > inline:
            offset = struct.pack(offset_format, values_offset + len(values))
            values += value + bytes(len(value) % 2)
            value = offset
        header = struct.pack("<HHQ" if big else "<HHI", tag, kind, count)
        fields += header + value.ljust(inline, b"\0")
    entry_count = struct.pack("<Q" if big else "<H", len(entries))
    return entry_count + fields + struct.pack(offset_format, following) + values


def tiff(data, entries, big=False):
    """Return a TIFF of one directory after `data`, which begins at 8, or 16 in a BigTIFF."""
    data += bytes(len(data) % 2)
    if big:
        header = b"II+\0\x08\0\0\0" + struct.pack("<Q", 16 + len(data))
    else:
        header = b"II*\0" + struct.pack("<I", 8 + len(data))
    return header + data + directory(entries, len(header) + len(data), big)


def packed(rng, count):
    """Return the number of a TIFF compression, and data that unpacks to about `count` bytes."""
    name = pick(rng, ["deflate", "packbits", "lzw"])
    if name == "deflate":
        return 8, zeros(count)
    if name == "packbits":
        return 32773, b"\x81\0" * min(count // 128, 1 << 19)
    return 5, lzw_zeros(min(count, 32 << 20))


@functools.cache
def lzw_zeros(count):
    """Return zeros, compressed with TIFF's LZW: each code is one byte longer than the last."""
    codes, width, following, total, length = [(256, 9)], 9, 258, 0, 1
    codes.append((0, 9))
    while total < count:
        if following >= 4093:
            codes.append((256, width))
            width, following, length = 9, 258, 1
            codes.append((0, 9))
        codes.append((following, width))
        length, following, total = length + 1, following + 1, total + length
        width = 9 + sum(following >= step - 1 for step in (512, 1024, 2048))
    codes.append((257, width))
    text = "".join(f"{code:0{bits}b}" for code, bits in codes)
    size = -(-len(text) // 8)
    return int(text.ljust(8 * size, "0"), 2).to_bytes(size)


def tiff_tile(rng):
    side, (coding, data) = pick(rng, SIDES), packed(rng, 64 << 20)
    width, height = pick(rng, [(side, side), (side, 16), (16, side * 50), (1 << 31, 16)])
    picture = pick(rng, [(16, 16), (1, 1), (900, 900)])
    big = bool(rng.integers(2))
    entries = [
        (256, 4, [picture[0]]),
        (257, 4, [picture[1]]),
        (258, 3, [8]),
        (259, 3, [coding]),
        (262, 3, [1]),
    ]
    entries += [
        (277, 3, [1]),
        (322, 4, [width]),
        (323, 4, [height]),
        (324, 4, [16 if big else 8]),
        (325, 4, [len(data)]),
    ]
    return tiff(data, entries, big)


def tiff_strips(rng):
    count, rows = pick(rng, [1, 40, 2000, 60_000]), pick(rng, [1, 8, 0xFFFFFFFF])
    coding, data = packed(rng, pick(rng, [1 << 20, 32 << 20]))
    big = bool(rng.integers(2))
    lengths = pick(rng, [[len(data)] * count, [len(data) // count + 1] * count, [1] * count])
    entries = [
        (256, 4, [pick(rng, [1, 16, 30_000])]),
        (257, 4, [pick(rng, [1, 16, count])]),
        (258, 3, [8]),
    ]
    entries += [
        (259, 3, [coding]),
        (262, 3, [1]),
        (273, 4, [16 if big else 8] * count),
        (277, 3, [1]),
        (278, 4, [rows]),
    ]
    return tiff(data, [*entries, (279, 4, lengths)], big)


def tiff_jpeg(rng):
    side = pick(rng, [3000, 8000])
    data = written("JPEG", (side, side), "L") if rng.integers(2) else jpeg_header(pick(rng, SIDES))
    entries = [
        (256, 4, [16]),
        (257, 4, [16]),
        (258, 3, [8]),
        (259, 3, [7]),
        (262, 3, [1]),
        (273, 4, [8]),
    ]
    return tiff(data, [*entries, (277, 3, [1]), (278, 4, [16]), (279, 4, [len(data)])])


def tiff_pages(rng):
    count, size = pick(rng, COUNTS), 2 + 36 + 4
    last = pick(rng, [0, 8, 8 + 42, 0xFFFFFFF0])
    if rng.integers(2):
        count = int(rng.integers(1, 400))
    parts = [b"II*\0" + struct.pack("<I", 8)]
    for number in range(count):
        following = 8 + (number + 1) * size if number + 1 < count else last
        parts.append(
            directory([(256, 4, [1]), (257, 4, [1]), (273, 4, [0])], 8, following=following)
        )
    return b"".join(parts)


def tiff_counts(rng):
    tag, kind = (
        pick(rng, [258, 259, 273, 279, 320, 338, 339, 330, 347, 700, 34665, 34675, 50706]),
        pick(rng, [1, 3, 4]),
    )
    count = pick(rng, [100_000, 1_000_000])
    entries = {
        256: (256, 4, [16]),
        257: (257, 4, [16]),
        258: (258, 3, [8]),
        259: (259, 3, [1]),
        262: (262, 3, [1]),
    }
    entries |= {273: (273, 4, [8]), 277: (277, 3, [1]), 279: (279, 4, [256])}
    entries[tag] = (tag, kind, bytes(count * {1: 1, 3: 2, 4: 4}[kind]))
    many = pick(rng, [0, 5000])
    more = [(40_000 + number, 1, bytes(4)) for number in range(many)]
    return tiff(bytes(256), [entries[key] for key in sorted(entries)] + more)


def jpeg_header(side):
    content = written("JPEG", (16, 16))
    at = content.index(b"\xff\xc0")
    return (
        content[: at + 5]
        + struct.pack(">HH", min(side, 65_500), min(side, 65_500))
        + content[at + 9 :]
    )


def jpeg_segments(rng):
    content = written("JPEG", (16, 16))
    at = pick(rng, [2, content.index(b"\xff\xc0")])
    segment = pick(
        rng,
        [
            b"\xff\xdd\0\4\0\0" * 200_000,
            b"\xff\xfe\0\2" * 500_000,
            b"\xff" * 2_000_000,
            b"\xff\xe1" + (60_002).to_bytes(2) + b"Exif\0\0MM\0*" + bytes(59_990),
            (b"\xff\xe2" + (60_002).to_bytes(2) + b"ICC_PROFILE\0\1\xff" + bytes(59_986)) * 80,
            (b"\xff\xe1" + (60_002).to_bytes(2) + b"Exif\0\0" + bytes(59_994)) * 80,
        ],
    )
    return content[:at] + segment + content[at:]


def jpeg_scans(rng):
    content = written("JPEG", (pick(rng, [16, 2000]), 900), progressive=True)
    at = content.index(b"\xff\xda")
    end = content.index(b"\xff", at + 20)
    return content[:-2] + content[at:end] * pick(rng, [10, 60, 5000]) + content[-2:]


def jpeg_large(rng):
    content = jpeg_header(pick(rng, SIDES))
    return content.replace(b"\xff\xc0", pick(rng, [b"\xff\xc0", b"\xff\xc2"]))


def jpeg_restarts(rng):
    content = written("JPEG", (16, 16))
    more = pick(rng, [b"\xff\xd0" * 500_000, b"\xff\0" * 500_000, b"\xff" * 1_000_000])
    return content[:-2] + more + content[-2:]


def jpeg_many_pictures(rng):
    """Return a JPEG whose directory of further pictures claims very many entries."""
    content = written("JPEG", (16, 16))
    entries = [
        (0xB000, 7, b"0100"),
        (0xB001, 4, [pick(rng, [2, 1_000_000])]),
        (0xB002, 7, bytes(32_000)),
    ]
    body = b"MPF\0II*\0\x08\0\0\0" + directory(entries, 8)
    return content[:2] + b"\xff\xe2" + (len(body) + 2).to_bytes(2) + body + content[2:]


def box(name, body):
    return struct.pack(">I", len(body) + 8) + name + body


def avif(rng):
    real = pick(rng, [written("AVIF", (16, 16)), written("AVIF", (3000, 3000), speed=10)])
    kind = int(rng.integers(5))
    at = real.index(b"ispe") + 8
    if kind == 0:
        return real[:at] + struct.pack(">II", *[pick(rng, [1, 16, *SIDES])] * 2) + real[at + 8 :]
    if kind == 1:
        return real + box(b"free", b"") * 200_000
    if kind == 2:
        return real + box(
            b"meta", bytes(4) + box(b"idat", b"\0\1\xff\xff" + struct.pack(">II", 60_000, 60_000))
        )
    if kind == 3:
        table = box(b"stsz", bytes(4) + struct.pack(">II", 1, pick(rng, [5000, 0x7FFFFFFF])))
        return real + box(
            b"moov",
            box(b"trak", box(b"mdia", box(b"minf", box(b"stbl", table + box(b"stco", bytes(8)))))),
        )
    nested = b""
    for _ in range(20_000):
        nested = (
            struct.pack(">I", len(nested) + 8) + b"trak" + nested
            if len(nested) < 100_000
            else nested
        )
    return real + nested


def jpeg2000(rng):
    real = bytearray(
        written("JPEG2000", (560, 560), pick(rng, ["L", "RGB"]), no_jp2=bool(rng.integers(2)))
    )
    siz = real.index(b"\xff\x4f\xff\x51") + 4
    cod = real.index(b"\xff\x52")
    kind = int(rng.integers(7))
    if kind == 0:
        side = pick(rng, SIDES)
        real[siz + 4 : siz + 12] = real[siz + 20 : siz + 28] = struct.pack(">II", side, side)
    elif kind == 1:
        real[siz + 20 : siz + 28] = struct.pack(">II", *[pick(rng, [1, 4, 30])] * 2)
    elif kind == 2:
        real[cod + 6 : cod + 8] = struct.pack(">H", pick(rng, [1000, 65_535]))
    elif kind == 3:
        real[cod + 10 : cod + 12] = b"\0\0"
    elif kind == 4:
        levels = real[cod + 9] + 1
        sides = bytes([pick(rng, [0x00, 0x11, 0x22])]) * levels
        length = int.from_bytes(real[cod + 2 : cod + 4]) + levels
        real[cod + 2 : cod + 5] = struct.pack(">H", length) + bytes([real[cod + 4] | 1])
        real[cod + 14 : cod + 14] = sides
    elif kind == 5:
        real[siz + 36 : siz + 38] = struct.pack(">H", pick(rng, [5, 4000, 16_384]))
    elif b"ihdr" in real:
        at = real.index(b"ihdr") + 4
        real[at : at + 8] = struct.pack(">II", *[pick(rng, [1, 16, *SIDES])] * 2)
    decoy = box(
        b"uuid", bytes(16) + b"\xff\x4f\xff\x51\0\x29\0\0" + struct.pack(">II", 1, 1) + bytes(40)
    )
    if real[4:8] == b"jP  " and rng.integers(2):
        real[32:32] = decoy
    return bytes(real)


def icon(rng):
    side = pick(rng, SIDES)
    inner = png(side, side, chunk(b"IDAT", zeros(side * (1 + side // 8))), bits=1)
    if rng.integers(2):
        return (
            struct.pack("<HHH", 0, 1, 1)
            + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 1, len(inner), 22)
            + inner
        )
    return (
        b"icns"
        + struct.pack(">I", len(inner) + 16)
        + b"ic10"
        + struct.pack(">I", len(inner) + 8)
        + inner
    )


def unhandled(rng):
    side = pick(rng, SIDES)
    return pick(
        rng,
        [
            b"8BPS\0\1"
            + bytes(6)
            + struct.pack(">HIIHH", 3, side, side, 8, 3)
            + bytes(12)
            + b"\0\0"
            + bytes(1 << 16),
            b"DDS " + struct.pack("<IIII", 124, 0x1007, side, side) + bytes(200),
            b"\x01\xda\1\1\0\3"
            + struct.pack(">HHH", min(side, 65_535), min(side, 65_535), 3)
            + bytes(600),
            b"\n\5\1\x08"
            + struct.pack("<HHHH", 0, 0, side - 1, side - 1)
            + bytes(116)
            + b"\xff\0" * 5000,
            b"\0\0\x0a"
            + bytes(9)
            + struct.pack("<HH", side, side)
            + b"\x20\x08"
            + b"\xff\0\0\0\0" * 5000,
            b"P6\n%d %d\n255\n" % (side, side) + bytes(600),
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(600),
            b"\xff\x0a" + bytes(600),
            b"\x76\x2f\x31\x01" + bytes(600),
        ],
    )


KINDS = (
    png_large, png_long_data, png_text, png_frames, png_chunks, gif_large, gif_many, gif_blocks,
    bmp, bmp, webp, webp, tiff_tile, tiff_strips, tiff_strips, tiff_jpeg, tiff_pages, tiff_counts,
    jpeg_segments, jpeg_scans, jpeg_large, jpeg_restarts, jpeg_many_pictures, avif, avif, jpeg2000,
    jpeg2000, icon, unhandled, unhandled,
)  # fmt: skip


def make(seed):
    """Return the name and the content of the bomb with the number `seed`."""
    kind = KINDS[seed % len(KINDS)]
    return f"{seed} {kind.__name__}", kind(np.random.default_rng(seed))
