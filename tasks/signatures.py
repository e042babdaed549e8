"""Signatures of receipts: who can write to the outputs' bucket can't forge one without the key."""

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

FIELD = "signature"  # of a receipt
SMALLEST_KEY = (
    32  # characters: as many bytes as SHA-256 gives, the least that RFC 2104 advises (section 3)
)
ID_DIGITS = 8
ID_MESSAGE = b"veil receipt key"
DIGEST_DOMAIN = b"veil digest\0"  # begins no receipt, which is a JSON object

Flaw = Literal["unsigned", "unknown key", "bad signature"]


@dataclass(frozen=True)
class Key:
    """A secret that receipts are signed with."""

    secret: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError, without the text, for a key that is too short."""
        if len(text) < SMALLEST_KEY:
            raise ValueError(
                f"each key needs {SMALLEST_KEY} characters or more, as `openssl rand -hex 32` makes them"
            )
        return cls(text.encode("utf-8", "surrogateescape"))

    @property
    def id(self) -> str:
        """What tells keys apart, and tells nothing of the secret."""
        return self._digest(ID_MESSAGE)[:ID_DIGITS]

    def sign(self, fields: Mapping[str, Any]) -> dict[str, str]:
        """The signature of a receipt's `fields`: the key's id, and the HMAC in hex."""
        return {"key": self.id, "hmac_sha256": self._digest(canonical(fields))}

    def digest(self, message: bytes) -> str:
        """Return the keyed digest of `message` in hex (HMAC-SHA-256), which is no signature of
        anything.
        """
        return self._digest(DIGEST_DOMAIN + message)

    def _digest(self, message: bytes) -> str:
        return hmac.new(self.secret, message, hashlib.sha256).hexdigest()


def canonical(fields: Mapping[str, Any]) -> bytes:
    """The bytes of a receipt that are signed: all but its signature, as JSON in ASCII, sorted and
    without spaces.
    """
    signed = {name: value for name, value in fields.items() if name != FIELD}
    return json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()


def flaw(fields: Mapping[str, Any], keys: Sequence[Key]) -> Flaw | None:
    """What is wrong with the signature in `fields`, by `keys`; nothing if there are no keys to
    judge it by.
    """
    if not keys:
        return None
    signature = fields.get(FIELD)
    if not isinstance(signature, dict):
        return "unsigned"
    for key in keys:
        expected = key.sign(fields)
        if signature.get("key") == expected["key"]:
            said = str(signature.get("hmac_sha256"))
            good = hmac.compare_digest(
                said.encode("utf-8", "replace"), expected["hmac_sha256"].encode()
            )
            return None if good else "bad signature"
    return "unknown key"
