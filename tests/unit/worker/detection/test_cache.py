"""A cache that can't be written: the error says what to do."""

import errno
import os
from pathlib import Path

import pytest

from tasks.errors import ModelInvalid
from worker.detection import own_model
from worker.detection.centerface import default

ELSEWHERE = "set XDG_CACHE_HOME to a folder that this user may write"


@pytest.fixture
def refuse(monkeypatch, tmp_path):
    """Return a function that lets folders of the cache be made no more, for a reason."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def refuse(number):
        def mkdir(path, **_):
            raise OSError(number, os.strerror(number), str(path))

        monkeypatch.setattr(Path, "mkdir", mkdir)

    return refuse


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, ELSEWHERE),
        (errno.EROFS, ELSEWHERE),
        (errno.ENOSPC, "make room there"),
    ],
)
def test_the_default_model_needs_a_folder_and_room(refuse, tmp_path, number, advice):
    refuse(number)
    with pytest.raises(ModelInvalid) as raised:
        default.default_model()
    assert str(raised.value) == (
        f"the default model can't be built in {tmp_path / 'cache' / 'veil'}: "
        f"{os.strerror(number)}: {advice}"
    )


def test_a_model_that_is_unpacked_needs_a_folder_too(refuse, tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    refuse(errno.EACCES)
    with pytest.raises(ModelInvalid, match=f"Permission denied: {ELSEWHERE}$"):
        own_model.folder(str(tmp_path / "a.zip"), None)


def test_a_model_that_can_not_be_read_is_not_blamed_on_the_cache(monkeypatch, tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(b"PK")

    def refuse(address):
        raise PermissionError(errno.EACCES, "Permission denied", str(address))

    monkeypatch.setattr(own_model, "_sha256", refuse)
    with pytest.raises(ModelInvalid, match=r"Permission denied$"):
        own_model.folder(str(path), None)
