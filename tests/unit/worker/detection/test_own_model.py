"""Models of users from a ZIP: unpacked once, only into the cache, and within bounds."""

import hashlib
import stat
import zipfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks.errors import InvalidRequest, ModelInvalid
from worker.detection import own_model
from worker.detection.model import digest_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "veil" / "models"


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


WHOLE = {
    "saved_model.pb": b"graph",
    "variables/variables.index": b"weights",
    "veil.json": b'{"score_threshold": 0.3}',
}


def test_a_folder_is_used_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "detector").mkdir()

    assert own_model.folder("~/detector", no_store) == tmp_path / "detector"


@pytest.mark.parametrize("name", ["gone.zip", "gone", "link.zip"])
def test_a_path_that_does_not_exist_is_named(tmp_path, name):
    (tmp_path / "link.zip").symlink_to("gone.zip")
    with pytest.raises(ModelInvalid, match=f"{name} does not exist: give "):
        own_model.folder(str(tmp_path / name), no_store)


def test_a_zip_is_unpacked_once_under_its_digest(archive, cache):
    first = own_model.folder(str(archive(members=WHOLE)), no_store)

    assert first.parent == cache
    assert {
        path.relative_to(first).as_posix(): path.read_bytes()
        for path in first.rglob("*")
        if path.is_file()
    } == WHOLE
    before = (first / "saved_model.pb").stat().st_mtime_ns
    assert own_model.folder(str(archive("copy.zip", members=WHOLE)), no_store) == first
    assert (first / "saved_model.pb").stat().st_mtime_ns == before
    other = own_model.folder(str(archive(members={**WHOLE, "saved_model.pb": b"other"})), no_store)
    assert other != first
    assert sorted(path.name for path in cache.iterdir() if path.is_dir()) == sorted(
        [first.name, other.name]
    )


def test_a_zip_of_several_models_is_refused(archive, cache):
    members = {f"{folder}/saved_model.pb": folder.encode() for folder in ("day", "night")}

    for _ in range(2):  # unpacked, and from the cache
        with pytest.raises(ModelInvalid, match=r"several models \(day, night\): zip one"):
            own_model.folder(str(archive(members=members)), no_store)
    top = archive(members={**WHOLE, **members})
    assert (own_model.folder(str(top), no_store) / "saved_model.pb").read_bytes() == b"graph"


def test_a_model_in_one_folder_of_the_zip_is_found(archive, cache):
    folder = own_model.folder(
        str(archive(members={f"saved_model/{name}": value for name, value in WHOLE.items()})),
        no_store,
    )

    assert folder.name == "saved_model"
    assert (folder / "veil.json").is_file()


@pytest.mark.parametrize(
    "name", ["../outside", "a/../../outside", "/tmp/outside", "..\\outside", "a/.."]
)
def test_a_zip_that_leads_out_of_its_folder_is_refused(archive, cache, tmp_path, name):
    path = archive(members={**WHOLE, name: b"x"})

    with pytest.raises(ModelInvalid, match="leads out of it: not used") as raised:
        own_model.folder(str(path), no_store)

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
        own_model.folder(str(tmp_path / "a.zip"), no_store)


def test_bombs_are_refused_by_what_they_state_and_by_what_they_are(archive, cache, monkeypatch):
    monkeypatch.setattr(own_model, "MAX_BYTES", 1 << 20)
    bomb = archive(members={**WHOLE, "bomb": bytes(2 << 20)})
    assert bomb.stat().st_size < 10_000

    with pytest.raises(ModelInvalid, match="would unpack to more"):
        own_model.folder(str(bomb), no_store)

    content = bomb.read_bytes()
    liar = bomb.with_name("liar.zip")
    liar.write_bytes(content.replace((2 << 20).to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    with pytest.raises(ModelInvalid):
        own_model.folder(str(liar), no_store)

    monkeypatch.setattr(own_model, "MAX_FILES", 2)
    with pytest.raises(ModelInvalid, match="would unpack to more than 2 files"):
        own_model.folder(str(archive(members=WHOLE)), no_store)
    monkeypatch.setattr(own_model, "MAX_ZIP_BYTES", 100)
    with pytest.raises(ModelInvalid, match="the limit for a model is 100"):
        own_model.folder(str(archive(members=WHOLE)), no_store)
    assert not [entry for entry in cache.iterdir() if entry.is_dir()]


def test_an_invalid_zip_or_model_is_refused_in_one_line(archive, tmp_path, cache):
    (tmp_path / "a.zip").write_bytes(b"no zip at all")
    whole = archive(members=WHOLE).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])

    for path, said in (
        (tmp_path / "a.zip", "is no ZIP .*: give the folder of a SavedModel"),
        (tmp_path / "cut.zip", "is no ZIP"),
        (archive(members={"readme.txt": b"hello"}), "holds no saved_model.pb"),
    ):
        with pytest.raises(ModelInvalid, match=said) as raised:
            own_model.folder(str(path), no_store)
        assert len(str(raised.value).splitlines()) == 1
        assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("face.onnx", "is an ONNX file: convert it, for example with onnx2tf; a model is"),
        ("face.h5", "is a Keras file: export it as a SavedModel with `model.export"),
        ("face.keras", "is a Keras file: export"),
        ("face.PT", "is a PyTorch file: export it to ONNX"),
        ("network.tflite", "is a TensorFlow Lite file: export the model that it was made from"),
        ("saved_model.pb", "is one file of a model: name the folder"),
    ],
)
def test_a_file_of_another_library_says_how_to_get_a_saved_model(name, said, tmp_path):
    (tmp_path / name).write_bytes(b"PK")

    for address in (str(tmp_path / name), f"s3://models/{name}"):
        with pytest.raises(ModelInvalid, match=said) as raised:
            own_model.folder(address, no_store)
        assert str(raised.value).startswith(address)


def test_an_address_that_names_no_object_is_refused():
    with pytest.raises(InvalidRequest, match="names no object"):
        own_model.folder("s3://models", no_store)


# --- pins


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def unpacked(tmp_path):
    """The model in a folder, and the digest of its files."""
    for name, content in WHOLE.items():
        file = tmp_path / "folder" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return tmp_path / "folder", digest_of(tmp_path / "folder")


def test_a_pinned_model_is_taken_by_the_digest_of_its_files_or_of_its_zip(archive, unpacked):
    place, digest = unpacked
    zipped = archive(members=WHOLE)

    assert own_model.folder(str(place), no_store, digest) == place
    for pin in (digest, sha256(zipped), digest):
        assert digest_of(own_model.folder(str(zipped), no_store, pin)) == digest


@pytest.mark.parametrize("name", WHOLE)
def test_a_model_that_is_not_the_pinned_one_is_refused_in_one_line(archive, unpacked, name):
    place, digest = unpacked
    zip_digest = sha256(archive(members=WHOLE))
    (place / name).write_bytes(b"other")
    zipped = archive(members={**WHOLE, name: b"other"})

    for address, pin in (
        (place, digest),
        (zipped, digest),
        (zipped, zip_digest),
        (place, sha256(zipped)),
    ):
        with pytest.raises(ModelInvalid, match=f"not {pin}, its pin: not used") as raised:
            own_model.folder(str(address), no_store, pin)
        assert str(address) in str(raised.value)
        assert len(str(raised.value).splitlines()) == 1


def test_files_that_were_added_or_renamed_are_not_the_pinned_model(unpacked):
    place, digest = unpacked
    (place / "variables" / "more").write_bytes(b"")
    with pytest.raises(ModelInvalid, match="its pin: not used"):
        own_model.folder(str(place), no_store, digest)
    (place / "variables" / "more").unlink()
    (place / "veil.json").rename(place / "other.json")
    with pytest.raises(ModelInvalid, match="its pin: not used"):
        own_model.folder(str(place), no_store, digest)


def test_an_unpacked_model_that_somebody_changed_in_the_cache_is_refused_under_either_pin(
    archive, unpacked
):
    _, digest = unpacked
    zipped = archive(members=WHOLE)
    place = own_model.folder(str(zipped), no_store)
    (place / "variables" / "variables.index").write_bytes(b"other weights")

    for pin in (digest, sha256(zipped)):
        with pytest.raises(ModelInvalid, match="its pin: not used"):
            own_model.folder(str(zipped), no_store, pin)


def test_a_cached_folder_without_its_graph_is_one_line(archive):
    zipped = archive(members=WHOLE)
    (own_model.folder(str(zipped), no_store) / "saved_model.pb").unlink()

    with pytest.raises(ModelInvalid, match="remove it") as raised:
        own_model.folder(str(zipped), no_store)

    assert len(str(raised.value).splitlines()) == 1


class OneObject:
    """A store with one object, which counts its reads."""

    def __init__(self, content, etag="1"):
        self.content, self.etag, self.reads = content, etag, 0

    @contextmanager
    def open(self, uri):
        def read(limit, seconds):
            self.reads += 1
            return self.content

        yield SimpleNamespace(
            stored=SimpleNamespace(size=len(self.content), etag=self.etag), read=read
        )


def test_a_pinned_model_of_a_store_is_fetched_once_and_never_taken_from_a_changed_cache(
    archive, unpacked, cache
):
    _, digest = unpacked
    zipped = archive(members=WHOLE)
    store = OneObject(zipped.read_bytes())
    for _ in range(2):
        place = own_model.folder("s3://models/a.zip", lambda: store, digest)
        assert digest_of(place) == digest
    assert store.reads == 1

    other = archive("other.zip", members={**WHOLE, "saved_model.pb": b"planted"})
    planted = own_model.folder(str(other), no_store)
    (known,) = cache.glob("object-*")
    known.write_text(sha256(other))
    assert (
        own_model.folder("s3://models/a.zip", lambda: store) == planted
    )  # Without a pin nothing is promised.
    known.write_text(sha256(other))
    for pin in (digest, sha256(zipped)):
        assert digest_of(own_model.folder("s3://models/a.zip", lambda: store, pin)) == digest
        known.write_text(sha256(other))


def test_a_store_that_has_another_model_by_now_is_refused(archive, unpacked):
    _, digest = unpacked
    pins = digest, sha256(archive(members=WHOLE))
    other = OneObject(
        archive("other.zip", members={**WHOLE, "saved_model.pb": b"other"}).read_bytes(), "2"
    )

    for pin in pins:
        with pytest.raises(ModelInvalid, match="its pin: not used") as raised:
            own_model.folder("s3://models/a.zip", lambda: other, pin)
        assert "s3://models/a.zip" in str(raised.value)
