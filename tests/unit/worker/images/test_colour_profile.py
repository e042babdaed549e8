"""Colour profiles keep the tags that describe colour, and lose device names and hidden data."""

import struct

import pytest
from PIL import ImageCms

from worker.images import colour_profile

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SERIAL = b"serial number C02XK0ABJG5H"


def parts(profile):
    count = int.from_bytes(profile[128:132])
    tags = [struct.unpack_from(">4sII", profile, 132 + 12 * i) for i in range(count)]
    return {name: profile[at : at + size] for name, at, size in tags}


def with_tag(profile, name, body):
    """Return `profile` with an additional tag."""
    entries = [
        struct.unpack_from(">4sII", profile, 132 + 12 * i)
        for i in range(int.from_bytes(profile[128:132]))
    ]
    entries = [(known, at + 12, size) for known, at, size in entries] + [
        (name, len(profile) + 12, len(body))
    ]
    table = len(entries).to_bytes(4) + b"".join(struct.pack(">4sII", *entry) for entry in entries)
    whole = (
        profile[4:128]
        + table
        + profile[132 + 12 * (len(entries) - 1) :]
        + body
        + bytes(-len(body) % 4)
    )
    return (len(whole) + 4).to_bytes(4) + whole


def test_a_profile_that_describes_colour_alone_is_kept_as_it_is():
    assert colour_profile.checked(SRGB, "RGB") == SRGB


@pytest.mark.parametrize("name", [b"mmod", b"dscm", b"vcgt", b"meta", b"xxxx", b"targ"])
def test_tags_that_identify_a_device_are_dropped(name):
    out = colour_profile.checked(with_tag(SRGB, name, SERIAL), "RGB")
    assert SERIAL not in out
    assert parts(out) == parts(SRGB)
    assert int.from_bytes(out[:4]) == len(out)
    assert not any(out[24:36])  # the date tells the device apart as well
    assert ImageCms.getProfileName(ImageCms.ImageCmsProfile(__import__("io").BytesIO(out)))


def test_reserved_bytes_of_the_header_are_dropped():
    assert colour_profile.checked(SRGB[:100] + SERIAL + SRGB[126:], "RGB") == SRGB


def test_bytes_that_belong_to_no_tag_are_dropped():
    assert colour_profile.checked(SRGB + SERIAL, "RGB") == SRGB
    gap = bytearray(with_tag(SRGB, b"lumi", bytes(20)))
    gap = bytes(gap) + SERIAL
    gap = len(gap).to_bytes(4) + gap[4:]
    assert SERIAL not in colour_profile.checked(gap, "RGB")


@pytest.mark.parametrize(
    "profile",
    [
        None,
        b"",
        "text",
        SERIAL,
        SRGB[:100],
        SRGB[:200],
        SRGB[:36] + b"nope" + SRGB[40:],
        SRGB[:128] + (10**6).to_bytes(4) + SRGB[132:],
        SRGB[:136] + b"\xff\xff\xff\x00" + SRGB[140:],
        (10**6).to_bytes(4) + SRGB[4:],
        SRGB[:128] + bytes(4),
    ],
    ids=range(11),
)
def test_an_invalid_profile_is_dropped(profile):
    assert colour_profile.checked(profile, "RGB") is None


@pytest.mark.parametrize(
    ("space", "modes"),
    [(b"RGB ", ("RGB", "RGBA", "P")), (b"GRAY", ("L", "LA")), (b"CMYK", ("CMYK",))],
)
def test_a_profile_belongs_to_pictures_of_its_colours(space, modes):
    profile = SRGB[:16] + space + SRGB[20:]
    kept = [
        mode
        for mode in ("RGB", "RGBA", "P", "L", "LA", "CMYK")
        if colour_profile.checked(profile, mode)
    ]
    assert kept == [mode for mode in ("RGB", "RGBA", "P", "L", "LA", "CMYK") if mode in modes]


def test_a_jpeg_2000_keeps_its_profile():
    import io

    from PIL import Image

    from worker import images
    from worker.images import jpeg2000

    target = io.BytesIO()
    Image.new("RGB", (40, 30), (10, 100, 200)).save(target, "JPEG2000")
    content = jpeg2000.with_header(target.getvalue(), with_tag(SRGB, b"mmod", SERIAL), None)
    assert SERIAL in content
    picture = images.decode(content, 10**6)
    again = images.encode(picture, [frame.pixels.copy() for frame in picture.frames])
    assert parts(jpeg2000.profile(again)) == parts(SRGB)
    assert Image.open(io.BytesIO(again)).getpixel((5, 5)) == (10, 100, 200)


def test_a_text_that_is_too_long_for_a_name_is_dropped():
    unnamed = SRGB.replace(b"cprt", b"xxxx")
    out = colour_profile.checked(with_tag(unnamed, b"cprt", SERIAL * 1000), "RGB")
    assert SERIAL not in out
    assert b"rTRC" in parts(out)
