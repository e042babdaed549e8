"""A model of one's own from a ZIP: unpacked once, nowhere but in the cache, and never without a bound."""

import stat
import zipfile
from pathlib import Path

import pytest

from tasks.errors import InvalidRequest, ModelInvalid
from worker.models import own


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "veil"


@pytest.fixture
def archive(tmp_path):
    """Write a ZIP with these members."""

    def write(name="saved_model.zip", members=None, **more):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as made:
            for member, content in {**(members or {}), **more}.items():
                made.writestr(member, content)
        return tmp_path / name

    return write


def no_store():
    raise AssertionError("S3 is asked only for an address in S3")


WHOLE = {"saved_model.pb": b"graph", "variables/variables.index": b"weights", "veil.json": b'{"score_threshold": 0.3}'}


def test_a_folder_is_used_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))

    assert own.folder("~/detector", no_store) == tmp_path / "detector"


def test_a_zip_is_unpacked_once_under_its_digest(archive, cache):
    first = own.folder(str(archive(members=WHOLE)), no_store)

    assert first.parent == cache
    assert {
        path.relative_to(first).as_posix(): path.read_bytes() for path in first.rglob("*") if path.is_file()
    } == WHOLE
    before = (first / "saved_model.pb").stat().st_mtime_ns
    assert own.folder(str(archive("copy.zip", members=WHOLE)), no_store) == first
    assert (first / "saved_model.pb").stat().st_mtime_ns == before
    other = own.folder(str(archive(members={**WHOLE, "saved_model.pb": b"other"})), no_store)
    assert other != first
    assert sorted(path.name for path in cache.iterdir() if path.is_dir()) == sorted([first.name, other.name])


def test_a_model_in_one_folder_of_the_zip_is_found(archive, cache):
    folder = own.folder(str(archive(members={f"saved_model/{name}": value for name, value in WHOLE.items()})), no_store)

    assert folder.name == "saved_model"
    assert (folder / "veil.json").is_file()


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/tmp/outside", "..\\outside", "a/.."])
def test_a_zip_that_leads_out_of_its_folder_is_refused(archive, cache, tmp_path, name):
    path = archive(members={**WHOLE, name: b"x"})

    with pytest.raises(ModelInvalid, match="leads out of it: not used") as raised:
        own.folder(str(path), no_store)

    assert len(str(raised.value).splitlines()) == 1
    assert not list(tmp_path.rglob("outside"))
    assert not Path("/tmp/outside").exists()
    assert not [entry for entry in cache.iterdir() if entry.is_dir()]


def test_a_link_in_a_zip_is_refused(tmp_path, cache):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr("saved_model.pb", b"graph")
        link = zipfile.ZipInfo("variables")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.writestr(link, "/etc")

    with pytest.raises(ModelInvalid, match="leads out of it"):
        own.folder(str(tmp_path / "a.zip"), no_store)


def test_bombs_are_refused_by_what_they_state_and_by_what_they_are(archive, cache, monkeypatch):
    monkeypatch.setattr(own, "MAX_BYTES", 1 << 20)
    bomb = archive(members={**WHOLE, "bomb": bytes(2 << 20)})
    assert bomb.stat().st_size < 10_000

    with pytest.raises(ModelInvalid, match="would unpack to more"):
        own.folder(str(bomb), no_store)

    content = bomb.read_bytes()
    liar = bomb.with_name("liar.zip")
    liar.write_bytes(content.replace((2 << 20).to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    with pytest.raises(ModelInvalid):
        own.folder(str(liar), no_store)

    monkeypatch.setattr(own, "MAX_FILES", 2)
    with pytest.raises(ModelInvalid, match="would unpack to more than 2 files"):
        own.folder(str(archive(members=WHOLE)), no_store)
    monkeypatch.setattr(own, "MAX_ZIP_BYTES", 100)
    with pytest.raises(ModelInvalid, match="the limit for a model is 100"):
        own.folder(str(archive(members=WHOLE)), no_store)
    assert not [entry for entry in cache.iterdir() if entry.is_dir()]


def test_what_is_no_zip_or_no_model_is_one_line(archive, tmp_path, cache):
    (tmp_path / "a.zip").write_bytes(b"no zip at all")
    whole = archive(members=WHOLE).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])

    for path, said in (
        (tmp_path / "a.zip", "is no ZIP"),
        (tmp_path / "cut.zip", "is no ZIP"),
        (archive(members={"readme.txt": b"hello"}), "holds no saved_model.pb"),
    ):
        with pytest.raises(ModelInvalid, match=said) as raised:
            own.folder(str(path), no_store)
        assert len(str(raised.value).splitlines()) == 1
        assert str(path) in str(raised.value)


def test_an_address_that_names_no_object_is_refused():
    with pytest.raises(InvalidRequest, match="names no object"):
        own.folder("s3://models", no_store)
