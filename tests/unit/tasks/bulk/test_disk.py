"""Temporary databases on disk."""

import resource
from contextlib import closing

import pytest

from tasks.bulk import disk
from tasks.errors import OutputFailed


def test_texts_come_back_in_their_order():
    texts = ["b", "ü/写真.jpg", "a\nb", "b", ""]
    with closing(disk.Texts("the list")) as kept:
        for text in texts:
            kept.add(text)
        assert (kept.count, list(kept)) == (5, texts)


def fill(kept):
    for _ in range(1000):
        kept.add("x" * 1000)


def test_a_disk_without_room_is_an_error_that_names_the_folder_to_set(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with closing(disk.Texts("the list")) as kept:
        kept._database.execute("PRAGMA cache_size = 10")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
        try:
            with pytest.raises(OutputFailed, match=r"the list can't be written .* set TMPDIR"):
                fill(kept)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
