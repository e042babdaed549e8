"""The measures of language and density count what their labels say."""

import sys

import pytest

from tools import language

SOURCE = '''"""Of a module, what it is for and what it needs."""


class Queue:
    """A queue."""

    def first(self, items):
        """Whether it has any."""
        return items[0] if items else None


async def names(items):
    """Return the names."""
    found = [item.name for item in items]
    return {name: sum(1 for _ in name) for name in found}


def long():
    return "%s"
'''


@pytest.fixture
def root(tmp_path):
    for package in language.PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / "tasks" / "one.py").write_text(SOURCE % ("x" * 100))
    (tmp_path / "tasks" / "deeper").mkdir()
    (tmp_path / "tasks" / "deeper" / "two.py").write_text("")
    return tmp_path


def figures(root, package):
    return dict(zip(language.SURVEY, language.Measures(root / package).column(), strict=True))


def test_each_figure_is_counted_as_its_label_says(root):
    lines = len(SOURCE.splitlines())
    assert figures(root, "tasks") == {
        "docstrings that open with what/whether/how/of": "50 %",
        '"what" per 1,000 words of docstrings': f"{1000 * 2 / 20:.1f}",
        "comprehensions per 1,000 lines": f"{1000 * 3 / lines:.1f}",
        "ternaries per 1,000 lines": f"{1000 / lines:.1f}",
        "lines over 100 columns": f"{100 / lines:.0f} %",
        "median function, lines": "3",
        "largest function, lines": "4",
        "files in the fullest folder": "2",
    }


def test_an_empty_package_has_figures_too(root):
    assert figures(root, "tools")["median function, lines"] == "0"


def test_the_table_has_a_column_for_each_package_and_project(root):
    head, *rows = language.table(root)
    assert head.split() == [*language.PACKAGES, *language.PROJECTS]
    assert len(rows) == len(language.SURVEY)
    assert all(len(theirs) == len(language.PROJECTS) for theirs in language.SURVEY.values())
    assert len({len(row) for row in rows} | {len(head)}) == 1


def test_samples_are_docstrings_with_their_places(root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["language", "--samples", "9"])
    language.main()
    printed = capsys.readouterr().out
    assert "tasks/one.py:8\nWhether it has any.\n" in printed
    assert "tasks/one.py:1\nOf a module, what" in printed
    assert printed.count("one.py:") == 4
