"""HEIC: the primary picture, upright and alone, as a JPEG with its colours."""

import io

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from tasks.errors import ImageTooLarge, UnreadableImage, UnsupportedImage
from tests import heic
from worker import images
from worker.images.display import PQ
from worker.images.heif import avif
from worker.images.heif.heic import COST, SAMPLE, is_installed
from worker.metadata.kept import NOTHING, Kept

MANY = 10**7
WIDTH, HEIGHT = 192, 128
ALPHA, DEPTH = "urn:mpeg:hevc:2015:auxid:1", "urn:mpeg:hevc:2015:auxid:2"
GAIN_MAP = "urn:com:apple:photo:2020:aux:hdrgainmap"
SECRET = b"Erika Mustermann"
y, x = np.mgrid[:HEIGHT, :WIDTH]
SCENE = np.stack([x, y * 255 // HEIGHT, 255 - (x + y) * 255 // 320], axis=-1).astype(np.uint8)
PHOTO = Image.fromarray(SCENE)
OTHER = Image.fromarray(SCENE[::-1, ::-1].copy())
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

needs_decoder = pytest.mark.skipif(
    not is_installed(), reason="pi-heif is not installed: the extra `heif`"
)


@pytest.fixture(scope="module")
def convert(system_program):
    program = system_program("convert")
    try:
        heic.coded(program, PHOTO)
    except Exception:
        pytest.skip("ImageMagick writes no HEIC on this machine")
    return program


def decoded(content, keep=NOTHING):
    return images.decode(content, MANY, keep=keep)


def differs(content, expected):
    """Return the mean difference of the picture of `content` from the pixels `expected`."""
    picture = decoded(content)
    (frame,) = picture.frames
    assert frame.pixels.shape == expected.shape
    output = images.encode(picture, [frame.pixels.copy()])
    with Image.open(io.BytesIO(output)) as image:
        assert image.format == "JPEG"
        assert not image.getexif()
        shown = np.asarray(image).astype(int)
    return max(np.abs(pixels.astype(int) - expected).mean() for pixels in (frame.pixels, shown))


def test_without_the_extra_a_heic_names_it(monkeypatch):
    monkeypatch.setattr("worker.images.heif.heic.pi_heif", None)
    with pytest.raises(UnsupportedImage, match="need the extra `heif`"):
        decoded(heic.file([]))
    with pytest.raises(UnsupportedImage, match="videos"):
        decoded(heic.file([], brand=b"isom"))


@needs_decoder
@pytest.mark.parametrize("size", [(192, 128), (102, 70), (64, 64)])
def test_a_heic_is_read_and_written_as_jpeg(convert, size):
    photo = PHOTO.crop((0, 0, *size))
    assert differs(heic.file([heic.coded(convert, photo)]), np.asarray(photo)) < 4


@needs_decoder
@pytest.mark.parametrize("quarters", range(4))
def test_a_rotation_is_applied_and_that_of_exif_is_not(convert, quarters):
    orientation = Image.Exif()
    orientation[0x0112] = 6
    items = [
        heic.coded(convert, PHOTO, heic.turned(quarters)),
        heic.exif(orientation.tobytes().removeprefix(b"Exif\0\0"), of=1),
    ]
    assert differs(heic.file(items), np.rot90(SCENE, quarters)) < 4


@needs_decoder
@pytest.mark.parametrize("axis", [0, 1])
def test_a_mirror_is_applied(convert, axis):
    mirror = SCENE[:, ::-1] if axis == 0 else SCENE[::-1]
    content = heic.file([heic.coded(convert, PHOTO, heic.mirrored(axis))])
    found = decoded(content).frames[0].pixels.astype(int)
    # Editions of the standard name the axes differently, and decoders follow them.
    assert min(np.abs(found - each).mean() for each in (mirror, mirror[::-1, ::-1])) < 4


@needs_decoder
def test_a_grid_is_one_picture(convert):
    tiles = [
        heic.coded(convert, PHOTO.crop((left, top, left + 64, top + 64)), hidden=True)
        for top in (0, 64)
        for left in (0, 64, 128)
    ]
    grid = heic.grid(2, 3, WIDTH - 4, HEIGHT - 10, [2, 3, 4, 5, 6, 7])
    assert differs(heic.file([grid, *tiles]), SCENE[: HEIGHT - 10, : WIDTH - 4]) < 4


@needs_decoder
def test_the_primary_picture_of_a_burst_is_the_output(convert):
    items = [heic.coded(convert, OTHER), heic.coded(convert, PHOTO), heic.coded(convert, OTHER)]
    content = heic.file(items, primary=2)
    assert differs(content, SCENE) < 4
    output = images.encode(decoded(content), [SCENE])
    assert output.count(b"\xff\xd8\xff") == 1


@needs_decoder
@pytest.mark.parametrize(
    "kind",
    [
        DEPTH,
        GAIN_MAP,
        "urn:com:apple:photo:2018:aux:portraiteffectsmatte",
    ],
    ids=["depth", "gain map", "matte"],
)
def test_auxiliary_pictures_are_no_part_of_the_output(convert, kind):
    half = OTHER.convert("L").resize((96, 64))
    items = [
        heic.coded(convert, PHOTO),
        heic.coded(convert, half, heic.auxiliary(kind), references={b"auxl": [1]}, hidden=True),
    ]
    assert differs(heic.file(items), SCENE) < 4


@needs_decoder
def test_a_thumbnail_is_no_part_of_the_output(convert):
    small = heic.coded(convert, OTHER.resize((64, 64)), references={b"thmb": [1]})
    assert differs(heic.file([heic.coded(convert, PHOTO), small]), SCENE) < 4


@needs_decoder
def test_the_profile_is_kept(convert):
    picture = decoded(heic.file([heic.coded(convert, PHOTO, heic.profile(SRGB))]))
    with Image.open(io.BytesIO(images.encode(picture, [SCENE]))) as image:
        assert image.info["icc_profile"]


@needs_decoder
def test_named_colours_become_a_profile(convert):
    content = heic.file([heic.coded(convert, PHOTO, heic.named_colours(12, 13))])
    output = images.encode(decoded(content), [SCENE])
    with Image.open(io.BytesIO(output)) as image:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    # Red of Display P3, adapted to D50.
    assert profile.profile.red_colorant[0] == pytest.approx((0.5151, 0.2412, -0.0011), abs=1e-3)
    assert output == images.encode(decoded(content), [SCENE])
    plain = heic.file([heic.coded(convert, PHOTO, heic.named_colours(1, 13))])
    assert "icc_profile" not in decoded(plain).encoding


@needs_decoder
@pytest.mark.parametrize("transfer", [16, 18], ids=["PQ", "HLG"])
def test_hdr_is_refused_by_name(convert, transfer):
    with pytest.raises(UnsupportedImage, match="HDR"):
        decoded(heic.file([heic.coded(convert, PHOTO, heic.named_colours(9, transfer))]))


@needs_decoder
def test_exif_is_dropped_but_for_fields_that_are_kept(convert):
    block = Image.Exif()
    block[271] = SECRET.decode()
    block.get_ifd(0x8769)[0x9003] = "2026:11:29 10:00:00"
    block.get_ifd(0x8825).update({1: "N", 2: (48.0, 8.0, 13.0), 3: "E", 4: (11.0, 34.0, 31.0)})
    items = [heic.coded(convert, PHOTO), heic.exif(block.tobytes().removeprefix(b"Exif\0\0"), 1)]
    content = heic.file(items)
    assert SECRET not in images.encode(decoded(content), [SCENE])
    keep = Kept(exif=("DateTimeOriginal",), gps="rounded")
    output = images.encode(decoded(content, keep), [SCENE])
    assert SECRET not in output
    with Image.open(io.BytesIO(output)) as image:
        exif = image.getexif()
        assert exif.get_ifd(0x8769)[0x9003] == "2026:11:29 10:00:00"
        assert exif.get_ifd(0x8825)[1] == "N"


@needs_decoder
def test_a_heic_that_is_cut_short_is_unreadable(convert):
    content = heic.file([heic.coded(convert, PHOTO)])
    for kept in (30, 200, len(content) // 2, len(content) - 40, len(content) - 1):
        with pytest.raises(UnreadableImage):
            decoded(content[:kept])


@needs_decoder
def test_the_size_is_held_against_the_limit_before_decoding(convert):
    content = heic.file([heic.coded(convert, PHOTO)])
    with pytest.raises(ImageTooLarge, match="VEIL_MAX_PIXELS"):
        images.decode(content, WIDTH * HEIGHT * COST - 1)
    huge = content.replace(heic.ispe(WIDTH, HEIGHT), heic.ispe(30_000, 30_000))
    with pytest.raises(ImageTooLarge, match="30000 × 30000"):
        decoded(huge)


@needs_decoder
@pytest.mark.parametrize("quarters", range(4))
def test_a_heic_of_10_bits_is_read_in_8_bits(quarters):
    content = heic.file([heic.ten_bits(heic.turned(quarters))])
    expected = (heic.TEN_BIT_VALUES >> 2).astype(np.uint8)
    assert differs(content, np.rot90(expected, quarters)) < 4


@needs_decoder
def test_a_burst_of_10_bits_in_a_grid_with_a_gain_map_and_depth_shows_its_primary_picture():
    tiles = [heic.ten_bits(hidden=True) for _ in range(2)]
    grid = heic.grid(1, 2, 192, 64, [1, 2])
    maps = [
        heic.ten_bits(heic.auxiliary(kind), references={b"auxl": [3]}, hidden=True)
        for kind in (GAIN_MAP, DEPTH)
    ]
    other = heic.ten_bits(heic.turned(1))
    expected = (heic.TEN_BIT_VALUES >> 2).astype(np.uint8)
    content = heic.file([*tiles, grid, *maps, other], primary=3)
    assert differs(content, np.concatenate([expected, expected], axis=1)) < 4


@needs_decoder
def test_a_refused_heic_names_the_setting(convert):
    content = heic.file([heic.coded(convert, PHOTO)])
    with pytest.raises(UnsupportedImage, match="VEIL_HEIF_OUTPUT"):
        decoded(content, Kept(heif="refuse"))


def written_as_avif(content, **kept):
    picture = decoded(content, Kept(heif="avif", **kept))
    (frame,) = picture.frames
    return frame, images.encode(picture, [frame.pixels.copy()])


@needs_decoder
def test_a_heic_is_written_as_avif_with_its_colours_and_chosen_fields(convert):
    block = Image.Exif()
    block.get_ifd(ExifTags.IFD.Exif)[0x9003] = "2026:01:02 03:04:05"
    block[0x013B] = SECRET.decode()
    items = [
        heic.coded(convert, PHOTO, heic.turned(1), heic.named_colours(12, 13)),
        heic.exif(block.tobytes().removeprefix(b"Exif\0\0"), 1),
    ]
    _, output = written_as_avif(heic.file(items), exif=("DateTimeOriginal",))
    assert SECRET not in output
    assert avif.colour(output) == (12, 13)
    with Image.open(io.BytesIO(output)) as image:
        assert image.format == "AVIF"
        assert image.getexif().get_ifd(ExifTags.IFD.Exif)[0x9003] == "2026:01:02 03:04:05"
        assert np.abs(np.asarray(image).astype(int) - np.rot90(SCENE)).mean() < 4


@needs_decoder
def test_a_colour_profile_of_a_heic_is_kept_in_an_avif(convert):
    _, output = written_as_avif(heic.file([heic.coded(convert, PHOTO, heic.profile(SRGB))]))
    with Image.open(io.BytesIO(output)) as image:
        assert b"gTRC" in image.info["icc_profile"]


@needs_decoder
def test_transparency_of_a_heic_is_kept_in_an_avif(convert):
    alpha = np.where(x < WIDTH // 2, 255, 0).astype(np.uint8)
    items = [
        heic.coded(convert, PHOTO),
        heic.coded(
            convert,
            Image.fromarray(alpha),
            heic.auxiliary(ALPHA),
            references={b"auxl": [1]},
            hidden=True,
        ),
    ]
    frame, output = written_as_avif(heic.file(items))
    assert frame.mode == "RGBA"
    with Image.open(io.BytesIO(output)) as image:
        assert image.mode == "RGBA"
        assert np.abs(np.asarray(image)[..., 3].astype(int) - alpha).mean() < 4


@needs_decoder
def test_hdr_becomes_no_avif_of_8_bits(monkeypatch):
    monkeypatch.setattr("worker.images.heif.deep_avif.imagecodecs", None)
    with pytest.raises(UnsupportedImage, match="needs the extra `avif`"):
        written_as_avif(heic.file([heic.ten_bits(heic.named_colours(9, PQ))]))


@needs_decoder
@pytest.mark.parametrize("transfer", [1, PQ])
def test_an_avif_of_a_heic_keeps_10_bits(transfer):
    library = pytest.importorskip("imagecodecs")
    frame, output = written_as_avif(heic.file([heic.ten_bits(heic.named_colours(9, transfer))]))
    assert frame.mode == "RGB;16"
    assert avif.colour(output) == (9, transfer)
    shown = library.avif_decode(output).astype(int)
    assert np.abs(shown - heic.TEN_BIT_VALUES).mean() < 6
    assert len(np.unique(shown)) > 256


@needs_decoder
def test_the_sample_that_loads_the_decoder_is_a_picture():
    (frame,) = decoded(SAMPLE).frames
    assert frame.pixels.shape[:2] == (16, 16)
