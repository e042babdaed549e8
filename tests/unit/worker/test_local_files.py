"""Local files: suffixes of pictures, and writes that are whole or leave nothing."""

import pytest

from tasks.errors import OutputFailed
from worker.local_files import PICTURE_SUFFIXES, write_atomically


def test_suffixes_are_lower_case_with_their_dot():
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in PICTURE_SUFFIXES)


def test_a_file_is_written_whole_and_replaces_an_older_one(tmp_path):
    path = tmp_path / "deep" / "a.jpg"
    for content in (b"one", b"two, longer", b""):
        write_atomically(path, content)
        assert path.read_bytes() == content
        assert [p.name for p in path.parent.iterdir()] == ["a.jpg"]


def test_a_target_that_is_a_folder_fails_and_leaves_no_partial(tmp_path):
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(OutputFailed, match=r"a\.jpg"):
        write_atomically(tmp_path / "a.jpg", b"content")
    assert [path.name for path in tmp_path.rglob("*")] == ["a.jpg"]


def test_a_file_in_the_place_of_a_folder_fails_with_its_name(tmp_path):
    (tmp_path / "file").write_bytes(b"kept")
    with pytest.raises(OutputFailed, match="file"):
        write_atomically(tmp_path / "file" / "a.jpg", b"content")
    assert (tmp_path / "file").read_bytes() == b"kept"


def test_a_name_that_is_too_long_fails_and_leaves_no_partial(tmp_path):
    with pytest.raises(OutputFailed):
        write_atomically(tmp_path / ("x" * 300), b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_link_at_the_target_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "original.jpg").write_bytes(b"original")
    (tmp_path / "a.jpg").symlink_to(tmp_path / "original.jpg")
    write_atomically(tmp_path / "a.jpg", b"new")
    assert (tmp_path / "original.jpg").read_bytes() == b"original"
    assert (tmp_path / "a.jpg").read_bytes() == b"new"
