"""Local files: suffixes of pictures, and writes that are whole or leave nothing."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from tasks.errors import OutputFailed
from worker.local_files import PICTURE_SUFFIXES, replaced, write_atomically


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


def test_an_empty_path_fails(tmp_path, monkeypatch):
    """A script passes one where it has no value, and Path takes it for the current folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputFailed):
        write_atomically(Path(), b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    """Root could replace /dev/null, which `--output` may name as well."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, b"content")
    assert os.read(reader, 99) == b"content"
    os.close(reader)
    assert pipe.is_fifo()


def test_a_file_stays_if_the_one_in_its_place_fails(tmp_path):
    path = tmp_path / "boxes.jsonl"
    path.write_text("corrected")
    with suppress(KeyboardInterrupt), replaced(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "corrected"
    assert [found.name for found in tmp_path.iterdir()] == ["boxes.jsonl"]
