"""Receipts: their names and the facts in them, and their files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.addresses import MAX_KEY_BYTES, ObjectUri, PrefixUri
from tasks.storage import receipts
from tasks.storage.receipts import Receipt, ReceiptName
from tasks.storage.s3 import StoredObject

CLEAN = PrefixUri("clean", "")
RECIPE = "5a38d4c65c2c5ab0"
ETAG = "9dd4e461268c8034f5c8564e155c67a6"

keys = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60).filter(
    lambda key: key[-1] != "/"
)


@given(key=keys, etag=st.text(min_size=1, max_size=80))
def test_the_name_of_a_receipt_tells_what_it_is_of(key, etag):
    made = ReceiptName.of(key, RECIPE, etag)
    uri = receipts.uri(CLEAN, made)
    assert uri.key.startswith(receipts.prefix(CLEAN, key))
    if not receipts.is_long(CLEAN, key):
        assert receipts.parse(uri.key.removeprefix(receipts.FOLDER)) == made


@pytest.mark.parametrize(
    "key", ["a.jpg", f"a.jpg.{RECIPE}.{ETAG}.json", "2026/07/ü +%20.jpg", "a\nb.jpg", ".json"]
)
def test_keys_that_look_like_receipts_are_told_apart(key):
    uri = receipts.uri(CLEAN, ReceiptName.of(key, RECIPE, ETAG))
    assert receipts.parse(uri.key.removeprefix(receipts.FOLDER)) == ReceiptName(key, RECIPE, ETAG)


@pytest.mark.parametrize("etag", ["d41d8cd98f00b204e9800998ecf8427e-12", "abc_DEF-1"])
def test_usual_etags_can_be_read_in_the_name(etag):
    assert f".{etag}.json" in str(receipts.uri(CLEAN, ReceiptName.of("a.jpg", RECIPE, etag)))


@pytest.mark.parametrize("place", [CLEAN, PrefixUri("clean", "x" * 200 + "/")])
@pytest.mark.parametrize("size", [100, 167, 168, 255, 700, 860, 1000, MAX_KEY_BYTES])
@pytest.mark.parametrize("sliced", [True, False])
def test_every_key_that_s3_allows_has_a_receipt_that_s3_allows(place, size, sliced):
    key = ("/".join(["k" * 49] * 30) if sliced else "k" * 1100)[
        : size - len(place.prefix) - 1
    ] + "e"
    uri = receipts.uri(place, ReceiptName.of(key, RECIPE, "e" * 64))
    assert len(uri.key.encode()) <= MAX_KEY_BYTES
    assert len(uri.key.rpartition("/")[2].encode()) <= receipts.MAX_PART_BYTES
    assert place.contains(uri)
    assert ObjectUri.parse(str(uri)) == uri


def test_a_recipe_with_options_is_in_the_name_and_one_of_its_recipe():
    made = ReceiptName.of("a.jpg", f"{RECIPE}-0123abcd", ETAG)
    assert receipts.parse(receipts.uri(CLEAN, made).key.removeprefix(receipts.FOLDER)) == made
    assert receipts.is_of_recipe(made.recipe, RECIPE)
    assert receipts.is_of_recipe(RECIPE, RECIPE)
    assert receipts.is_of_recipe(made.recipe, None)
    assert not receipts.is_of_recipe(made.recipe, "0" * 16)


def test_another_object_is_not_taken_for_a_receipt():
    for name in (
        "",
        "a.jpg",
        f"a.jpg.{RECIPE}.json",
        f".{RECIPE}.{ETAG}.json",
        f"a.{RECIPE}.{ETAG}.json.bak",
    ):
        assert receipts.parse(name) is None, name


def test_a_receipt_survives_its_file():
    receipt = Receipt(
        status="held",
        created="2026-01-01T00:00:00.000+00:00",
        source_etag=ETAG,
        source_sha256="0" * 64,
        source_bytes=10,
        output_sha256=None,
        output_bytes=None,
        format="JPEG",
        width=3,
        height=2,
        recipe=RECIPE,
        faces=[{"box_xyxy": [0, 0, 2, 2], "score": 0.5}, {"box_xyxy": [0, 0, 1, 1], "score": 0.25}],
        seconds={"fetch": 0.1},
        made_with={"veil": "0"},
    )
    assert Receipt.from_bytes(receipt.to_bytes()) == receipt
    assert receipt.lowest_score == 0.25


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"status": 1}', b"\xff", b"[" * 100_000])
def test_an_invalid_receipt_is_an_error(content):
    with pytest.raises(ValueError, match=r"."):
        Receipt.from_bytes(content)


SOURCE = StoredObject(ObjectUri("raw", "a.jpg"), ETAG, 20)
OUTPUT = StoredObject(ObjectUri("clean", "a.jpg"), "0" * 32, 10)
COPY = StoredObject(ObjectUri("clean", "a.jpg"), ETAG, 20)


@given(
    key=keys,
    etag=st.text("0123456789abcdef", min_size=1, max_size=40),
    size=st.integers(0, 10**12),
    copy=st.booleans(),
)
def test_the_size_of_an_output_is_in_the_name_of_its_receipt(key, etag, size, copy):
    uri = receipts.uri(CLEAN, ReceiptName.of(key, RECIPE, etag, size, copy))
    if not receipts.is_long(CLEAN, key):
        named = receipts.parse(uri.key.removeprefix(receipts.FOLDER))
        assert (named, named.size, named.is_copy) == (ReceiptName(key, RECIPE, etag), size, copy)


def test_a_name_without_room_for_the_size_leaves_it_out():
    uri = receipts.uri(CLEAN, ReceiptName.of("a.jpg", RECIPE, "e" * 64, 10))
    assert receipts.parse(uri.key.removeprefix(receipts.FOLDER)).size is None


@pytest.mark.parametrize(
    ("size", "is_copy", "output", "expected"),
    [
        (10, False, OUTPUT, True),
        (11, False, OUTPUT, False),
        (0, False, StoredObject(OUTPUT.uri, "0" * 32, 0), False),
        (20, False, COPY, False),
        (20, True, COPY, True),
        (None, False, OUTPUT, True),
        (None, False, COPY, False),
    ],
)
def test_a_name_tells_what_was_put_over_its_output(size, is_copy, output, expected):
    assert (
        ReceiptName.of("a.jpg", RECIPE, ETAG, size, is_copy).may_be_of(SOURCE, output) is expected
    )


def test_metadata_give_a_receipt_no_other_address():
    hostile = StoredObject(
        OUTPUT.uri, "e", 10, {receipts.RECIPE: "../../x", receipts.SOURCE_ETAG: "../../x"}
    )
    made = ReceiptName.of_output("a.jpg", hostile)
    assert "../" not in receipts.uri(CLEAN, made).key
