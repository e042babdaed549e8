"""Write the generated tables of the documentation: the formats and the settings."""

import re
from pathlib import Path

from worker.images import formats
from worker.settings import markdown_table

DOCS = Path(__file__).resolve().parent
FORMATS_PAGE = DOCS / "formats.md"
SETTINGS_PAGE = DOCS / "settings.md"
SETTINGS = re.compile(
    r"(<!-- settings: made by `make docs` -->\n).*?(<!-- end of settings -->)", re.DOTALL
)
FORMATS = re.compile(
    r"(<!-- formats: made by `make docs` -->\n).*?(<!-- end of formats -->)", re.DOTALL
)


def generated(text: str) -> str:
    """Return `text` with the tables between the markers generated anew."""
    text = FORMATS.sub(lambda match: f"{match[1]}{formats.markdown_table()}\n{match[2]}", text)
    return SETTINGS.sub(lambda match: f"{match[1]}{markdown_table()}\n{match[2]}", text)


if __name__ == "__main__":
    for page in (FORMATS_PAGE, SETTINGS_PAGE):
        page.write_text(generated(page.read_text()))
