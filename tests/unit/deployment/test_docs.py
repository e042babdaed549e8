"""The documentation agrees with the code."""

import pytest

from docs.generate import FORMATS_PAGE, SETTINGS_PAGE, generated
from tasks.settings import PREFIX
from worker.images.formats import FORMATS
from worker.settings import WorkerSettings


@pytest.mark.parametrize("page", [FORMATS_PAGE, SETTINGS_PAGE], ids=lambda page: page.name)
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
