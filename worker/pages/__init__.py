"""Pages for people: their templates, styles and scripts, and the files that hold all of a page.

No page loads anything from another place, and nothing in a page is built: the files here are what a
browser gets.
"""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

from tornado.escape import xhtml_escape
from tornado.template import Loader

from worker.printing import counted

FOLDER = Path(__file__).parent
SLASH = re.compile("(?<![:/])/(?!/)")  # but those of s3://


@cache
def loader() -> Loader:
    """Return the loader of the templates, which escape everything that is put into them."""
    namespace = {"grouped": grouped, "counted": counted, "breakable": breakable}
    return Loader(str(FOLDER), autoescape="xhtml_escape", namespace=namespace)


def text(name: str) -> str:
    """Return the style or the script `name`."""
    return (FOLDER / name).read_text()


def self_contained(template: str, scripts: tuple[str, ...], **values: Any) -> bytes:
    """Return a page as one file, with the common style and `scripts` in it.

    Its own policy allows these, pictures that are in the file, and nothing else.
    """
    style = text("style.css")
    script = "\n".join(text(name) for name in scripts)
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    page: bytes = (
        loader().load(template).generate(style=style, script=script, policy=policy, **values)
    )
    return page


def data_uri(jpeg: bytes) -> str:
    """Return a JPEG as an address that holds it."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def grouped(number: float, digits: int = 0) -> str:
    """Return a number with commas between thousands."""
    return f"{number:,.{digits}f}"


def breakable(address: str) -> str:
    """Return an address as HTML, whose lines may break after its slashes."""
    return SLASH.sub("/<wbr>", xhtml_escape(address))


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
