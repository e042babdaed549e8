"""The frames of a GIF are those that browsers show, and copies hold no more than these."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from tasks.errors import UnreadableImage
from worker import images
from worker.images import containers

MANY = 10**7
COLOURS = 8


def frame(indices, palette=None, place=(0, 0), disposal=0, transparent=None):
    """Return a frame of `indices` [h, w] with its graphic control."""
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette(bytes(range(1, 3 * COLOURS + 1)))
    target = io.BytesIO()
    image.save(target, "GIF", optimize=False, interlace=0)
    written = target.getvalue()
    data = next(block for block in containers.gif_blocks(written) if block.kind == b",")
    stored = written[data.start : data.end]
    body = stored[containers.gif_data_start(stored) - 1 :]
    flags = disposal << 2 | (transparent is not None)
    control = b"!\xf9\x04" + struct.pack("<BHBB", flags, 5, transparent or 0, 0)
    size = indices.shape[::-1]
    table = b"" if palette is None else palette.astype(np.uint8).tobytes()
    descriptor = struct.pack("<HHHHB", *place, *size, 0x82 if table else 0)
    return control + b"," + descriptor + table + body


def gif(size, palette, *frames):
    head = b"GIF89a" + struct.pack("<HHBBB", *size, 0x82, 0, 0) + palette.astype(np.uint8).tobytes()
    return head + b"".join(frames) + b";"


def shown(picture):
    """Return the frames of a picture in RGBA."""
    return [np.asarray(Image.fromarray(one.pixels).convert("RGBA")) for one in picture.frames]


def random_palette(random):
    """Return random colours, or the ramp of gray that Pillow takes for no palette."""
    if random.random() < 0.3:
        return np.repeat(np.arange(COLOURS)[:, None], 3, axis=1)
    return random.integers(0, 256, (COLOURS, 3))


def random_gif(random):
    """Return a GIF of random frames, and what a browser shows of each."""
    width, height = random.integers(2, 14, 2)
    palette = random_palette(random)
    screen = np.zeros((height, width, 4), np.uint8)
    frames, views = [], []
    for _ in range(random.integers(1, 5)):
        right, bottom = random.integers(1, [width + 1, height + 1])
        left, top = random.integers(0, [right, bottom])
        indices = random.integers(0, COLOURS, (bottom - top, right - left))
        own = random_palette(random) if random.random() < 0.3 else None
        transparent = int(random.integers(0, COLOURS)) if random.random() < 0.6 else None
        disposal = int(random.integers(0, 4))
        frames.append(frame(indices, own, (left, top), disposal, transparent))
        before = screen.copy()
        for (y, x), index in np.ndenumerate(indices):
            if index != transparent:
                screen[top + y, left + x] = *(palette if own is None else own)[index], 255
        views.append(screen.copy())
        if disposal == 2:
            screen[top:bottom, left:right] = 0
        elif disposal == 3:
            screen = before
    return gif((width, height), palette, *frames), views


def test_frames_are_drawn_over_each_other_as_in_browsers():
    random = np.random.default_rng(0)
    for _ in range(100):
        content, views = random_gif(random)
        picture = images.decode(content, MANY)
        for one, view in zip(shown(picture), views, strict=True):
            assert np.array_equal(one, view)
        output = images.encode(picture, [each.pixels.copy() for each in picture.frames])
        remaining = iter(views)
        for one in shown(images.decode(output, MANY)):  # Equal frames may be joined.
            assert any(np.array_equal(one, view) for view in remaining)


def test_a_later_frame_beyond_the_screen_enlarges_all_frames():
    indices = np.ones((4, 4))
    content = gif((4, 4), np.eye(COLOURS, 3) * 255, frame(indices), frame(indices, place=(3, 0)))
    first, second = shown(images.decode(content, MANY))
    assert first.shape == second.shape == (4, 7, 4)
    assert not first[:, 4:].any()
    assert second[..., 3].all()


@pytest.mark.parametrize("number", [0, 1])
def test_a_colour_that_is_not_in_the_palette_is_damage_unless_it_is_transparent(number):
    inside, outside = np.ones((4, 4)), np.full((4, 4), COLOURS + 3)
    for transparent in (None, COLOURS + 3):
        frames = [frame(inside), frame(inside)]
        frames[number] = frame(outside, transparent=transparent)
        content = gif((4, 4), np.arange(3 * COLOURS), *frames)
        if transparent is None:
            with pytest.raises(UnreadableImage, match="not in its palette"):
                images.decode(content, MANY)
        else:
            assert len(images.decode(content, MANY).frames) == 2


HIDDEN = np.kron(np.random.default_rng(0).integers(0, 2, (16, 16)), np.ones((4, 4)))


def copied(*frames, palette):
    picture = images.decode(gif((64, 64), palette, *frames), MANY)
    output = images.encode(picture, [each.pixels for each in picture.frames])
    for before, after in zip(shown(picture), shown(images.decode(output, MANY)), strict=True):
        assert np.array_equal(before, after)
    return picture.reassembled is not None, output


@pytest.mark.parametrize("is_own", [False, True])
def test_what_equal_colours_of_a_palette_hide_is_not_copied(is_own):
    usual = np.arange(3 * COLOURS).reshape(-1, 3) * 9 + 1
    equal = usual.copy()
    equal[1] = equal[0]
    palette = {"palette": usual}
    later = frame(HIDDEN, equal if is_own else None)
    assert copied(frame(HIDDEN + 2), frame(HIDDEN), **palette)[0]
    if not is_own:
        palette = {"palette": equal}
    is_copied, output = copied(frame(HIDDEN + 2), later, **palette)
    assert not is_copied
    last = list(containers.gif_blocks(output))[-2]
    alone = output[: containers.gif_header_end(output)] + output[last.start : last.end] + b";"
    with Image.open(io.BytesIO(alone)) as image:
        assert len(np.unique(np.asarray(image))) == 1


def test_a_transparent_pixel_is_not_alike_one_of_its_colour():
    equal = np.zeros((COLOURS, 3))
    equal[2:] = 9
    assert copied(frame(HIDDEN, transparent=1), palette=equal)[0]


def test_a_reserved_disposal_method_is_not_copied():
    palette = np.arange(3 * COLOURS).reshape(-1, 3) * 9 + 1
    frames = [frame(HIDDEN, disposal=4), frame(np.ones((8, 8)))]
    assert not copied(*frames, palette=palette)[0]


def test_a_frame_without_a_palette_is_not_copied():
    """Viewers choose its colours."""
    palette = np.arange(3 * COLOURS).reshape(-1, 3) * 9 + 1
    content = gif((64, 64), palette, frame(HIDDEN))
    without = content[:10] + b"\0" + content[11:13] + content[13 + 3 * COLOURS :]
    assert images.decode(content, MANY).reassembled is not None
    assert images.decode(without, MANY).reassembled is None
