"""Signatures of receipts: they need the key, and any change of a receipt invalidates them."""

import hashlib
import hmac
import json

import pytest

from tasks.errors import SettingsInvalid
from tasks.settings import Settings
from tasks.signatures import Key, canonical, flaw
from tasks.storage.receipts import Receipt

KEY, OTHER = Key.parse("k" * 32), Key.parse("o" * 32)
FIELDS = {
    "status": "anonymized",
    "created": "2026-01-01T00:00:00.000+00:00",
    "source_etag": "é",
    "source_sha256": "0" * 64,
    "source_bytes": 10,
    "output_sha256": "1" * 64,
    "output_bytes": 9,
    "format": "JPEG",
    "width": 3,
    "height": 2,
    "recipe": "5a38d4c65c2c5ab0",
    "faces": [{"box_xyxy": [0, 0, 2, 2], "score": 0.1}],
    "seconds": {"fetch": 1e-05},
    "made_with": {"veil": "0"},
}


def signed(key=KEY):
    return json.loads(Receipt(**FIELDS).to_bytes(key))


def test_the_signature_is_an_hmac_that_other_programs_can_compute():
    fields = signed()
    signature = fields.pop("signature")
    message = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    assert signature["hmac_sha256"] == hmac.digest(b"k" * 32, message, "sha256").hex()
    assert set(signature) == {"key", "hmac_sha256"}


def test_a_signed_receipt_is_read_back_with_its_signature():
    receipt = Receipt.from_bytes(Receipt(**FIELDS).to_bytes(KEY))
    assert receipt.signature["key"] == KEY.id
    assert Receipt.from_bytes(Receipt(**FIELDS).to_bytes()).signature is None


@pytest.mark.parametrize("keys", [(KEY,), (KEY, OTHER), (OTHER, KEY)])
def test_any_of_several_keys_will_do(keys):
    assert flaw(signed(), keys) is None


@pytest.mark.parametrize("name", [*FIELDS, "options", "reason"])
def test_no_field_can_be_changed_or_left_out(name):
    changed = signed() | {name: "other"}
    less = signed()
    del less[name]
    assert flaw(changed, (KEY,)) == flaw(less, (KEY,)) == "bad signature"
    assert flaw(signed() | {"more": 1}, (KEY,)) == "bad signature"


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        (None, "unsigned"),
        ("text", "unsigned"),
        ({}, "unknown key"),
        ({"key": OTHER.id, "hmac_sha256": "00"}, "unknown key"),
        ({"key": KEY.id}, "bad signature"),
        ({"key": KEY.id, "hmac_sha256": None}, "bad signature"),
        ({"key": KEY.id, "hmac_sha256": "é\ud800"}, "bad signature"),
        ({"key": KEY.id, "hmac_sha256": "0" * 64}, "bad signature"),
    ],
)
def test_what_is_no_signature_is_told_apart(signature, expected):
    assert flaw(signed() | {"signature": signature}, (KEY,)) == expected


def test_without_keys_nothing_is_said_of_a_signature():
    assert flaw(signed() | {"signature": "text"}, ()) is None


def test_a_receipt_of_a_version_with_fewer_fields_keeps_its_signature():
    fields = {**FIELDS, "options": {}}
    fields["signature"] = KEY.sign(fields)
    assert flaw(json.loads(json.dumps(fields)), (KEY,)) is None
    assert Receipt.from_bytes(json.dumps(fields).encode()).check == "off"


def test_the_id_of_a_key_is_short_and_no_digest_of_the_secret_alone():
    assert len(KEY.id) == 8
    assert KEY.id != OTHER.id
    assert KEY.id != hashlib.sha256(b"k" * 32).hexdigest()[:8]
    assert "kkk" not in repr(KEY)
    assert canonical(signed()) == canonical(signed(OTHER))


@pytest.mark.parametrize(
    "value", ["short", f"{'a' * 32},short", "b" * 31, "x" * 16 + "," + "y" * 16]
)
def test_a_key_that_is_too_short_is_refused_without_being_shown(value, monkeypatch):
    monkeypatch.setenv("VEIL_RECEIPT_KEY", value)
    with pytest.raises(
        SettingsInvalid, match="VEIL_RECEIPT_KEY: each key needs 32 characters"
    ) as raised:
        Settings.load()
    assert not any(part in str(raised.value) for part in value.split(","))


def test_the_first_key_signs_and_none_is_no_key(monkeypatch):
    monkeypatch.setenv("VEIL_RECEIPT_KEY", f" {'a' * 32} , {'b' * 40},")
    assert [key.secret for key in Settings.load().receipt_keys()] == [b"a" * 32, b"b" * 40]
    monkeypatch.setenv("VEIL_RECEIPT_KEY", "")
    assert Settings.load().receipt_keys() == ()
