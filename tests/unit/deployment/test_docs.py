"""The README says what the code says."""

from docs.generate import README, generated
from tasks.settings import PREFIX
from worker.images.formats import FORMATS
from worker.settings import WorkerSettings


def test_the_generated_tables_are_up_to_date():
    assert README.read_text() == generated(README.read_text()), "run `make docs`"


def test_every_setting_is_in_the_table():
    text = README.read_text()
    assert [name for name in WorkerSettings.model_fields if f"| `{PREFIX}{name.upper()}` |" not in text] == []


def test_every_format_is_in_the_table():
    text = README.read_text()
    assert [form.name for form in FORMATS if f"| {form.title} | {form.read} |" not in text] == []
