"""Training batches: they depend on the seed only, and their boxes match their faces."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from training import augmentation
from training.augmentation import Example, augmented, fitted
from training.batches import Batches
from training.centerface.targets import targets
from training.data import formats, importing
from training.data.importing import Choice

RED, GREEN = (230, 30, 30), (30, 160, 60)
NONE = np.zeros((0, 4), np.float32)
NETWORK = SimpleNamespace(targets=lambda example, side: targets(example, side, 1))


def scene(face, size=(160, 120), ignored=NONE):
    """A green picture with one red face."""
    pixels = np.full((size[1], size[0], 3), GREEN, np.uint8)
    x1, y1, x2, y2 = face
    pixels[y1:y2, x1:x2] = RED
    return Example(pixels, np.array([face], np.float32), ignored, np.array([0]))


def red_box(pixels):
    """Return x1 y1 x2 y2 of the pixels that are redder than green, or None."""
    rows, columns = np.nonzero(pixels[..., 0].astype(int) > pixels[..., 1].astype(int) + 20)
    return (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else None


@pytest.fixture
def dataset(tmp_path):
    """Five pictures, some with a face."""
    images = []
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (60, 80, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        images.append({"file": f"{i}.png", "faces": [[10, 10, 40, 50]] * (i % 2)})
    (tmp_path / "annotations.json").write_text(json.dumps({"images": images}))
    labelled = formats.read(tmp_path / "annotations.json", None, [])
    return importing.run(labelled, tmp_path / "set", Choice(val=0, test=0)).dataset


@given(st.integers(0, 10**6))
def test_however_a_picture_is_changed_its_box_stays_on_its_face(seed):
    made = augmented(scene((50, 30, 90, 85)), 128, np.random.default_rng(seed))

    assert made.pixels.shape == (128, 128, 3)
    assert made.pixels.dtype == np.uint8
    assert ((made.faces >= 0) & (made.faces <= 128)).all()
    for x1, y1, x2, y2 in made.faces:
        across, down = int((x1 + x2) / 2), int(y1 + (y2 - y1) * 0.15)  # above any occluder
        red, green, _ = made.pixels[min(down, 127), min(across, 127)].astype(int)
        assert red >= green - 12  # gray pictures and strong compression blur the difference


@given(st.integers(0, 10**6))
def test_a_small_rest_of_a_cropped_face_is_ignored_and_no_face_is_lost(seed):
    made = augmented(scene((50, 30, 90, 85)), 128, np.random.default_rng(seed))

    assert len(made.faces) + len(made.ignored) <= 1
    for box in made.ignored:
        sides = box[2:] - box[:2]
        assert sides.min() < 128


def test_small_faces_are_kept_and_shown_as_often_as_large_ones():
    sides = []
    for seed in range(300):
        made = augmented(scene((70, 50, 82, 64)), 256, np.random.default_rng(seed))
        sides += np.sqrt((made.faces[:, 2:] - made.faces[:, :2]).prod(axis=1)).tolist()

    assert len(sides) > 250
    assert min(sides) < 12
    assert max(sides) > 28


def test_a_fitted_picture_is_whole_at_the_upper_left():
    made = fitted(scene((40, 30, 80, 90)), 80)

    assert made.pixels[60:].min() == made.pixels[60:].max() == 114
    np.testing.assert_allclose(made.faces, [[20, 15, 40, 45]])
    np.testing.assert_allclose(red_box(made.pixels[:60]), (20, 15, 40, 45), atol=1)


def test_a_face_of_which_nothing_can_be_seen_is_ignored():
    made = fitted(scene((10, 10, 20, 22), size=(640, 480)), 128)

    assert len(made.faces) == 0
    np.testing.assert_allclose(made.ignored, [[2, 2, 4, 4.4]], atol=0.01)


def test_batches_are_the_same_from_any_step_on_and_show_every_picture(dataset):
    def batches(seed=7):
        return Batches(dataset, dataset.split("train"), NETWORK, 128, 2, seed, augment=True)

    whole = list(batches().starting(0, 6))
    later = list(batches().starting(4, 6))

    for one, other in zip(whole[4:], later, strict=True):
        np.testing.assert_array_equal(one.pictures, other.pictures)
        np.testing.assert_array_equal(one.truth["boxes"], other.truth["boxes"])
    assert not np.array_equal(whole[0].pictures, next(batches(8).starting(0, 1)).pictures)
    plain = Batches(dataset, dataset.split("train"), NETWORK, 128, 5, 0, augment=False)
    first, second = plain.starting(0, 2)
    assert not np.array_equal(first.pictures, second.pictures)
    assert sorted(p.sum() for p in first.pictures) == sorted(p.sum() for p in second.pictures)


def test_a_damaged_picture_ends_a_batch_with_its_name(dataset):
    from tasks.errors import DatasetInvalid

    picture = dataset.pictures[0]
    (dataset.folder / picture.file).write_bytes(b"")

    with pytest.raises(DatasetInvalid, match=picture.file):
        list(
            Batches(dataset, dataset.split("train"), NETWORK, 128, 5, 0, augment=False).starting(
                0, 1
            )
        )


def test_every_object_keeps_its_class_and_only_faces_are_covered(monkeypatch):
    example = Example(
        np.full((120, 160, 3), GREEN, np.uint8),
        np.array([[10, 20, 60, 80], [90, 30, 150, 50]], np.float32),
        NONE,
        np.array([0, 1]),
    )
    covered = []
    monkeypatch.setattr(
        augmentation, "_covered", lambda pixels, face, random: covered.append(face) or pixels
    )
    for seed in range(40):
        made = augmented(example, 128, np.random.default_rng(seed), coverable=1)

        sides = made.faces[:, 2:] - made.faces[:, :2]
        whole = (made.faces > 0).all(axis=1) & (made.faces < 128).all(axis=1)
        is_wide = sides[:, 0] > sides[:, 1]
        np.testing.assert_array_equal(made.classes[whole] == 1, is_wide[whole])
        if len(covered):
            x1, y1, x2, y2 = covered.pop()
            assert (made.classes[(made.faces == (x1, y1, x2, y2)).all(axis=1)] == 1).all()
