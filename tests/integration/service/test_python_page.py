"""The examples of docs/python.md run unchanged."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.examples import examples


@pytest.fixture(scope="module")
def page(repository, portrait, tmp_path_factory):
    """Run the examples in order in a folder with a portrait; return the names that they define."""
    folder: Path = tmp_path_factory.mktemp("page")
    (folder / "portrait.jpg").write_bytes(portrait)
    defined = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number, block in enumerate(examples(repository / "docs" / "python.md")):
            if "send_task" not in block:  # test_other_projects.py runs that with a worker
                exec(compile(block, f"example {number}", "exec"), defined)
        yield folder, defined


def test_the_example_of_files_and_arrays_hides_a_face(page):
    folder, defined = page
    sizes = []
    for name in ("clean.jpeg", "portrait.jpg"):
        with Image.open(folder / name) as image:
            sizes.append(image.size)
    assert sizes[0] == sizes[1]
    assert len(defined["faces"]) == 1
    assert (defined["hidden"] != defined["pixels"]).any()


def test_the_example_of_a_service_answers_with_the_picture_or_the_reason(page, portrait):
    _, defined = page

    def post(body):
        answers = []
        environ = {"CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body)}
        content = b"".join(defined["application"](environ, lambda *answer: answers.append(answer)))
        ((status, headers),) = answers
        return status[:3], dict(headers)["Content-Type"], content

    assert post(portrait) == ("200", "image/jpeg", defined["result"].content)
    status, kind, reason = post(b"no picture")
    assert (status, kind) == ("422", "text/plain")
    assert reason


def test_the_example_of_a_data_loader_gives_hidden_pixels(page):
    folder, defined = page
    dataset = defined["AnonymizedPictures"](folder)
    number = dataset.paths.index(folder / "portrait.jpg")
    assert len(dataset) > number
    assert np.array_equal(dataset[number], defined["hidden"])


def test_the_example_of_a_data_loader_turns_pictures_upright_and_refuses_held_ones(page, tmp_path):
    folder, defined = page
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    with Image.open(folder / "portrait.jpg") as image:
        lying = image.transpose(Image.Transpose.ROTATE_90)
        lying.save(tmp_path / "a.jpeg", exif=exif)
    Image.new("RGB", (64, 64)).save(tmp_path / "b.png")
    dataset = defined["AnonymizedPictures"](tmp_path)

    assert dataset[0].shape == defined["pixels"].shape
    held = SimpleNamespace(anonymize_array=lambda _: SimpleNamespace(pixels=None, reason="no face"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(defined, "anonymizer_of", lambda process: held)
        with pytest.raises(ValueError, match="is held: no face"):
            dataset[1]
