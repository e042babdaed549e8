"""Outputs keep the EXIF fields that are named, if they are of the right type, and no others."""

import io

import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from tasks.errors import SettingsInvalid
from worker import images
from worker.metadata.exif_fields import KEEPABLE, known_name
from worker.metadata.kept import Kept
from worker.settings import WorkerSettings

SECRET = "Erika Mustermann"
VALUES = {
    "date": "2026:11:24 08:09:10",
    "offset": "+01:00",
    "whole": 3,
    "ratio": IFDRational(1, 250),
}
FORMS = ["JPEG", "PNG", "WEBP", "AVIF"]


def picture(form, fields=None, **options):
    exif = Image.Exif()
    exif[0x010E] = exif[0x013B] = SECRET  # ImageDescription, Artist
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    inner |= {tag: VALUES[kind] for tag, kind in KEEPABLE.values()} if fields is None else fields
    inner[0x927C] = inner[0xA431] = SECRET  # MakerNote, BodySerialNumber
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({1: "N", 2: (48.0, 8.0, 13.5)})
    target = io.BytesIO()
    Image.new("RGB", (40, 30), (90, 120, 150)).save(target, form, exif=exif, **options)
    return target.getvalue()


def kept(content, names, same=False):
    """Return the fields of the output, by number. With `same`, no pixel was changed."""
    decoded = images.decode(content, 10**6, keep=Kept(exif=names))
    frames = [frame.pixels if same else frame.pixels.copy() for frame in decoded.frames]
    out = images.encode(decoded, frames)
    assert SECRET.encode() not in out
    exif = Image.open(io.BytesIO(out)).getexif()
    assert not exif.get_ifd(ExifTags.IFD.GPSInfo)
    assert not exif.get_ifd(ExifTags.IFD.IFD1)
    assert not {0x010E, 0x013B, 0x0112} & set(exif)
    return dict(exif.get_ifd(ExifTags.IFD.Exif))


@pytest.mark.parametrize("form", FORMS)
def test_by_default_none_is_kept(form):
    assert kept(picture(form), ()) == {}


@pytest.mark.parametrize("form", FORMS)
def test_a_named_field_is_kept_and_no_other(form):
    assert kept(picture(form), ("DateTimeOriginal", "FocalLength")) == {
        0x9003: VALUES["date"],
        0x920A: VALUES["ratio"],
    }


@pytest.mark.parametrize("name", KEEPABLE)
@pytest.mark.parametrize("same", [False, True], ids=["masked", "untouched"])
def test_every_field_of_the_list_can_be_kept(name, same):
    tag, kind = KEEPABLE[name]
    assert kept(picture("JPEG"), (name,), same) == {tag: VALUES[kind]}


@pytest.mark.parametrize(
    "value", [SECRET, "2026:11:24 " + SECRET, b"2026", "2026-11-24 08:09:10", ""]
)
def test_text_that_is_no_date_is_not_kept_for_one(value):
    assert kept(picture("JPEG", {0x9003: value}), ("DateTimeOriginal",)) == {}


@pytest.mark.parametrize("value", [SECRET, SECRET.encode()])
@pytest.mark.parametrize(
    "name", ["FocalLength", "Flash", "OffsetTimeOriginal", "PhotographicSensitivity"]
)
def test_text_is_not_kept_in_the_place_of_a_number(name, value):
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[0x9286] = value  # UserComment, renamed below to the field
    body = (
        exif.tobytes()
        .replace(b"\x92\x86", KEEPABLE[name][0].to_bytes(2))
        .replace(b"\x86\x92", KEEPABLE[name][0].to_bytes(2, "little"))
    )
    target = io.BytesIO()
    Image.new("RGB", (40, 30)).save(target, "JPEG", exif=body)
    assert kept(target.getvalue(), (name,)) == {}


def test_the_turn_of_a_picture_is_never_kept_for_it_is_done():
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(ExifTags.IFD.Exif)[0x9003] = VALUES["date"]
    target = io.BytesIO()
    Image.new("RGB", (40, 30)).save(target, "JPEG", exif=exif)
    assert kept(target.getvalue(), ("DateTimeOriginal",)) == {0x9003: VALUES["date"]}


def test_names_are_taken_in_any_case_and_by_their_older_name():
    assert known_name("datetimeoriginal") == "DateTimeOriginal"
    assert known_name("ISOSpeedRatings") == "PhotographicSensitivity"


def test_the_setting_takes_names_with_commas(monkeypatch):
    monkeypatch.setenv("VEIL_KEEP_EXIF", "FocalLength, DateTimeOriginal,,focallength")
    assert WorkerSettings.load().keep_exif == ("DateTimeOriginal", "FocalLength")


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("DateTimeOrignal", "did you mean DateTimeOriginal?"),
        ("ISOSpeedRating", "did you mean PhotographicSensitivity?"),
        ("GPSLatitude", "not a field that may be kept"),
        ("BodySerialNumber", "not a field that may be kept"),
        ("MakerNote", "not a field that may be kept"),
        ("Artist", "not a field that may be kept"),
    ],
)
def test_a_name_that_may_not_be_kept_is_refused_with_a_suggestion(monkeypatch, value, hint):
    monkeypatch.setenv("VEIL_KEEP_EXIF", value)
    with pytest.raises(SettingsInvalid, match="VEIL_KEEP_EXIF") as caught:
        WorkerSettings.load()
    assert hint in str(caught.value)
