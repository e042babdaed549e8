"""Measure the language and the density of the code, beside those of other projects."""

import argparse
import ast
import random
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("tasks", "worker", "training", "tools")
MAX_COLUMNS = 100
# A docstring that begins with one of these words describes a thing in place of naming it.
OPENINGS = frozenset({"what", "whether", "how", "of"})
WORD = re.compile(r"[a-z']+")
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (ast.Module, ast.ClassDef, *FUNCTIONS)

# Source: a survey of the product code in the public repository of each project, made in 2026. It
# did not count openings, and of "what" it recorded only that each project stays below one.
PROJECTS = ("dramatiq", "procrastinate", "httpx", "arq", "taskiq", "rq")
SURVEY = {
    "docstrings that open with what/whether/how/of": ("",) * 6,
    '"what" per 1,000 words of docstrings': ("< 1",) * 6,
    "comprehensions per 1,000 lines": ("4", "9", "8", "8", "3", "8"),
    "ternaries per 1,000 lines": ("2", "4", "11", "10", "2", "13"),
    f"lines over {MAX_COLUMNS} columns": ("1 %", "0 %", "0 %", "3 %", "0 %", "4 %"),
    "median function, lines": ("7", "8", "9", "10", "12", "8"),
    "largest function, lines": ("185", "126", "133", "203", "233", "155"),
    "files in the fullest folder": ("18", "25", "17", "12", "20", "33"),
}


@dataclass(frozen=True)
class Docstring:
    """A docstring and its place, `FILE:LINE`."""

    place: str
    text: str

    @property
    def words(self) -> list[str]:
        return WORD.findall(self.text.lower())


class Measures:
    """The counts of one package: the Python files below `folder`."""

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.rglob("*.py"))
        self.lines: list[str] = []
        self.docstrings: list[Docstring] = []
        self.functions: list[int] = []
        self.comprehensions = 0
        self.ternaries = 0
        self.fullest_folder = max(Counter(path.parent for path in files).values())
        for path in files:
            self._read(path)

    def _read(self, path: Path) -> None:
        text = path.read_text()
        self.lines += text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, COMPREHENSIONS):
                self.comprehensions += 1
            elif isinstance(node, ast.IfExp):
                self.ternaries += 1
            elif isinstance(node, DOCUMENTED):
                self._read_definition(path, node)

    def _read_definition(
        self, path: Path, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    ) -> None:
        if isinstance(node, FUNCTIONS):
            assert node.end_lineno is not None
            self.functions.append(node.end_lineno - node.lineno + 1)
        if docstring := ast.get_docstring(node):
            line = node.body[0].lineno
            self.docstrings.append(Docstring(f"{path}:{line}", docstring))

    def column(self) -> list[str]:
        """Return the figures in the order of SURVEY."""
        words = [word for docstring in self.docstrings for word in docstring.words]
        openings = [docstring.words[0] for docstring in self.docstrings if docstring.words]
        opened = sum(word in OPENINGS for word in openings)
        long = sum(len(line) > MAX_COLUMNS for line in self.lines)
        return [
            _percent(opened, len(openings)),
            _per_thousand(words.count("what"), len(words)),
            _per_thousand(self.comprehensions, len(self.lines)),
            _per_thousand(self.ternaries, len(self.lines)),
            _percent(long, len(self.lines)),
            f"{statistics.median(self.functions or [0]):g}",
            str(max(self.functions, default=0)),
            str(self.fullest_folder),
        ]


def table(root: Path, packages: Sequence[str] = PACKAGES) -> Iterator[str]:
    """Yield the lines of a table with a row per figure and a column per package and project."""
    columns = [Measures(root / package).column() for package in packages]
    label_width = max(map(len, SURVEY))
    yield " " * label_width + _row((*packages, *PROJECTS))
    our_rows = zip(*columns, strict=True)
    for (label, theirs), ours in zip(SURVEY.items(), our_rows, strict=True):
        yield label.ljust(label_width) + _row((*ours, *theirs))


def samples(root: Path, count: int, seed: int | None = None) -> Iterator[str]:
    """Yield `count` docstrings of all packages, drawn at random, each below its place."""
    docstrings: list[Docstring] = []
    for package in PACKAGES:
        docstrings += Measures(root / package).docstrings
    for docstring in random.Random(seed).sample(docstrings, min(count, len(docstrings))):
        yield f"{docstring.place}\n{docstring.text}\n"


def _row(cells: Sequence[str]) -> str:
    return "".join(f"{cell:>14}" for cell in cells)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.0f} %"


def _per_thousand(part: int, whole: int) -> str:
    return f"{1000 * part / max(whole, 1):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--samples", type=int, metavar="N", help="print N random docstrings instead"
    )
    parser.add_argument("--seed", type=int, help="seed of the random choice")
    arguments = parser.parse_args()
    root = Path()
    if arguments.samples is None:
        lines = table(root)
    else:
        lines = samples(root, arguments.samples, arguments.seed)
    for line in lines:
        print(line)


if __name__ == "__main__":
    main()
