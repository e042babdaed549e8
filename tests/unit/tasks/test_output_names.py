"""The keys of outputs follow from those of their sources, and lead back to them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.output_names import HEIF_SUFFIXES, output_key, source_keys


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
    assert output_key(source, suffix) == expected


@given(
    stem=st.text("a./-", max_size=5),
    ending=st.sampled_from((*HEIF_SUFFIXES, ".jpg", ".png", "")),
    suffix=st.sampled_from(("", ".jpg", ".avif", ".heic.jpg")),
)
def test_an_output_leads_back_to_its_source(stem, ending, suffix):
    source = stem + ending
    assert source in source_keys(output_key(source, suffix), suffix)
