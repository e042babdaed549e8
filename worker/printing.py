"""Text of others on a terminal."""


def printable(text: str) -> str:
    """Return `text` for one line of a terminal, whatever it holds."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
