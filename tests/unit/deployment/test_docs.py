"""The documentation agrees with the code, and its links lead to files and headings."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from docs.generate import API_PAGE, FORMATS_PAGE, SETTINGS_PAGE, generated
from tasks import errors
from tasks.settings import PREFIX
from worker.cli import COMMANDS
from worker.images.formats import FORMATS
from worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]*))?\)")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
# A path in code, such as `worker/pipeline.py`, but no pattern, such as `labels/`.
SOURCE_PATH = re.compile(r"`((?:docker|tasks|tests|tools|training|worker)/[\w./-]*)`")
CODE = re.compile(r"`([^`]+)`")
# A row of the table in docs/architecture.md: its number, its files and its functions.
WAY_STEP = re.compile(r"^\| (\d+) \| .* \| (.*) \| (.*) \|$", re.MULTILINE)
TEST_FILE = re.compile(r"`(?:tests/[a-z/]*)?(test_\w+\.py)`")
COMMAND_LINE = re.compile(r"(?:^|[`\s])veil ([a-z]+)(?: ([a-z]+))?([^`\n|;>]*)")
FLAG = re.compile(r"(?<=\s)--?[a-z][a-z-]*")
MAX_COLUMNS = 120


def name(page):
    return str(page.relative_to(ROOT))


def anchors(page):
    """Return the anchors that a repository's host and the site give to the headings of `page`."""
    headings = HEADING.findall(FENCED.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", text).strip().lower().replace(" ", "-") for text in headings}


def links(page):
    """Return the file and the anchor, or None, of each link to the repository."""
    found = LINK.findall(FENCED.sub("", page.read_text()))
    return [(page.parent / path if path else page, anchor or None) for path, anchor in found]


@pytest.mark.parametrize(
    "page", [FORMATS_PAGE, SETTINGS_PAGE, API_PAGE], ids=lambda page: page.name
)
def test_the_generated_tables_are_up_to_date(page):
    assert page.read_text() == generated(page.read_text()), "run `make docs`"


def test_every_setting_is_in_the_table():
    text = SETTINGS_PAGE.read_text()
    assert [
        name for name in WorkerSettings.model_fields if f"| `{PREFIX}{name.upper()}` |" not in text
    ] == []


def test_every_format_is_in_the_table():
    text = FORMATS_PAGE.read_text()
    assert [form.name for form in FORMATS if f"| {form.title} | {form.read} |" not in text] == []


def test_every_error_is_in_the_table():
    text = API_PAGE.read_text()
    names = [name for name, _ in inspect.getmembers(errors, inspect.isclass)]
    assert [name for name in names if f"| `{name}` |" not in text] == []


def flags_of(name, subcommand):
    """Return the flags of the command that a page names; empty if there is no such command."""
    if name not in COMMANDS:
        return set()
    command = get_command(import_module(COMMANDS[name].module).app)
    command = getattr(command, "commands", {}).get(subcommand, command)
    declared = [
        flag for option in command.params for flag in (*option.opts, *option.secondary_opts)
    ]
    return {*declared, "-h", "--help"}


def test_every_flag_of_a_command_in_the_text_exists():
    unknown = []
    for page in PAGES:
        if page.name == "CHANGELOG.md":  # names flags of earlier versions
            continue
        for command, subcommand, rest in COMMAND_LINE.findall(page.read_text()):
            flags = flags_of(command, subcommand)
            unknown += [(name(page), flag) for flag in FLAG.findall(rest) if flag not in flags]
    assert unknown == []


def test_every_link_leads_to_a_file_and_a_heading():
    dead = []
    for page in PAGES:
        for target, anchor in links(page):
            if not target.exists() or (anchor is not None and anchor not in anchors(target)):
                dead.append((name(page), str(target), anchor))
    assert dead == []


def test_every_path_and_every_test_in_the_text_exists():
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    missing = []
    for page in PAGES:
        if page.name == "CHANGELOG.md":  # names files of earlier versions
            continue
        text = page.read_text()
        missing += [
            (name(page), path) for path in SOURCE_PATH.findall(text) if not (ROOT / path).exists()
        ]
        missing += [(name(page), test) for test in TEST_FILE.findall(text) if test not in tests]
    assert missing == []


def test_the_readme_links_every_page():
    linked = {target.resolve() for target, _ in links(ROOT / "README.md")}
    pages = {page for page in PAGES if page.parent != ROOT / "docs" / "adr"}
    assert pages - linked == {ROOT / "README.md"}


def test_the_list_of_decisions_links_every_record():
    index = ROOT / "docs" / "adr" / "README.md"
    linked = {target.resolve() for target, _ in links(index)}
    assert {page for page in PAGES if page.parent == index.parent} - linked == {index}


def test_the_site_has_every_page():
    text = str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    docs = ROOT / "docs"
    assert [
        page.name
        for page in PAGES
        if page.is_relative_to(docs) and f"'{page.relative_to(docs)}'" not in text
    ] == []


def test_lines_are_short_but_for_tables():
    long = []
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue
        for number, line in enumerate(page.read_text().splitlines(), 1):
            if len(line) > MAX_COLUMNS and not line.startswith("|"):
                long.append((name(page), number))
    assert long == []


def test_the_way_of_one_picture_names_functions_that_exist():
    steps = WAY_STEP.findall((ROOT / "docs" / "architecture.md").read_text())
    assert len(steps) >= 10
    missing = []
    for number, paths, functions in steps:
        folder = Path()
        source = ""
        for path in (Path(text) for text in CODE.findall(paths)):
            folder = path.parent if len(path.parts) > 1 else folder
            source += "".join(file.read_text() for file in _python_files(ROOT / folder / path.name))
        for function in CODE.findall(functions):
            last = re.escape(function.rpartition(".")[2])
            if not re.search(rf"^ *(def|class) {last}\b|^{last} ?[:=]", source, re.MULTILINE):
                missing.append((number, function))
    assert missing == []


def _python_files(path):
    return sorted(path.glob("*.py")) if path.is_dir() else [path]
