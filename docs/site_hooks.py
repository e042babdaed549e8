"""Hooks of MkDocs: pages of the site for files outside of docs/, and diagrams without a network.

Links in Markdown are relative to the repository, so that they work on its host. In the site,
README.md is the start page, the other Markdown files of the root have pages too, and each linked
file of another kind, such as `docker/prometheus.yml`, becomes a page with its text.
"""

import os
import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url
from pymdownx.slugs import slugify
from pymdownx.superfences import fence_code_format

ROOT = Path(__file__).resolve().parent.parent
# The page of each Markdown file in the root.
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
ROOT_FILES = {page: name for name, page in ROOT_PAGES.items()}
SOURCE_FOLDER = "source"
# `make docs` names the script. Without it the theme loads Mermaid from the network.
MERMAID = ROOT / os.environ.get("MERMAID", ".docs/missing")
MERMAID_URI = "assets/mermaid.min.js"
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")
# A reference of the site, which the repository's host would show as it is written.
REFERENCE = re.compile(r"<!-- (:::.*?)\s*-->", re.DOTALL)
LANGUAGES = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Give headings the anchors that they have on the repository's host, and draw diagrams."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    config.mdx_configs["pymdownx.superfences"] = {
        "custom_fences": [{"name": "mermaid", "class": "mermaid", "format": fence_code_format}]
    }
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages of files outside of docs/, and the script for diagrams."""
    for name, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    for path in sorted(_linked_sources(files)):
        files.append(File.generated(config, _source_page(path), content=_as_page(path)))
    if MERMAID.exists():
        files.append(File.generated(config, MERMAID_URI, abs_src_path=str(MERMAID)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Replace links that are relative to the repository by links between pages of the site.

    References to the docstrings of the code, which are comments in the repository, are filled in.
    """
    place = page.file.src_uri
    if place.startswith(f"{SOURCE_FOLDER}/"):
        return markdown

    def replaced(link: re.Match[str]) -> str:
        target = _page_of(_repository_path(place, link[1]))
        relative = posixpath.relpath(target, posixpath.dirname(place) or ".")
        return f"]({relative}{link[2] or ''})"

    return LINK.sub(replaced, REFERENCE.sub(r"\1", markdown))


def on_post_page(output: str, *, page: Page, **_: Any) -> str:
    """Load the script for diagrams on the pages that have one, because it has 3 MB."""
    if not MERMAID.exists() or '<pre class="mermaid">' not in output:
        return output
    script = get_relative_url(MERMAID_URI, page.url)
    return output.replace("</head>", f'<script src="{script}"></script></head>', 1)


def _linked_sources(files: Files) -> set[str]:
    """Return each linked path of the repository that has no page or file in docs/."""
    found = set()
    for file in files.documentation_pages():
        for link in LINK.finditer(file.content_string):
            path = _repository_path(file.src_uri, link[1])
            if _page_of(path).startswith(f"{SOURCE_FOLDER}/"):
                found.add(path)
    return found


def _repository_path(page: str, link: str) -> str:
    """Return the path, from the root of the repository, of a link on a page of the site."""
    name = ROOT_FILES.get(page)
    folder = "." if name else posixpath.dirname(f"docs/{page}")
    return posixpath.normpath(posixpath.join(folder, link))


def _page_of(path: str) -> str:
    """Return the file of the site for a path of the repository."""
    if path in ROOT_PAGES:
        return ROOT_PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return _source_page(path)


def _source_page(path: str) -> str:
    return f"{SOURCE_FOLDER}/{path}.md"


def _as_page(path: str) -> str:
    """Return a page with the text of a file. Fails for a link to a file that does not exist."""
    language = LANGUAGES.get(PurePosixPath(path).suffix, "text")
    return f"# {path}\n\n````{language}\n{(ROOT / path).read_text()}\n````\n"
