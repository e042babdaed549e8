"""Folders are written completely or not at all."""

import errno

import pytest

from tasks.errors import OutputFailed, TrainingFailed
from training import folders
from training.data.dataset import INDEX
from training.run import DESCRIPTION


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


def test_a_folder_that_is_replaced_through_a_link_keeps_the_link(folder):
    link = folder.parent / "link"
    link.symlink_to(folder.name)

    with folders.replaced(link) as work:
        work.mkdir()
        (work / "new").write_text("new")

    assert link.is_symlink()
    assert names(folder) == ["new"]
    assert names(folder.parent) == ["link", "made"]


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


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_stays(folder):
    for left in (".made.0badcafe.partial", ".made.of an earlier version.partial"):
        (folder.parent / left).mkdir()
        (folder.parent / left / "half").write_text("half")
    (folder.parent / ".made.0badcafe.partial" / folders.LOCK).touch()
    other = folder.parent / ".other.0badcafe.partial"
    other.mkdir()

    with folders.written_beside(folder) as first:
        first.mkdir()
        with folders.written_beside(folder):
            assert first.is_dir()
        assert names(folder.parent) == sorted([first.parent.name, other.name, "made"])

    assert names(folder.parent) == [other.name, "made"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (INDEX, "holds a data set: choose another --to"),
        (DESCRIPTION, "holds a run: choose another --to"),
        ("thesis.txt", r"holds something else \(old\): choose another --to"),
    ],
)
def test_a_folder_that_is_refused_says_what_it_holds(name, said, folder):
    (folder / name).touch()

    with pytest.raises(OutputFailed, match=said):
        folders.refuse_content(folder, ("allowed",))


def test_allowed_content_and_none_at_all_are_not_refused(folder):
    folders.refuse_content(folder, ("old",))
    folders.refuse_content(folder.parent / "none")
