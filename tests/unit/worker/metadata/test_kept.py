"""Density is kept; positions and the projection of panoramas are kept on request alone."""

import io
import json
import re
import struct
import subprocess

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from tasks.errors import SettingsInvalid
from tests.metadata import leaks
from worker import images
from worker.images import bmp, deep, png
from worker.images.turning import ORIENTATION
from worker.metadata.kept import NOTHING, Kept
from worker.settings import WorkerSettings

MANY = 10**7
y, x = np.mgrid[:40, :60]
SCENE = np.stack([x * 4, y * 6, (x + y) * 2], axis=-1).astype(np.uint8)
CLEAR = np.dstack([SCENE, np.full(SCENE.shape[:2], 128, np.uint8)])


def written(form, pixels=SCENE, **options):
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, form, **options)
    return target.getvalue()


def output(content, keep=NOTHING, same=False):
    """Return the output of `content`. With `same`, no pixel was changed."""
    picture = images.decode(content, MANY, keep=keep)
    frames = [frame.pixels if same else frame.pixels.copy() for frame in picture.frames]
    return images.encode(picture, frames)


# --- density


def jp2_with_resolution():
    content = written("JPEG2000")
    numbers = struct.pack(">HHHHBB", 11811, 1, 11811, 1, 0, 0)
    inner = (8 + len(numbers)).to_bytes(4) + b"resc" + numbers
    box = (8 + len(inner)).to_bytes(4) + b"res " + inner
    start = content.index(b"jp2h") - 4
    size = int.from_bytes(content[start : start + 4])
    header = (size + len(box)).to_bytes(4) + content[start + 4 : start + size] + box
    return content[:start] + header + content[start + size :]


PHYS = b"pHYs", struct.pack(">IIB", 11811, 5906, 1)
WITH_DENSITY = {
    "JPEG": (written("JPEG", dpi=(300, 150)), (300, 150)),
    "PNG": (written("PNG", dpi=(300, 150)), (300, 150)),
    "16-bit PNG": (
        png.with_chunks(deep.write_png(SCENE.astype(np.uint16) * 257, None, None), [PHYS]),
        (300, 150),
    ),
    "TIFF": (written("TIFF", dpi=(300, 150)), (300, 150)),
    "16-bit TIFF": (
        deep.write_tiff([SCENE.astype(np.uint16) * 257], None, density=(300, 150)),
        (300, 150),
    ),
    "BMP": (written("BMP", dpi=(300, 150)), (300, 150)),
    "BMP with alpha": (bmp.with_alpha(CLEAR, (300, 150)), (300, 150)),
    "JPEG 2000": (jp2_with_resolution(), (300, 300)),
}


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("name", WITH_DENSITY)
def test_the_size_in_print_is_kept(name, same):
    content, dots = WITH_DENSITY[name]
    with Image.open(io.BytesIO(output(content, same=same))) as image:
        assert image.info["dpi"] == pytest.approx(dots, rel=1e-3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [3, 5, 6, 7, 8])
def test_the_density_is_turned_with_its_picture(form, orientation):
    turned = {"tiffinfo": {ORIENTATION: orientation}}
    if form != "TIFF":
        block = Image.Exif()
        block[ORIENTATION] = orientation
        turned = {"exif": block}
    with Image.open(io.BytesIO(output(written(form, dpi=(300, 150), **turned)))) as image:
        dots = (300, 150) if orientation == 3 else (150, 300)
        assert image.info["dpi"] == pytest.approx(dots, rel=1e-3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "JPEG2000"])
def test_a_picture_without_a_density_gets_none(form):
    with Image.open(io.BytesIO(output(written(form)))) as image:
        assert image.info.get("dpi") in (None, (1, 1), (0, 0))


def test_a_density_of_nonsense_is_dropped():
    content = written("TIFF", dpi=(300, 150))
    broken = content.replace(struct.pack("<II", 300, 1), struct.pack("<II", 300, 0))
    with Image.open(io.BytesIO(output(broken))) as image:
        assert image.info["dpi"] == (1, 1)  # Pillow's way to say that there is none


def test_other_programs_find_no_other_metadata(tmp_path, system_program):
    system_program("exiftool")
    paths = []
    for name, (content, _) in WITH_DENSITY.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(output(content))
    assert {path: tags for path, tags in leaks(paths).items() if tags} == {}


# --- positions

PLACE = {1: "N", 2: (48.0, 8.0, 13.56), 3: "W", 4: (11.0, 34.0, 31.8), 5: b"\0", 6: 519.5}
MORE = {16: "T", 17: 271.25, 7: (14.0, 3.0, 2.0), 29: "2026:11:29", 18: "WGS-84", 27: b"secret"}


def with_position(form, fields=PLACE | MORE):
    exif = Image.Exif()
    exif[271] = "Camera Maker"
    exif.get_ifd(ExifTags.IFD.Exif)[0x9003] = "2026:11:29 10:00:00"
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(fields)
    return written(form, exif=exif)


def position(content):
    with Image.open(io.BytesIO(content)) as image:
        return dict(image.getexif().get_ifd(ExifTags.IFD.GPSInfo))


def degrees(parts):
    return sum(float(part) / 60**place for place, part in enumerate(parts))


FORMS = ("JPEG", "PNG", "WEBP", "AVIF")


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_no_position_is_kept_by_default(form, same):
    assert position(output(with_position(form), same=same)) == {}
    content = output(with_position(form), Kept(exif=("DateTimeOriginal",)), same)
    assert position(content) == {}


@pytest.mark.parametrize("form", FORMS)
def test_a_rounded_position_has_two_decimals_and_nothing_else(form):
    found = position(output(with_position(form), Kept(gps="rounded")))
    assert set(found) == {1, 2, 3, 4}
    assert (found[1], degrees(found[2])) == ("N", 48.14)
    assert (found[3], degrees(found[4])) == ("W", 11.58)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_an_exact_position_has_altitude_and_direction(form, same):
    content = output(with_position(form), Kept(gps="true"), same)
    found = position(content)
    assert set(found) == {1, 2, 3, 4, 5, 6, 16, 17}
    assert degrees(found[2]) == pytest.approx(degrees(PLACE[2]))
    assert float(found[6]) == 519.5
    for secret in (b"secret", b"WGS-84", b"2026:11:29", b"Camera Maker"):
        assert secret not in content


@pytest.mark.parametrize(
    "broken",
    [
        {1: "X"},
        {2: (95.0, 0.0, 0.0)},
        {4: (IFDRational(1, 0), 0.0, 0.0)},
        {2: (48.0, 8.0)},
        {3: None},
    ],
)
@pytest.mark.parametrize("gps", ["rounded", "true"])
def test_a_position_of_nonsense_is_dropped(broken, gps):
    fields = {tag: value for tag, value in (PLACE | broken).items() if value is not None}
    assert position(output(with_position("JPEG", fields), Kept(gps=gps))) == {}


# --- panoramas

GPANO = {
    "ProjectionType": "equirectangular",
    "UsePanoramaViewer": "True",
    "FullPanoWidthPixels": "60",
    "FullPanoHeightPixels": "40",
    "PoseHeadingDegrees": "-12.5",
}
SECRETS = {"StitchingSoftware": "Stitcher of Erika", "FirstPhotoDate": "2026-11-29T10:00:00Z"}


def packet(fields, as_elements):
    if as_elements:
        attributes, elements = (
            "",
            "".join(f"<GPano:{name}>{value}</GPano:{name}>" for name, value in fields.items()),
        )
    else:
        attributes = "".join(f' GPano:{name}="{value}"' for name, value in fields.items())
        elements = ""
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        'xmlns:GPano="http://ns.google.com/photos/1.0/panorama/" '
        f'xmlns:dc="http://purl.org/dc/elements/1.1/" dc:creator="Erika"{attributes}>{elements}'
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


def panorama(form, fields=GPANO | SECRETS, as_elements=False, **options):
    xmp = packet(fields, as_elements)
    if form == "PNG":
        return png.with_chunks(written("PNG"), [png.xmp_chunk(xmp)])
    return written(form, xmp=xmp, **options)


def properties(content):
    return dict(re.findall(rb'GPano:(\w+)="([^"]*)"', content))


@pytest.mark.parametrize("as_elements", [False, True])
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_the_projection_of_a_panorama_is_kept_on_request(form, same, as_elements):
    content = panorama(form, as_elements=as_elements)
    assert properties(output(content, same=same)) == {}
    kept = output(content, Kept(xmp=("GPano",)), same)
    expected = {name.encode(): value.encode() for name, value in GPANO.items()}
    assert properties(kept) == expected
    for secret in (b"Erika", b"Stitch", b"2026"):
        assert secret not in kept


@pytest.mark.parametrize("form", FORMS)
def test_another_program_reads_the_projection(form, tmp_path, system_program):
    path = tmp_path / "panorama"
    path.write_bytes(output(panorama(form), Kept(xmp=("GPano",))))
    done = subprocess.run(
        [system_program("exiftool"), "-j", "-G1", path], capture_output=True, check=True
    )
    (found,) = json.loads(done.stdout)
    assert found["XMP-GPano:ProjectionType"] == "equirectangular"


def test_values_that_are_no_numbers_are_dropped():
    fields = GPANO | {"FullPanoWidthPixels": "Erika", "PoseRollDegrees": "1e9&quot;"}
    found = properties(output(panorama("JPEG", fields), Kept(xmp=("GPano",))))
    assert set(found) == {name.encode() for name in GPANO} - {b"FullPanoWidthPixels"}


def test_a_picture_that_is_turned_has_no_panorama():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = panorama("JPEG", exif=exif)
    assert properties(output(content, Kept(xmp=("GPano",)))) == {}


# --- settings


@pytest.mark.parametrize(
    ("stated", "expected"), [("True", "true"), ("rounded", "rounded"), ("FALSE", "false")]
)
def test_the_choices_are_settings(stated, expected, monkeypatch):
    monkeypatch.setenv("VEIL_KEEP_GPS", stated)
    monkeypatch.setenv("VEIL_KEEP_XMP", "gpano")
    kept = WorkerSettings.load().kept_metadata()
    assert (kept.gps, kept.xmp) == (expected, ("GPano",))
    with pytest.raises(SettingsInvalid, match="GPano"):
        WorkerSettings.load(keep_xmp="dc")


def test_the_output_of_heic_is_set_and_in_the_recipe(monkeypatch):
    monkeypatch.setenv("VEIL_HEIF_OUTPUT", "avif")
    kept = WorkerSettings.load().kept_metadata()
    assert kept == Kept(heif="avif")
    assert kept.in_recipe() == {"keep_exif": [], "heif_output": "avif"}
    assert NOTHING.in_recipe() == {"keep_exif": []}


@pytest.mark.parametrize("suffix", ["jpg", ".", "/jpg", ".jpg/a", ".a b", "." + "a" * 40])
def test_a_suffix_that_is_none_is_refused(monkeypatch, suffix):
    monkeypatch.setenv("VEIL_HEIF_SUFFIX", suffix)
    with pytest.raises(SettingsInvalid, match="VEIL_HEIF_SUFFIX"):
        WorkerSettings.load()
