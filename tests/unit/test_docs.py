"""The README says what the code says."""

from docs.generate import README, generated
from tasks.settings import PREFIX
from worker.settings import WorkerSettings


def test_the_table_of_settings_is_the_generated_one():
    assert README.read_text() == generated(README.read_text()), "run `make docs`"


def test_every_setting_is_in_the_table():
    text = README.read_text()
    assert [name for name in WorkerSettings.model_fields if f"| `{PREFIX}{name.upper()}` |" not in text] == []
