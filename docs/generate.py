"""Writes the generated parts of the README: the table of settings."""

import re
from pathlib import Path

from worker.settings import markdown_table

README = Path(__file__).resolve().parents[1] / "README.md"
SETTINGS = re.compile(r"(<!-- settings: made by `make docs` -->\n).*?(<!-- end of settings -->)", re.DOTALL)


def generated(text: str) -> str:
    """`text` with its table of settings made anew from the settings classes."""
    return SETTINGS.sub(lambda found: f"{found[1]}{markdown_table()}\n{found[2]}", text)


if __name__ == "__main__":
    README.write_text(generated(README.read_text()))
