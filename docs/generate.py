"""Writes the generated parts of the README: the tables of formats and of settings."""

import re
from pathlib import Path

from worker.images import formats
from worker.settings import markdown_table

README = Path(__file__).resolve().parents[1] / "README.md"
SETTINGS = re.compile(r"(<!-- settings: made by `make docs` -->\n).*?(<!-- end of settings -->)", re.DOTALL)

FORMATS = re.compile(r"(<!-- formats: made by `make docs` -->\n).*?(<!-- end of formats -->)", re.DOTALL)


def generated(text: str) -> str:
    """`text` with its tables made anew, from the list of formats and from the settings classes."""
    text = FORMATS.sub(lambda found: f"{found[1]}{formats.markdown_table()}\n{found[2]}", text)
    return SETTINGS.sub(lambda found: f"{found[1]}{markdown_table()}\n{found[2]}", text)


if __name__ == "__main__":
    README.write_text(generated(README.read_text()))
