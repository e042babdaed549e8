"""Folders are written completely or not at all."""

import errno

import pytest

from tasks.errors import OutputFailed, TrainingFailed
from training import folders


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "parent" / "made"
    made.mkdir(parents=True)
    (made / "old").write_text("old")
    return made


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_complete_folder_replaces_the_one_before(folder):
    with folders.replaced(folder) as work:
        work.mkdir()
        (work / "new").write_text("new")
        assert names(folder) == ["old"]

    assert names(folder) == ["new"]
    assert names(folder.parent) == ["made"]


def fail_within(folder, failure):
    with folders.replaced(folder) as work:
        work.mkdir()
        (work / "new").write_text("half")
        raise failure


@pytest.mark.parametrize(
    ("failure", "raised", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OutputFailed, "No space left"),
        (TrainingFailed("it differs"), TrainingFailed, "it differs"),
        (KeyboardInterrupt("Ctrl-C"), KeyboardInterrupt, "Ctrl-C"),
    ],
)
def test_a_failure_keeps_the_folder_and_leaves_nothing_beside_it(folder, failure, raised, text):
    with pytest.raises(raised, match=text):
        fail_within(folder, failure)

    assert names(folder) == ["old"]
    assert names(folder.parent) == ["made"]


def test_the_current_folder_is_refused(folder, monkeypatch):
    monkeypatch.chdir(folder)

    with (
        pytest.raises(OutputFailed, match="is the current folder: choose another --to"),
        folders.replaced(folder),
    ):
        pytest.fail("the block ran")

    assert names(folder) == ["old"]
