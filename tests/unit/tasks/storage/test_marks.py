"""Marks: only somebody with the key can tell the source of an output by them."""

import hashlib

import pytest

from tasks.addresses import ObjectUri
from tasks.signatures import Key, canonical
from tasks.storage.marks import Marks, is_keyed
from tasks.storage.receipts import ETAG, SOURCE, SOURCE_ETAG, ReceiptName

SOURCE_URI, OTHER_URI = ObjectUri("raw", "a.jpg"), ObjectUri("raw", "b.jpg")
MD5 = "9dd4e461268c8034f5c8564e155c67a6"
NEW, OLD, LOST = (Key.parse(letter * 32) for letter in "nol")


def of(marks, source=SOURCE_URI, etag=MD5):
    return {SOURCE: marks.source(source), SOURCE_ETAG: marks.version(source, etag)}


def test_without_a_key_marks_are_what_they_always_were():
    assert of(Marks()) == {SOURCE: hashlib.sha256(b"s3://raw/a.jpg").hexdigest(), SOURCE_ETAG: MD5}


def test_with_a_key_nobody_can_test_a_guess():
    marks = of(Marks([NEW]))
    for guess in ("s3://raw/a.jpg", MD5, f"s3://raw/a.jpg\0{MD5}"):
        for digest in (hashlib.md5, hashlib.sha1, hashlib.sha256):
            assert not any(
                digest(guess.encode()).hexdigest()[:32] in mark for mark in marks.values()
            )
    assert MD5 not in str(marks)
    assert not set(marks.values()) & set(of(Marks([OLD])).values())


def test_the_same_bytes_at_another_address_have_another_mark():
    marks = Marks([NEW])
    assert marks.version(SOURCE_URI, MD5) != marks.version(OTHER_URI, MD5)


@pytest.mark.parametrize("made_with", [(), (OLD,), (NEW, OLD)])
@pytest.mark.parametrize("etag", [MD5, f"{MD5}-12", "odd etag/with=all", "e" * 100, "ü"])
def test_marks_of_every_key_and_of_none_are_recognised(made_with, etag):
    marks, made = Marks([NEW, OLD]), of(Marks(made_with), etag=etag)
    assert marks.is_source(made, SOURCE_URI)
    assert not marks.is_source(made, OTHER_URI)
    # The mark in the metadata, and the mark in the name of a receipt.
    for mark in (made[SOURCE_ETAG], ReceiptName.of("a.jpg", "0" * 16, made[SOURCE_ETAG]).etag):
        assert marks.is_version(mark, SOURCE_URI, etag)
        assert not marks.is_version(mark, SOURCE_URI, etag + "0")
    assert marks.missing_key_of(made) is None


def test_a_mark_of_a_key_that_is_not_known_is_no_ones_and_names_its_key():
    made = of(Marks([LOST]))
    for marks in (Marks(), Marks([NEW])):
        assert not marks.is_source(made, SOURCE_URI)
        assert not marks.is_version(made[SOURCE_ETAG], SOURCE_URI, MD5)
        assert marks.missing_key_of(made) == LOST.id
    assert Marks([NEW, LOST]).missing_key_of(made) is None


@pytest.mark.parametrize(
    "mark", [None, "", MD5, "hmac-", f"hmac-{NEW.id}", f"hmac-{NEW.id}-{'0' * 31}", "hmac-é"]
)
def test_a_mark_without_a_key_belongs_to_nobody(mark):
    assert not is_keyed(mark)
    assert Marks().missing_key(mark) is None
    assert not Marks([NEW]).is_version(mark or "", SOURCE_URI, "other")
    assert not Marks([NEW]).is_source({} if mark is None else {SOURCE: mark}, SOURCE_URI)


def test_a_keyed_mark_stands_in_a_receipts_name_as_it_is():
    assert ETAG.fullmatch(Marks([NEW]).version(SOURCE_URI, "odd etag/with=all"))


def test_no_mark_can_be_passed_off_as_a_signature():
    fields = {"status": "anonymized"}
    assert NEW.digest(canonical(fields)) != NEW.sign(fields)["hmac_sha256"]
    assert NEW.digest(b"") != NEW.sign({})["hmac_sha256"]
