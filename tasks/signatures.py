"""Signatures of receipts.

Write access to the bucket of the outputs does not suffice to forge a receipt: that takes the key.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

FIELD = "signature"  # the field of a receipt that holds its signature
# Characters. RFC 2104, section 3, advises keys of at least the hash's length, 32 bytes for SHA-256.
MIN_KEY_LENGTH = 32
ID_DIGITS = 8  # hexadecimal digits of a key's id
ID_MESSAGE = b"veil receipt key"  # the message whose HMAC begins with a key's id
# Begins every message of Key.digest. No receipt begins so, because receipts are JSON objects, and a
# digest is therefore never a valid signature.
DIGEST_DOMAIN = b"veil digest\0"

Flaw = Literal["unsigned", "unknown key", "bad signature"]


@dataclass(frozen=True)
class Key:
    """A secret that receipts are signed with."""

    secret: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the key `text`. Raises ValueError, without the text, if it is too short."""
        if len(text) < MIN_KEY_LENGTH:
            raise ValueError(
                f"each key needs {MIN_KEY_LENGTH} characters or more, "
                "as `openssl rand -hex 32` makes them"
            )
        return cls(text.encode("utf-8", "surrogateescape"))

    @property
    def id(self) -> str:
        """Return an id that distinguishes keys and reveals nothing about the secret."""
        return self._digest(ID_MESSAGE)[:ID_DIGITS]

    def sign(self, fields: Mapping[str, Any]) -> dict[str, str]:
        """Return the signature of a receipt's `fields`: the key's id, and the HMAC in hex."""
        return {"key": self.id, "hmac_sha256": self._digest(canonical(fields))}

    def digest(self, message: bytes) -> str:
        """Return the keyed digest of `message` in hex (HMAC-SHA-256). It is never a signature."""
        return self._digest(DIGEST_DOMAIN + message)

    def _digest(self, message: bytes) -> str:
        return hmac.new(self.secret, message, hashlib.sha256).hexdigest()


def canonical(fields: Mapping[str, Any]) -> bytes:
    """Return the bytes of a receipt that are signed.

    They are all fields except the signature, as JSON in ASCII, with sorted keys and without spaces.
    """
    signed = {name: value for name, value in fields.items() if name != FIELD}
    return json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()


def flaw(fields: Mapping[str, Any], keys: Sequence[Key]) -> Flaw | None:
    """Return the flaw of the signature in a receipt's `fields`, or None if it is valid.

    Without `keys` no signature can be judged, and the result is None.
    """
    if not keys:
        return None
    signature = fields.get(FIELD)
    if not isinstance(signature, dict):
        return "unsigned"
    for key in keys:
        expected = key.sign(fields)
        if signature.get("key") == expected["key"]:
            digest = str(signature.get("hmac_sha256")).encode("utf-8", "replace")
            is_valid = hmac.compare_digest(digest, expected["hmac_sha256"].encode())
            return None if is_valid else "bad signature"
    return "unknown key"
