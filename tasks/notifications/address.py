"""The address of a target of notifications, and the secrets that sign them."""

import base64
import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

ARN = re.compile(r"arn:aws[a-z-]*:(sqs|sns):([a-z0-9-]+):(\d{12}):([A-Za-z0-9_-]{1,256})")
BASE64_MARK = "whsec_"  # begins secrets in the form of Standard Webhooks


def check(address: str, secrets: Sequence[str]) -> None:
    """Raise ValueError for an address or secrets that can't be used."""
    if ARN.fullmatch(address):
        return
    try:
        parts = urlsplit(address)
        is_web = bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        is_web = False
    if not is_web or parts.scheme not in ("http", "https"):
        raise ValueError(
            "must be the https:// address of a webhook, or the ARN of an SQS queue or an SNS topic"
        )
    if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        raise ValueError(
            "must be an https:// address, because events name pictures: http:// is accepted for "
            "loopback addresses alone, such as 127.0.0.1"
        )
    if not secrets:
        raise ValueError("a webhook needs VEIL_NOTIFY_KEY, with which events are signed")
    for secret in secrets:
        secret_bytes(secret)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def secret_bytes(secret: str) -> bytes:
    """Return the bytes of `secret`. Raises ValueError for one that is not valid base64."""
    if not secret.startswith(BASE64_MARK):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(BASE64_MARK), validate=True)
    except ValueError:
        raise ValueError(f"a key that begins with {BASE64_MARK} must be base64") from None
