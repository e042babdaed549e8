"""The frames of an animated PNG are those that browsers show."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tasks.errors import UnreadableImage, UnsupportedImage
from worker import images
from worker.images import png

MANY = 10**7
GRAY, RGB, INDEXED, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GRAY: 1, RGB: 3, INDEXED: 1, GRAY_ALPHA: 2, RGBA: 4}
VALUES = 8  # of a channel
PALETTE = np.random.default_rng(0).integers(0, 256, (VALUES, 3), np.uint8)


def packed(stored):
    rows = stored.reshape(len(stored), -1)
    return zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))


def control(number, size, place=(0, 0), disposal=0, blending=0):
    body = struct.pack(">5I2H2B", number, *size, *place, 1, 10, disposal, blending)
    return png.chunk(b"fcTL", body)


def header(size, kind, bits=8):
    return png.SIGNATURE + png.chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, kind, 0, 0, 0))


def random_pixels(random, height, width, kind, has_transparency):
    """Return pixels as they are stored, and in RGBA."""
    stored = random.integers(0, VALUES, (height, width, CHANNELS[kind]), np.uint8)
    alpha = np.full((height, width), 255, np.uint8)
    if kind in (GRAY_ALPHA, RGBA):
        stored[..., -1] = alpha = random.integers(0, 2, (height, width)).astype(np.uint8) * 255
    elif has_transparency:
        alpha[(stored == 0).all(axis=2)] = 0
    colours = PALETTE[stored[..., 0]] if kind == INDEXED else stored[..., : 3 if kind & RGB else 1]
    shown = np.concatenate([np.broadcast_to(colours, (height, width, 3)), alpha[..., None]], axis=2)
    shown[alpha == 0] = 0
    return stored, shown


def random_animation(random, kind, has_transparency, is_apart):
    """Return an animation, and what a browser shows of each frame; the first may be apart."""
    width, height = random.integers(1, 12, 2)
    screen = np.zeros((height, width, 4), np.uint8)
    body, views, number = b"", [], 0
    count = int(random.integers(1, 5))
    if is_apart:
        stored, shown = random_pixels(random, height, width, kind, has_transparency)
        body, views = png.chunk(b"IDAT", packed(stored)), [shown]
    for frame in range(count):
        is_whole = frame == 0 and not is_apart
        right, bottom = random.integers(1, [width + 1, height + 1])
        left, top = random.integers(0, [right, bottom])
        if is_whole:
            left, top, right, bottom = 0, 0, width, height
        stored, shown = random_pixels(random, bottom - top, right - left, kind, has_transparency)
        disposal, blending = (int(one) for one in random.integers(0, [3, 2]))
        body += control(number, (right - left, bottom - top), (left, top), disposal, blending)
        number += 1
        if is_whole:
            body += png.chunk(b"IDAT", packed(stored))
        else:
            body += png.chunk(b"fdAT", number.to_bytes(4) + packed(stored))
            number += 1
        before = screen.copy()
        area = screen[top:bottom, left:right]
        is_drawn = (shown[..., 3] > 0) | (blending == 0)
        area[is_drawn] = shown[is_drawn]
        views.append(screen.copy())
        if disposal == 1 or (disposal == 2 and frame == 0):
            area[...] = 0
        elif disposal == 2:
            screen = before
    content = header((width, height), kind) + png.chunk(b"acTL", struct.pack(">II", count, 0))
    if kind == INDEXED:
        content += png.chunk(b"PLTE", PALETTE.tobytes())
    if has_transparency:
        content += png.chunk(b"tRNS", bytes({GRAY: 2, RGB: 6, INDEXED: 1}[kind]))
    return content + body + png.chunk(b"IEND", b""), views


@pytest.mark.parametrize("is_apart", [False, True])
@pytest.mark.parametrize(
    ("kind", "has_transparency"),
    [
        *((kind, stated) for kind in (GRAY, RGB, INDEXED) for stated in (False, True)),
        (GRAY_ALPHA, False),
        (RGBA, False),
    ],
)
def test_frames_are_drawn_over_each_other_as_in_browsers(kind, has_transparency, is_apart):
    random = np.random.default_rng(0)
    for _ in range(20):
        content, views = random_animation(random, kind, has_transparency, is_apart)
        frames = images.decode(content, MANY).frames
        for frame, view in zip(frames, views, strict=True):
            shown = np.asarray(Image.fromarray(frame.pixels).convert("RGBA"))
            assert np.array_equal(shown, view)


def test_half_transparent_pixels_are_blended_and_durations_kept():
    below, above = np.zeros((2, 4, 4, 4), np.uint8)
    below[...], above[...] = (200, 0, 0, 255), (0, 100, 0, 128)
    content = io.BytesIO()
    pictures = [Image.fromarray(one) for one in (below, above)]
    options = {"save_all": True, "append_images": pictures[1:], "blend": 1}
    pictures[0].save(content, "PNG", duration=[120, 250], **options)
    picture = images.decode(content.getvalue(), MANY)
    assert picture.encoding["duration"] == [120, 250]
    shown = picture.frames[1].pixels[0, 0].astype(int)
    assert np.abs(shown[:3] - (100, 50, 0)).max() <= 1


def test_a_frame_outside_of_its_picture_is_damage():
    data = packed(np.zeros((4, 4), np.uint8))
    content = header((4, 4), GRAY) + png.chunk(b"acTL", struct.pack(">II", 2, 0))
    content += control(0, (4, 4)) + png.chunk(b"IDAT", data)
    content += control(1, (4, 4), (1, 0)) + png.chunk(b"fdAT", bytes([0, 0, 0, 2]) + data)
    with pytest.raises(UnreadableImage):
        images.decode(content + png.chunk(b"IEND", b""), MANY)


@pytest.mark.parametrize("kind", [GRAY, RGB])
def test_an_animation_of_16_bits_is_refused(kind):
    data = packed(np.zeros((4, 4, 2 * CHANNELS[kind]), np.uint8))
    content = header((4, 4), kind, bits=16) + png.chunk(b"acTL", struct.pack(">II", 2, 0))
    content += control(0, (4, 4)) + png.chunk(b"IDAT", data)
    content += control(1, (4, 4)) + png.chunk(b"fdAT", bytes([0, 0, 0, 2]) + data)
    with pytest.raises(UnsupportedImage, match="several frames"):
        images.decode(content + png.chunk(b"IEND", b""), MANY)
