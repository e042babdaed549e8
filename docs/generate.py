"""Write the generated parts of the documentation: the tables of formats and of settings."""

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
    """Return `text` with its tables replaced from the list of formats and the settings classes."""
    text = FORMATS.sub(lambda found: f"{found[1]}{formats.markdown_table()}\n{found[2]}", text)
    return SETTINGS.sub(lambda found: f"{found[1]}{markdown_table()}\n{found[2]}", text)


if __name__ == "__main__":
    for page in (FORMATS_PAGE, SETTINGS_PAGE):
        page.write_text(generated(page.read_text()))
