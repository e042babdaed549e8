"""The text that Flower and its events show for the arguments of a message."""

from collections.abc import Sequence
from typing import Any

from celery.utils.saferepr import saferepr

MAX_SHOWN = 2500  # characters, enough for two of the longest addresses


def shown(arguments: Sequence[Any]) -> str:
    """Return the arguments of a message as Flower shows them: addresses without quotation marks.

    The text is part of the message and of its events, so it is cut after MAX_SHOWN characters.
    """
    addresses = [address for address in arguments[:2] if address is not None]
    if all(isinstance(address, str) for address in addresses):
        text = " ".join((" → ".join(addresses), *map(str, arguments[2:])))
    else:
        text = saferepr(tuple(arguments), MAX_SHOWN)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"
