"""The examples of Python on the pages of the documentation."""

import re
from pathlib import Path

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples(page: Path) -> list[str]:
    """Return the examples of a page in their order."""
    return BLOCK.findall(page.read_text())


def example(page: Path, part: str) -> str:
    """Return the only example of a page that contains `part`."""
    (block,) = (block for block in examples(page) if part in block)
    return block
