"""The text by which Flower and its events show the arguments of a message."""

from collections.abc import Sequence
from typing import Any

from celery.utils.saferepr import saferepr

MOST_SHOWN = 2500  # characters; two of the longest addresses fit


def shown(arguments: Sequence[Any]) -> str:
    """Return the arguments of a message as Flower shows them, in the place of
    ``('s3://raw/a.jpg',)``.

    A longer text than MOST_SHOWN is cut: it is part of the message and of its events.
    """
    addresses = [address for address in arguments[:2] if address is not None]
    if all(isinstance(address, str) for address in addresses):
        text = " ".join((" → ".join(addresses), *map(str, arguments[2:])))
    else:
        text = saferepr(tuple(arguments), MOST_SHOWN)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 1]}…"
