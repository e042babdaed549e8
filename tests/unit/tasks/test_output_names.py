"""The keys of outputs follow from those of their sources, and only some lead back to them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.output_names import HEIF_SUFFIXES, OutputNames
from tasks.signatures import Key

KEY, OTHER_KEY = Key.parse("k" * 32), Key.parse("l" * 32)
HASHED = OutputNames(hash_key=KEY)


@pytest.mark.parametrize(
    ("source", "suffix", "expected"),
    [
        ("a.heic", "", "a.heic"),
        ("a.heic", ".jpg", "a.jpg"),
        ("2026/IMG_0001.HEIC", ".jpg", "2026/IMG_0001.jpg"),
        ("a.b.HIF", ".avif", "a.b.avif"),
        ("a.heif", ".heic.jpg", "a.heic.jpg"),
        ("a.jpg", ".avif", "a.jpg"),
        ("a.heic/b", ".jpg", "a.heic/b"),
        ("heic", ".jpg", "heic"),
    ],
)
def test_an_output_of_heic_has_the_suffix(source, suffix, expected):
    assert OutputNames(suffix).output_key(source) == expected


@given(
    stem=st.text("a./-", max_size=5),
    ending=st.sampled_from((*HEIF_SUFFIXES, ".jpg", ".png", "")),
    suffix=st.sampled_from(("", ".jpg", ".avif", ".heic.jpg")),
)
def test_an_output_leads_back_to_its_source(stem, ending, suffix):
    source, names = stem + ending, OutputNames(suffix)
    assert source in names.source_keys(names.output_key(source))
    assert names.may_be_default(names.output_key(source))


@pytest.mark.parametrize(
    ("source", "heif_suffix", "kept"),
    [
        ("Smith/John 1980.JPG", "", ".jpg"),
        ("Smith/John 1980.jpg.PNG", "", ".png"),
        ("Smith/John.HEIC", "", ".heic"),
        ("Smith/John.HEIC", ".jpg", ".jpg"),
        ("Smith/John.hif", ".avif", ".avif"),
        ("photos/J. Smith", "", ""),
        ("photos/john.smith", "", ""),
        ("photos.jpg/john", "", ""),
        ("写真/太郎.webp", "", ".webp"),
    ],
)
def test_a_hashed_name_keeps_the_suffix_of_a_picture_and_nothing_else(source, heif_suffix, kept):
    names = OutputNames(heif_suffix, KEY)
    output = names.output_key(source)
    assert re.fullmatch("[0-9a-f]{32}" + re.escape(kept), output)
    assert names.may_be_default(output)


def test_a_hashed_name_keeps_the_suffixes_of_its_route():
    names = OutputNames("", KEY, (".camera7", "-final.jpg"))
    assert names.output_key("a/b.Camera7").endswith(".camera7")
    assert names.may_be_default(names.output_key("a-FINAL.jpg"))


def test_hashed_names_are_those_of_the_first_version_with_them():
    # Another result would rename every output that exists.
    assert HASHED.output_key("Smith/John 1980.jpg") == "80de647d2ca5e6dfca11637bc36e21f1.jpg"


def test_hashed_names_differ_by_key_folder_suffix_and_secret():
    sources = ["a.jpg", "A.jpg", "a.JPG", "a.png", "b/a.jpg", "b//a.jpg", "a"]
    names = {HASHED.output_key(source) for source in sources}
    names |= {OutputNames(hash_key=OTHER_KEY).output_key(source) for source in sources}
    assert len({name[:32] for name in names}) == 2 * len(sources)


def test_an_object_with_another_name_is_no_output_by_default():
    assert not HASHED.may_be_default("second/" + HASHED.output_key("a.jpg"))
    assert not HASHED.may_be_default("index.html")


def test_the_names_of_outputs_show_no_secret():
    assert "kkk" not in repr(HASHED)
