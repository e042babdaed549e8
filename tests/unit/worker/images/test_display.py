"""The detector sees what a viewer sees, also of colours that are described unusually."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from worker import images
from worker.images import deep, display, png
from worker.images.heif import avif

MANY = 10**7
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
y, x = np.mgrid[:40, :60]
SCENE = np.stack([x * 4, y * 6, (x + y) * 2], axis=-1).astype(np.uint8)
LIGHT = (SCENE / 255.0) ** 2.2  # the light that a viewer of sRGB emits, nearly


def written(pixels, form, **options):
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, form, **options)
    return target.getvalue()


def cicp(transfer):
    return b"cICP", bytes([9, transfer, 0, 1])


def first_view(content):
    (frame,) = images.decode(content, MANY).frames
    return next(frame.views()).astype(int)


def profile(tags):
    """Return sRGB's profile with other bodies of `tags`."""
    count = int.from_bytes(SRGB[128:132])
    bodies = []
    for number in range(count):
        name, at, size = struct.unpack_from(">4sII", SRGB, 132 + 12 * number)
        bodies.append((name, tags.get(name, SRGB[at : at + size])))
    offset = 132 + 12 * count
    table = data = b""
    for name, body in bodies:
        table += struct.pack(">4sII", name, offset + len(data), len(body))
        data += body + bytes(-len(body) % 4)
    whole = SRGB[:128] + count.to_bytes(4) + table + data
    return len(whole).to_bytes(4) + whole[4:]


LINEAR_CURVE = b"curv" + bytes(8)
LINEAR_PROFILE = profile(dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), LINEAR_CURVE))


def swapped():
    return SRGB.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")


def linear(bits):
    return (LIGHT * (2**bits - 1)).round().astype(np.uint16 if bits == 16 else np.uint8)


def deep_png(pixels, *chunks, icc=None):
    return png.with_chunks(deep.write_png(pixels, icc, None), chunks)


LINEAR = {
    "8 bits, gamma": png.with_chunks(written(linear(8), "PNG"), [(b"gAMA", (100000).to_bytes(4))]),
    "16 bits, gamma": deep_png(linear(16), (b"gAMA", (100000).to_bytes(4))),
    "8 bits, cICP": png.with_chunks(written(linear(8), "PNG"), [cicp(display.LINEAR)]),
    "16 bits, cICP": deep_png(linear(16), cicp(display.LINEAR)),
    "8 bits, profile": written(linear(8), "PNG", icc_profile=LINEAR_PROFILE),
    "16 bits, profile": deep_png(linear(16), icc=LINEAR_PROFILE),
    "16-bit TIFF, profile": deep.write_tiff([linear(16)], LINEAR_PROFILE),
    "JPEG, profile": written(linear(8), "JPEG", quality=98, icc_profile=LINEAR_PROFILE),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_values_are_seen_as_they_are_shown(name):
    bright = SCENE > 100  # 8 bits hold few dark values
    assert np.abs(first_view(LINEAR[name]) - SCENE)[bright].max() < 16


def gray_profile(curve):
    """Return a gray profile whose only curve is `curve`, with sRGB's other tags."""
    entries = (struct.unpack_from(">4sII", SRGB, 132 + 12 * at) for at in range(SRGB[131]))
    bodies = {name: SRGB[at : at + size] for name, at, size in entries}
    tags = {name: bodies[name] for name in (b"desc", b"cprt", b"wtpt")} | {b"kTRC": curve}
    offset, table, data = 132 + 12 * len(tags), b"", b""
    for name, body in tags.items():
        table += struct.pack(">4sII", name, offset + len(data), len(body))
        data += body + bytes(-len(body) % 4)
    whole = SRGB[:16] + b"GRAY" + SRGB[20:128] + len(tags).to_bytes(4) + table + data
    return len(whole).to_bytes(4) + whole[4:]


NEGATIVE_CURVE = b"curv" + bytes(4) + struct.pack(">IHH", 2, 65535, 0)
GRAY = SCENE[..., 1].copy()


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_gray_is_seen_as_its_profile_shows_it(form):
    stored = linear(8)[..., 1].copy()
    options = {"icc_profile": gray_profile(LINEAR_CURVE)} | (
        {"quality": 98} if form == "JPEG" else {}
    )
    (frame,) = images.decode(written(stored, form, **options), MANY).frames
    shown, *others = (view.astype(int)[..., 0] for view in frame.views())
    assert np.abs(shown - GRAY)[GRAY > 100].max() < 16
    assert any(np.abs(view - stored).max() < 6 for view in others)


def test_gray_that_its_profile_inverts_is_seen_inverted():
    content = written(GRAY, "PNG", icc_profile=gray_profile(NEGATIVE_CURVE))
    view = first_view(content)[..., 0]
    assert np.corrcoef(view.ravel(), GRAY.ravel())[0, 1] < -0.9


def test_usual_gray_is_seen_as_it_is_stored():
    usual = b"curv" + bytes(4) + struct.pack(">IH", 1, round(2.2 * 256))
    content = written(GRAY, "PNG", icc_profile=gray_profile(usual))
    assert images.decode(content, MANY).frames[0].display is None


def test_a_profile_that_moves_colours_is_heeded():
    view = first_view(written(SCENE, "PNG", icc_profile=swapped()))
    assert np.abs(view - SCENE[..., ::-1]).max() <= 3


@pytest.mark.parametrize(
    "content", [written(SCENE, "PNG"), written(SCENE, "PNG", icc_profile=SRGB)]
)
def test_usual_colours_are_seen_as_they_are_stored(content):
    assert np.array_equal(first_view(content), SCENE)
    assert images.decode(content, MANY).frames[0].display is None


@pytest.mark.parametrize("transfer", [display.PQ, display.HLG])
@pytest.mark.parametrize("depth", [8, 16])
def test_hdr_is_brought_to_the_brightness_of_a_screen(transfer, depth):
    """White paper is bright, black is black, and brighter values stay brighter."""
    ramp = np.linspace(0, 2**depth - 1, 256).astype(f"uint{depth}")
    pixels = np.repeat(np.tile(ramp, (20, 1))[..., None], 3, axis=2)
    content = written(pixels, "PNG") if depth == 8 else deep_png(pixels)
    seen = first_view(png.with_chunks(content, [cicp(transfer)]))[0, :, 0]
    paper = 148 if transfer == display.PQ else 191  # 203 nits (BT.2408)
    assert seen[0] == 0
    assert 150 <= seen[paper] <= 230
    assert (np.diff(seen) >= 0).all()
    assert seen[-1] >= 250


def test_an_avif_of_pq_is_brought_to_the_brightness_of_a_screen():
    plain = written(SCENE, "AVIF", quality=95)
    hdr = avif.with_colour(plain, (9, display.PQ))
    assert np.abs(first_view(hdr) - first_view(plain)).max() > 40


def test_outputs_keep_the_stored_values():
    picture = images.decode(LINEAR["16 bits, cICP"], MANY)
    output = images.encode(picture, [frame.pixels.copy() for frame in picture.frames])
    assert np.array_equal(images.decode(output, MANY).frames[0].pixels, linear(16))


# --- the order of components in a JPEG 2000


def jp2(order, colour_space):
    """Return a JPEG 2000 whose components are in another order, as its cdef box says."""
    stored = np.empty_like(SCENE)
    colours = SCENE
    if colour_space == b"\x12":
        colours = np.asarray(Image.fromarray(SCENE).convert("YCbCr"))
    for colour, component in enumerate(order):
        stored[..., component] = colours[..., colour]
    content = written(stored, "JPEG2000", mct=0, irreversible=False)
    definitions = b"\0\3" + b"".join(
        struct.pack(">HHH", component, 0, colour + 1) for colour, component in enumerate(order)
    )
    cdef = (8 + len(definitions)).to_bytes(4) + b"cdef" + definitions
    start = content.index(b"jp2h") - 4
    size = int.from_bytes(content[start : start + 4])
    header = content[start + 4 : start + size].replace(b"\0\0\0\x10", b"\0\0\0" + colour_space)
    header = (size + len(cdef)).to_bytes(4) + header + cdef
    return content[:start] + header + content[start + size :]


@pytest.mark.parametrize("colour_space", [b"\x10", b"\x12"], ids=["sRGB", "sYCC"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
def test_components_of_a_jpeg_2000_are_put_in_order(order, colour_space):
    picture = images.decode(jp2(order, colour_space), MANY)
    (frame,) = picture.frames
    tolerance = 0 if colour_space == b"\x10" else 4
    assert np.abs(frame.pixels.astype(int) - SCENE).max() <= tolerance
    output = images.encode(picture, [frame.pixels.copy()])
    again = images.decode(output, MANY).frames[0].pixels.astype(int)
    assert np.abs(again - frame.pixels).max() <= tolerance


def black():
    """Return descriptions of colours that make everything black."""
    dark = b"curv" + bytes(4) + (1).to_bytes(4) + b"\xff\xff"
    icc = profile(dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), dark))
    return {
        "gamma": png.with_chunks(written(SCENE, "PNG"), [(b"gAMA", (1).to_bytes(4))]),
        "profile": written(SCENE, "PNG", icc_profile=icc),
    }


@pytest.mark.parametrize("name", black())
def test_stored_values_are_seen_too_because_many_viewers_show_them(name):
    (frame,) = images.decode(black()[name], MANY).frames
    shown, *others = frame.views()
    assert shown.mean() < 20
    assert any(np.array_equal(view, SCENE) for view in others)


def test_stretched_values_of_16_bits_are_seen_once():
    (frame,) = images.decode(LINEAR["16 bits, cICP"], MANY).frames
    assert len(list(frame.views())) == 3
