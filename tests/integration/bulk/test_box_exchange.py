"""``veil receipt export`` and ``import``: boxes leave for annotation tools, and come back."""

import hashlib
import json
import re
from xml.etree import ElementTree

import pytest

from tasks.storage import receipts
from tests.integration.conftest import OLDER_RECIPE

BOX = [0, 0, 1, 1]  # of each face in the receipts of the archive


@pytest.fixture(scope="module")
def archive(store, archive_at):
    archive = archive_at(store, "boxes/")
    for key in ("a.jpg", "b & c.jpg", "d/e.jpg", "newer/a.jpg"):
        label = "plate" if key == "d/e.jpg" else None
        archive.done(key, archive.source(key).etag, scores=(0.9,), label=label)
    # Another recipe held the picture since, and found fewer faces than the output hides.
    etag = archive.source("newer/a.jpg").etag
    newer = "2026-02-01T00:00:00.000+00:00"
    archive.receipt("newer/a.jpg", etag, OLDER_RECIPE, "held", created=newer)
    archive.receipt("held.jpg", archive.source("held.jpg").etag, status="held")
    archive.store.put(archive.destination("foreign.jpg"), b"not Veil's", "image/jpeg", {})
    return archive


@pytest.fixture
def settings(unattended, s3):
    return {
        **unattended.environment,
        **s3.environment(),
        "VEIL_ROUTES": "s3://raw/boxes=s3://clean/boxes,s3://raw/again=s3://clean/again",
    }


@pytest.fixture
def receipt(veil, settings):
    return lambda *arguments: veil("receipt", *arguments, environment=settings)


def make_of(archive, key, content):
    """Put a source, its output, and a receipt with a digest that is the output's own."""
    etag = archive.source(key, content).etag
    archive.done(key, etag, scores=(0.9,))
    destination = archive.places.route.destination
    for uri, name in receipts.list_names(archive.store, destination, key):
        if name.etag == etag:
            with archive.store.open(uri) as opened:
                fields = json.loads(opened.read(1 << 20, 30))
            fields["output_sha256"] = hashlib.sha256(content).hexdigest()
            archive.store.put(uri, json.dumps(fields).encode(), "application/json", {})


def test_each_format_has_every_picture_with_its_boxes(archive, receipt):
    exported = receipt("export", "s3://clean/boxes")
    left_out = "1 without an output left out, 1 without a receipt left out"
    assert f"4 pictures exported, {left_out}" in exported.stderr
    lines = [json.loads(line) for line in exported.stdout.splitlines()]
    assert [line["name"] for line in lines] == [
        "s3://clean/boxes/a.jpg",
        "s3://clean/boxes/b & c.jpg",
        "s3://clean/boxes/d/e.jpg",
        "s3://clean/boxes/newer/a.jpg",
    ]
    assert lines[0]["shapes"] == [{"area": BOX, "label": "face", "score": 0.9}]
    assert lines[2]["shapes"] == [{"area": BOX, "label": "plate", "score": 0.9}]
    assert lines[-1]["status"] == "anonymized"

    coco = json.loads(receipt("export", "s3://clean/boxes", "--format", "coco").stdout)
    assert (len(coco["images"]), len(coco["annotations"])) == (4, 4)
    assert coco["annotations"][2]["category_id"] == coco["categories"][-1]["id"] == 4
    cvat = ElementTree.fromstring(receipt("export", "s3://clean/boxes", "--format", "cvat").stdout)
    assert len(cvat.findall("image/box")) == 4


@pytest.mark.parametrize("form", ["coco", "cvat", "jsonl"])
def test_a_file_that_comes_back_unchanged_changes_nothing(
    archive, receipt, unattended, tmp_path, form
):
    path = tmp_path / "boxes"
    assert receipt("export", "s3://clean/boxes", "--format", form, "-o", path).returncode == 0
    done = receipt("import", path)
    assert done.returncode == 0, done.stderr
    assert "0 enqueued, 4 unchanged, 0 refused" in done.stderr
    assert unattended.client.llen("uploads") == 0


def test_one_output_can_be_exported(archive, receipt):
    done = receipt("export", "s3://clean/boxes/b & c.jpg")
    assert [json.loads(line)["name"] for line in done.stdout.splitlines()] == [
        "s3://clean/boxes/b & c.jpg"
    ]
    assert "1 picture exported" in done.stderr
    held = receipt("export", "s3://clean/boxes/held.jpg")
    assert held.returncode == 1
    assert "NothingFound: no output with its receipt at s3://clean/boxes/held.jpg" in held.stderr
    assert "1 without an output left out" in held.stderr


@pytest.mark.parametrize("form", ["coco", "cvat", "jsonl"])
@pytest.mark.parametrize("address", ["s3://clean/boxes/a.jpeg", "s3://clean/boxes/held.jpg"])
def test_an_export_of_nothing_leaves_the_file_as_it_was(archive, receipt, tmp_path, address, form):
    path, new = tmp_path / "boxes", tmp_path / "new"
    path.write_text("corrected")
    for each in (path, new):
        done = receipt("export", address, "--format", form, "-o", each)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("veil: NothingFound: no output ")
        assert address in line
    assert path.read_text() == "corrected"
    assert list(tmp_path.iterdir()) == [path]


def test_boxes_of_an_earlier_output_are_refused(archive, receipt, unattended, tmp_path):
    path = tmp_path / "boxes.jsonl"
    earlier = {"name": "s3://clean/boxes/a.jpg", "recipe": OLDER_RECIPE}
    path.write_text(json.dumps({**earlier, "shapes": [{"area": [1, 1, 3, 2]}]}))
    done = receipt("import", path)
    assert done.returncode == 1
    assert "the boxes are not those of the present output: export them again" in done.stderr
    assert unattended.client.llen("uploads") == 0


@pytest.mark.parametrize("form", ["coco", "cvat", "jsonl"])
def test_boxes_of_an_output_that_was_made_again_are_refused(
    archive_at, store, receipt, unattended, tmp_path, form
):
    """The same recipe has made the output of another version of the source."""
    again, path = archive_at(store, "again/"), tmp_path / "boxes"
    make_of(again, "a.jpg", b"first")
    receipt("export", "s3://clean/again", "--format", form, "-o", path)
    make_of(again, "a.jpg", b"second")
    done = receipt("import", path)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "0 enqueued, 1 unchanged, 0 refused",
        "1 unchanged output made again since the export",
    ]
    text = path.read_text()
    without_face = {
        "coco": re.sub(r'(?s)"annotations": \[.*\],\n"cat', '"annotations": [],\n"cat', text),
        "cvat": re.sub(r"<box .*?</box>", "", text),
        "jsonl": re.sub(r'"shapes": \[.*\]', '"shapes": []', text),
    }
    assert without_face[form] != text
    path.write_text(without_face[form])
    done = receipt("import", path)
    assert done.returncode == 1
    assert "the boxes are not those of the present output: export them again" in done.stderr
    assert unattended.client.llen("uploads") == 0


def test_no_face_of_another_version_of_the_source_is_shown(
    archive_at, store, receipt, unattended, tmp_path
):
    archive, path = archive_at(store, "again/"), tmp_path / "boxes.jsonl"
    archive.done("b.jpg", archive.source("b.jpg", b"first").etag, scores=(0.9,))
    archive.source("b.jpg", b"second")
    path.write_text(json.dumps({"name": "s3://clean/again/b.jpg", "shapes": []}))
    done = receipt("import", path)
    assert done.returncode == 1
    assert "its source was replaced or deleted since" in done.stderr
    assert unattended.client.llen("uploads") == 0

    shapes = [{"area": BOX}, {"area": [1, 1, 3, 2]}]
    path.write_text(json.dumps({"name": "s3://clean/again/b.jpg", "shapes": shapes}))
    assert receipt("import", path, "--dry-run").returncode == 0


def test_a_new_box_is_hidden_and_a_removed_one_stays_clear(archive, receipt, unattended, tmp_path):
    path = tmp_path / "boxes.jsonl"
    polygon = [2, 0, 3, 0, 3, 2]
    shapes = [{"area": [2, 1, 3, 2]}, {"area": polygon}]
    path.write_text(json.dumps({"name": "s3://clean/boxes/a.jpg", "shapes": shapes}))
    rehearsed = receipt("import", path, "--dry-run", "--json")
    assert json.loads(rehearsed.stdout) == {
        "output": "s3://clean/boxes/a.jpg",
        "extra": [[2, 1, 3, 2], polygon],
        "exempt": [BOX],
        "problem": None,
        "outdated": False,
    }
    assert "0 would be enqueued" in rehearsed.stderr
    assert "1 picture would show a face: look at each, and give --show-faces" in rehearsed.stderr
    assert unattended.client.llen("uploads") == 0
    assert receipt("import", path, "--show-faces").returncode == 0
    assert unattended.client.llen("uploads") == 1


def test_a_picture_that_would_show_a_face_waits_for_a_confirmation(
    archive, receipt, unattended, tmp_path
):
    path = tmp_path / "boxes.jsonl"
    lines = [
        {"name": "s3://clean/boxes/a.jpg", "shapes": []},
        {"name": "s3://clean/boxes/b & c.jpg", "shapes": [{"area": [0, 0, 3, 1]}]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    done = receipt("import", path)
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == "s3://clean/boxes/a.jpg  --exempt 0,0,1,1"
    assert done.stderr.splitlines() == [
        "1 enqueued, 0 unchanged, 0 refused",
        "1 picture would show a face: look at each, and give --show-faces",
    ]
    assert unattended.client.llen("uploads") == 1
    rehearsed = receipt("import", path, "--dry-run", "--show-faces")
    assert rehearsed.returncode == 0
    assert rehearsed.stderr.splitlines() == [
        "2 would be enqueued, 0 unchanged, 0 refused",
        "1 picture would show a face",
    ]


def test_an_import_waits_for_the_results_if_asked(archive, receipt, unattended, tmp_path):
    path = tmp_path / "boxes.jsonl"
    shapes = [{"area": [0, 0, 3, 1]}]
    path.write_text(json.dumps({"name": "s3://clean/boxes/a.jpg", "shapes": shapes}))
    done = receipt("import", path, "--wait", "--timeout", 0.1)
    assert done.returncode == 1
    assert "a.jpg: NoAnswer: it still waits on uploads and no worker answers" in done.stderr
    assert done.stderr.splitlines()[-1] == "1 without a result"
    for misfit in (("--timeout", 5), ("--dry-run", "--wait")):
        assert receipt("import", path, *misfit).returncode == 2


def test_a_picture_that_is_in_the_file_twice_is_refused(archive, receipt, unattended, tmp_path):
    """The output of the second request would show what only the first one hides."""
    path = tmp_path / "boxes.jsonl"
    lines = [
        {"name": "s3://clean/boxes/a.jpg", "shapes": [{"area": BOX}, {"area": area}]}
        for area in ([1, 1, 3, 2], [2, 0, 3, 1])
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    done = receipt("import", path)
    assert done.returncode == 1
    assert "the file has it more than once" in done.stderr
    assert "0 enqueued, 0 unchanged, 2 refused" in done.stderr
    assert unattended.client.llen("uploads") == 0


def test_boxes_that_fit_no_output_are_refused(archive, receipt, unattended, tmp_path):
    path = tmp_path / "boxes.jsonl"
    lines = [
        {"name": "s3://clean/boxes/none.jpg", "shapes": []},
        {"name": "s3://elsewhere/a.jpg", "shapes": []},
        {"name": "a.jpg", "shapes": []},
        {"name": "s3://clean/boxes/a.jpg", "width": 999, "height": 9, "shapes": []},
        {"name": "s3://clean/boxes/../a.jpg", "shapes": []},
        {"name": "s3://clean/boxes/a.jpg", "shapes": [{"area": [5, 0, 6, 1]}]},
        {"output": "s3://clean/boxes/a.jpg", "exposed": []},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    done = receipt("import", path)
    assert done.returncode == 1
    assert "the area 5,0,6,1 is outside of the picture" in done.stderr
    assert "a.jpg: the name is no address, as names of exports are: say with --outputs" in (
        done.stderr
    )
    assert "these are marks of a sample" in done.stderr
    assert "0 enqueued, 0 unchanged, 7 refused" in done.stderr
    assert unattended.client.llen("uploads") == 0
    path.write_text("")
    assert receipt("import", path).returncode == 2


def test_names_that_are_no_addresses_are_those_of_the_stated_place(archive, receipt, tmp_path):
    path = tmp_path / "boxes.jsonl"
    lines = [
        {"name": "a.jpg", "shapes": [{"area": [0, 0, 3, 1]}]},
        {"name": "none.jpg", "shapes": []},
        {"name": "../boxes/a.jpg", "shapes": []},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    done = receipt("import", path, "--outputs", "s3://clean/boxes", "--dry-run")
    assert done.stdout.strip() == "s3://clean/boxes/a.jpg  --extra 0,0,3,1"
    assert "1 would be enqueued, 0 unchanged, 2 refused" in done.stderr

    path.write_text(json.dumps({"name": "s3://clean/boxes/a.jpg", "shapes": [{"area": BOX}]}))
    done = receipt("import", path, "--outputs", "s3://clean/boxes", "--dry-run")
    assert done.returncode == 2
    assert "all names are addresses" in done.stderr


def test_a_changed_box_or_label_is_hidden_and_no_face_becomes_clear(archive, receipt, tmp_path):
    path = tmp_path / "boxes.json"
    receipt("export", "s3://clean/boxes", "--format", "coco", "-o", path)
    coco = json.loads(path.read_text())
    larger, relabelled = coco["annotations"][:2]
    larger["bbox"] = [0, 0, 3, 1]
    relabelled["category_id"] = 4
    path.write_text(json.dumps(coco))
    done = receipt("import", path, "--dry-run")
    assert done.stdout.splitlines() == [
        "s3://clean/boxes/a.jpg  --extra 0,0,3,1",
        "s3://clean/boxes/b & c.jpg  --extra 0,0,1,1",
    ]
    assert "2 would be enqueued, 2 unchanged, 0 refused" in done.stderr


def test_a_place_without_receipts_is_a_failure(receipt):
    assert receipt("export", "s3://clean/boxes/nothing-here").returncode == 1
    assert receipt("export", "s3://clean/boxes", "--format", "voc").returncode == 2
