"""Write the generated parts of the documentation: tables, and the schema of the routes file."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import worker
from tasks import AnonymizeOptions, AnonymizeReport, anonymize_image, errors
from worker import routes_schema
from worker.anonymizer import Anonymized, AnonymizedArray
from worker.images import formats
from worker.settings import markdown_table

DOCS = Path(__file__).resolve().parent
FORMATS_PAGE = DOCS / "formats.md"
SETTINGS_PAGE = DOCS / "settings.md"
API_PAGE = DOCS / "reference" / "api.md"
ROUTES_SCHEMA = DOCS / "routes.schema.json"


def api_table() -> str:
    """Return the public names with the first line of their docstrings as a Markdown table."""
    rows = ["| name | meaning |", "| --- | --- |"]
    for name, meaning in _api():
        rows.append(f"| `{name}` | {meaning} |")
    return "\n".join(rows)


def errors_table() -> str:
    """Return the errors with their bases and docstrings as a Markdown table."""
    rows = ["| error | kind of | meaning |", "| --- | --- | --- |"]
    for name, error in inspect.getmembers(errors, inspect.isclass):
        base = error.__mro__[1].__name__
        rows.append(f"| `{name}` | `{base}` | {_first_line(error)} |")
    return "\n".join(rows)


# The table in each section between two comments, by the name in the comments.
TABLES: dict[str, Callable[[], str]] = {
    "formats": formats.markdown_table,
    "settings": markdown_table,
    "api": api_table,
    "errors": errors_table,
}


def generated(text: str) -> str:
    """Return `text` with the tables between the markers generated anew."""
    for name, table in TABLES.items():
        before, opening, rest = text.partition(f"<!-- {name}: made by `make docs` -->\n")
        if opening:
            _, closing, after = rest.partition(f"<!-- end of {name} -->")
            text = f"{before}{opening}{table()}\n{closing}{after}"
    return text


def _api() -> Iterator[tuple[str, str]]:
    """Yield each public name but the errors, and its meaning."""
    yield "tasks.anonymize_image", _first_line(anonymize_image)
    for kind in (AnonymizeOptions, AnonymizeReport):
        yield f"tasks.{kind.__name__}", _first_line(kind)
    yield "worker.Anonymizer", _first_line(worker.Anonymizer)
    for name, member in inspect.getmembers(worker.Anonymizer):
        if not name.startswith("_"):
            yield f"worker.Anonymizer.{name}", _first_line(member)
    for result in (Anonymized, AnonymizedArray):
        yield f"worker.anonymizer.{result.__name__}", _first_line(result)


def _first_line(documented: object) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0]


if __name__ == "__main__":
    for page in (FORMATS_PAGE, SETTINGS_PAGE, API_PAGE):
        page.write_text(generated(page.read_text()))
    ROUTES_SCHEMA.write_text(routes_schema.text())
