"""S3 addresses: their texts, their literal keys, and the ends of prefixes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.addresses import MAX_KEY_BYTES, ObjectUri, PrefixUri
from tasks.errors import InvalidRequest

BUCKETS = st.from_regex(r"[a-z0-9][a-z0-9.-]{1,20}[a-z0-9]", fullmatch=True)
KEYS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60).filter(
    lambda key: not key.endswith("/")
)
RELATIVE_PREFIXES = st.text("ab/=+% ", max_size=8)


@pytest.mark.parametrize(
    "key",
    [
        "a.jpg",
        "with space.jpg",
        "two  spaces.jpg",
        "a+b.jpg",
        "100%.jpg",
        "%41.jpg",
        "Grüße/日本/🙂.jpg",
        "day=1/a.jpg",
        "a?b#c.jpg",
        "/leading.jpg",
        "a//b.jpg",
        "s3://raw/a.jpg",
        "line\nbreak.jpg",
    ],
)
def test_a_key_is_taken_literally(key):
    uri = ObjectUri.parse(f"s3://raw/{key}")
    assert (uri.bucket, uri.key) == ("raw", key)
    assert str(uri) == f"s3://raw/{key}"


@given(BUCKETS, KEYS)
def test_every_address_survives_being_written_and_read(bucket, key):
    uri = ObjectUri(bucket, key)
    assert ObjectUri.parse(str(uri)) == uri


@pytest.mark.parametrize(
    "text", ["k" * MAX_KEY_BYTES, "é" * (MAX_KEY_BYTES // 2), "🙂" * (MAX_KEY_BYTES // 4)]
)
def test_a_key_of_1024_bytes_is_an_address(text):
    assert ObjectUri.parse(f"s3://raw/{text}").key == text


@pytest.mark.parametrize(
    "text", ["k" * (MAX_KEY_BYTES + 1), "é" * (MAX_KEY_BYTES // 2) + "k", "k" * 1_000_000]
)
def test_a_key_of_more_than_1024_bytes_is_refused_in_one_bounded_line(text):
    with pytest.raises(InvalidRequest, match="S3 allows 1024") as caught:
        ObjectUri.parse(f"s3://raw/{text}")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a.jpg",
        "raw/a.jpg",
        "/etc/passwd",
        "./a.jpg",
        "C:\\a.jpg",
        "file:///etc/passwd",
        "http://raw/a.jpg",
        "https://raw.s3.amazonaws.com/a.jpg",
        "S3://raw/a.jpg",
        "s3:/raw/a.jpg",
        "s3:raw/a.jpg",
        "s3a://raw/a.jpg",
        " s3://raw/a.jpg",
        "s3:///a.jpg",
        "s3://",
        "s3://ab/a.jpg",
        "s3://RAW/a.jpg",
        "s3://-raw/a.jpg",
        "s3://raw-/a.jpg",
        "s3://user:secret@raw/a.jpg",
        "s3://raw:9000/a.jpg",
        "s3://räw/a.jpg",
        f"s3://{'b' * 64}/a.jpg",
        "\x00",
    ],
)
@pytest.mark.parametrize("kind", [ObjectUri, PrefixUri])
def test_an_invalid_s3_address_is_refused(kind, text):
    with pytest.raises(InvalidRequest, match="is not an address"):
        kind.parse(text)


@pytest.mark.parametrize("text", ["s3://raw", "s3://raw/", "s3://raw/folder/", "s3://raw//"])
def test_an_address_without_an_object_is_refused(text):
    with pytest.raises(InvalidRequest, match="names no object"):
        ObjectUri.parse(text)


@pytest.mark.parametrize("text", ["s3://raw/\ud800.jpg", "s3://raw/a\udcff", "s3://\ud800/a.jpg"])
def test_a_lone_surrogate_is_refused_in_text_that_can_be_stored(text):
    with pytest.raises(InvalidRequest) as caught:
        ObjectUri.parse(text)
    assert str(caught.value).encode("utf-8")


@given(st.text())
def test_any_text_is_an_address_or_refused_in_one_line(text):
    for kind in (ObjectUri, PrefixUri):
        try:
            outcome = str(kind.parse(text))
        except InvalidRequest as error:
            outcome = f"refused: {error}"
            assert len(outcome.splitlines()) == 1
        assert outcome.startswith(("s3://", "refused: "))


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("s3://raw", ""),
        ("s3://raw/", ""),
        ("s3://raw/in", "in/"),
        ("s3://raw/in/", "in/"),
        ("s3://raw/in//", "in/"),
        ("s3://raw/a/b", "a/b/"),
        ("s3://raw/day=1", "day=1/"),
    ],
)
def test_a_prefix_ends_at_a_component(text, prefix):
    assert PrefixUri.parse(text) == PrefixUri("raw", prefix)


@pytest.mark.parametrize(
    ("place", "uri", "inside"),
    [
        ("s3://raw", "s3://raw/a.jpg", True),
        ("s3://raw/pre", "s3://raw/pre/a.jpg", True),
        ("s3://raw/pre/", "s3://raw/pre/deep/a.jpg", True),
        ("s3://raw/pre", "s3://raw/prefix/a.jpg", False),
        ("s3://raw/pre", "s3://raw/pre", False),
        ("s3://raw/pre", "s3://raw/PRE/a.jpg", False),
        ("s3://raw/pre", "s3://raw/a/pre/a.jpg", False),
        ("s3://raw/pre", "s3://raw-2/pre/a.jpg", False),
        ("s3://raw", "s3://raw2/a.jpg", False),
    ],
)
def test_a_place_contains_what_is_below_it_and_nothing_beside_it(place, uri, inside):
    assert PrefixUri.parse(place).contains(ObjectUri.parse(uri)) is inside


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("s3://raw", "s3://raw", True),
        ("s3://raw", "s3://raw/in", True),
        ("s3://raw/a", "s3://raw/a/b", True),
        ("s3://raw/pre", "s3://raw/prefix", False),
        ("s3://raw/a", "s3://raw/b", False),
        ("s3://raw/a", "s3://clean/a", False),
        ("s3://raw", "s3://clean", False),
    ],
)
def test_places_overlap_when_one_is_within_the_other(one, other, overlap):
    assert PrefixUri.parse(one).overlaps(PrefixUri.parse(other)) is overlap
    assert PrefixUri.parse(other).overlaps(PrefixUri.parse(one)) is overlap


@given(RELATIVE_PREFIXES, RELATIVE_PREFIXES, KEYS)
def test_an_object_in_two_places_means_that_they_overlap(first, second, key):
    one, other = PrefixUri.parse(f"s3://raw/{first}"), PrefixUri.parse(f"s3://raw/{second}")
    for uri in (one.join(key), other.join(key)):
        if one.contains(uri) and other.contains(uri):
            assert one.overlaps(other)


def test_a_prefix_that_ends_in_a_name_is_written_with_a_star():
    assert str(PrefixUri("clean", ".veil/receipts/a.jpg.")) == "s3://clean/.veil/receipts/a.jpg.*"


@given(RELATIVE_PREFIXES, KEYS)
def test_a_joined_key_is_inside_and_comes_back_as_it_was(prefix, key):
    place = PrefixUri.parse(f"s3://raw/{prefix}")
    joined = place.join(key)
    assert place.contains(joined)
    assert place.relative(joined) == key


@pytest.mark.parametrize("key", ["..", ".", "../up.jpg", "a/../b.jpg", "a/./b.jpg", "a/.."])
def test_a_key_that_a_file_system_would_walk_is_refused(key):
    with pytest.raises(InvalidRequest, match="between its slashes"):
        ObjectUri.parse(f"s3://raw/{key}")


def test_dots_within_a_name_are_nothing_special():
    assert ObjectUri.parse("s3://raw/.hidden/a..b/...").key == ".hidden/a..b/..."
