"""``veil sample``: drawn from a real store, reviewed by a file or on the desk, and reproducible."""

import base64
import json
from dataclasses import replace

import pytest

from tasks.records import samples
from tasks.records.review import REVIEW_LIST, ReviewEntry
from tests.integration.conftest import RECIPE


@pytest.fixture(scope="module")
def archive(store, archive_at):
    archive = archive_at(store, "sampling/")
    for number in range(40):
        key = f"{number}.jpg"
        archive.done(key, archive.source(key).etag, scores=(0.9,))
    return archive


@pytest.fixture
def settings(unattended, s3):
    return {
        **unattended.environment,
        **s3.environment(),
        "VEIL_ROUTES": "s3://raw/sampling=s3://clean/sampling",
    }


@pytest.fixture
def sample(veil, settings):
    """``sample(*arguments)`` runs the command for 12 of the 40 outputs."""

    def run(*arguments):
        return veil(
            *("sample", "s3://clean/sampling", "--pictures", 12, "--json", *arguments),
            environment=settings,
        )

    return run


def arguments_of(message):
    """The arguments of the task in a message on a queue."""
    return json.loads(base64.b64decode(json.loads(message)["body"]))[0]


def stored(queue):
    (header,) = samples.headers(queue.client)
    return samples.find(queue.client, header["name"])


def test_a_sample_is_drawn_once_and_its_marks_on_the_desk_count(archive, sample, unattended):
    first = sample()
    assert first.returncode == 1  # nothing is reviewed
    result = json.loads(first.stdout)
    assert (result["archive"], result["drawn"], result["reviewed"]) == (40, 12, 0)

    drawn = stored(unattended)
    assert drawn.pictures[0].boxes_xyxy == [[0, 0, 1, 1]]
    assert drawn.pictures[0].source == drawn.pictures[0].output.replace("clean", "raw")
    for number in range(12):
        exposed = [[5, 5, 60, 60]] if number == 3 else []
        samples.mark(unattended.client, drawn.name, number, exposed, "ana")
    done = sample()
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["complete"]
    assert (result["pictures"]["found"], result["pictures"]["of"]) == (1, 12)
    assert (result["faces"]["found"], result["faces"]["of"]) == (1, 13)
    assert result["pictures"]["low"] == pytest.approx(0.0021, abs=1e-4)
    assert result["misses"][0]["output"] == drawn.pictures[3].output


def test_an_output_below_two_addresses_counts_once(archive, sample):
    """Otherwise it would be likelier than others to be drawn, and its faces would count twice."""
    result = json.loads(sample("s3://clean/sampling/", "s3://clean").stdout)
    assert (result["archive"], result["drawn"]) == (40, 12)


def test_marks_can_come_from_a_file_without_redis(archive, veil, settings, tmp_path):
    report = tmp_path / "report.html"
    without_redis = {**settings, "VEIL_REDIS_URL": "redis://127.0.0.1:1/0"}
    marks = tmp_path / "marks.jsonl"
    marks.write_text("")
    command = ("sample", "s3://clean/sampling", "--pictures", 5, "--seed", 9, "--json")
    nothing = veil(*command, "--marks", marks, environment=without_redis)
    assert nothing.returncode == 1
    lines = [
        json.dumps({"output": f"s3://clean/sampling/{number}.jpg", "exposed": []})
        for number in range(40)
    ]
    marks.write_text("\n".join(lines))
    done = veil(*command, "--marks", marks, "-o", report, environment=without_redis)
    assert done.returncode == 0, done.stderr
    assert "35 pictures of" in done.stderr  # not in the sample
    assert f"no picture of the sample has a mark of an exposed face in {marks}" in done.stderr
    assert "left out with a mark" not in done.stderr
    assert json.loads(done.stdout)["reviewed"] == 5
    assert "No miss in 5 pictures" in report.read_text()
    again = veil(*command, "--marks", marks, environment=without_redis)
    assert again.stdout == done.stdout


def test_misses_of_pictures_outside_of_the_sample_are_named(archive, veil, settings, tmp_path):
    marks = tmp_path / "marks.jsonl"
    marks.write_text(
        "\n".join(
            json.dumps({"output": f"s3://clean/sampling/{number}.jpg", "exposed": [[0, 0, 2, 2]]})
            for number in range(40)
        )
    )
    done = veil(
        "sample", "s3://clean/sampling", "--pictures", 5, "--marks", marks, environment=settings
    )
    assert "35 pictures left out with a mark of an exposed face" in done.stderr
    command = ("sample", "s3://clean/sampling", "--pictures", 5, "--marks", marks, "--json")
    as_json = veil(*command, environment=settings)
    assert json.loads(as_json.stdout)["exposed_left_out"] == 35
    assert "no picture of the sample" not in done.stderr


def test_an_unedited_export_is_noticed(archive, veil, settings, tmp_path):
    """Its shapes are the hidden faces: nobody has marked anything."""
    path = tmp_path / "boxes.xml"
    place = "s3://clean/sampling"
    exported = veil(
        "receipt", "export", place, "--format", "cvat", "-o", path, environment=settings
    )
    assert exported.returncode == 0, exported.stderr
    done = veil("sample", place, "--pictures", 5, "--marks", path, environment=settings)
    assert f"no picture of the sample has a mark of an exposed face in {path}" in done.stderr
    assert "left out with a mark" not in done.stderr


def test_a_mark_outside_of_its_picture_is_refused_and_one_across_its_edge_is_clipped(
    archive, veil, settings, tmp_path
):
    """The pictures have 3 x 2 pixels."""
    path = tmp_path / "marks.jsonl"
    command = ("sample", "s3://clean/sampling", "--pictures", 40, "--json", "--marks", path)

    def marked(exposed, **more):
        line = {"output": "s3://clean/sampling/3.jpg", "exposed": [exposed], **more}
        path.write_text(json.dumps(line))
        return veil(*command, environment=settings)

    outside = marked([30, 0, 40, 2])
    assert outside.returncode == 2
    message = "the mark 30,0,40,2 is outside of s3://clean/sampling/3.jpg, which has 3 x 2 pixels"
    assert message in outside.stderr
    other = marked([0, 0, 2, 2], width=300, height=200)
    assert "are of a picture of 300 x 200 pixels, and it has 3 x 2" in other.stderr
    across = marked([1, 0, 40, 40])
    assert "1 mark of" in across.stderr
    assert json.loads(across.stdout)["misses"][0]["exposed_xyxy"] == [[1, 0, 3, 2]]


def test_other_objects_than_faces_keep_their_labels(store, archive_at, veil, settings, tmp_path):
    """A plate that stays clear is no exposed face, and a training learns no face from it."""
    archive = archive_at(store, "plates/")
    for key, label in (("a.jpg", "plate"), ("b.jpg", None)):
        archive.done(key, archive.source(key).etag, scores=(0.9,), label=label)
    boxes = {"a.jpg": [([1, 0, 3, 2], "plate"), ([0, 1, 3, 2], "head")], "b.jpg": []}
    lines = [
        {
            "name": f"s3://clean/plates/{key}",
            "shapes": [{"area": area, "label": label} for area, label in shapes],
        }
        for key, shapes in boxes.items()
    ]
    marks, folder = tmp_path / "marks.jsonl", tmp_path / "training"
    marks.write_text("\n".join(map(json.dumps, lines)))
    command = ("sample", "s3://clean/plates", "--marks", marks, "--json", "--training", folder)
    environment = {**settings, "VEIL_ROUTES": "s3://raw/plates=s3://clean/plates"}

    done = veil(*command, environment=environment)

    result = json.loads(done.stdout)
    assert (result["faces"]["found"], result["faces"]["of"]) == (1, 2)
    assert [miss["exposed_xyxy"] for miss in result["misses"]] == [[[0, 1, 3, 2]]]
    assert f"1 mark of {marks} with the label plate, which is no face" in done.stderr
    assert "has other labels, too: veil train import --classes face,plate" in done.stderr
    labels = json.loads((folder / "annotations.json").read_text())
    names = {category["id"]: category["name"] for category in labels["categories"]}
    found = [(names[each["category_id"]], each["bbox"]) for each in labels["annotations"]]
    assert found == [("face", [0, 1, 3, 1]), ("plate", [0, 0, 1, 1]), ("plate", [1, 0, 2, 2])]

    marks.write_text("\n".join(json.dumps({**line, "shapes": []}) for line in lines))
    without_miss = tmp_path / "none"
    nothing = veil(*command[:-1], without_miss, environment=environment)
    assert nothing.returncode == 0, nothing.stderr
    assert "no source with a miss to write" in nothing.stderr
    assert not without_miss.exists()


def test_misses_go_to_redo_and_to_training(archive, sample, unattended, tmp_path):
    sample()
    drawn = stored(unattended)
    samples.mark(unattended.client, drawn.name, 0, [[5, 5, 60, 60]], "ana")
    folder = tmp_path / "training"
    done = sample("--redo", "--training", folder)
    assert "1 enqueued" in done.stderr
    assert unattended.client.llen("uploads") == 1
    labels = json.loads((folder / "annotations.json").read_text())
    (image,) = labels["images"]
    assert (folder / image["file_name"]).read_bytes() == b"picture"
    assert [annotation["bbox"] for annotation in labels["annotations"]] == [
        [5, 5, 55, 55],
        [0, 0, 1, 1],
    ]
    assert "has files" in sample("--training", folder).stderr


def test_a_redo_keeps_the_areas_that_were_asked_for_since_and_asks_for_no_miss_twice(
    archive, sample, unattended
):
    """With the options of the time of the drawing, the areas of a later redo would show again."""
    sample()
    drawn = stored(unattended)
    key = drawn.pictures[0].output.rpartition("/")[2]
    samples.mark(unattended.client, drawn.name, 0, [[1, 0, 3, 2]], "ana")
    recipe, etag = f"{RECIPE}-0a1b2c3d", drawn.pictures[0].source_etag
    archive.receipt(key, etag, recipe, options={"extra": [[0, 1, 1, 2]]})
    archive.output(key, etag, recipe)
    assert "1 enqueued" in sample("--redo").stderr
    _, _, options = arguments_of(unattended.client.rpop("uploads"))
    assert options == {"extra": [[0, 1, 1, 2], [1, 0, 3, 2]]}

    archive.receipt(key, etag, recipe, options=options)
    again = sample("--redo")
    assert "0 enqueued" in again.stderr
    assert "1 picture with a miss left out" in again.stderr
    assert not unattended.client.llen("uploads")


def test_a_redo_hides_the_areas_of_one_that_waits(archive, sample, unattended):
    """Its output takes the place of the other one, and so does that of the next one."""
    sample()
    drawn = stored(unattended)
    picture = drawn.pictures[2]
    samples.mark(unattended.client, drawn.name, 2, [[1, 0, 3, 2]], "ana")
    options = {"extra": [[0, 1, 1, 2]], "region": 1.0}
    entry = ReviewEntry(picture.source, picture.source_etag, "r", "flagged", "x", 1.0)
    REVIEW_LIST.record(unattended.client, replace(entry, options=options))
    assert "1 enqueued" in sample("--redo").stderr
    both = {"region": 1.0, "extra": [[0, 1, 1, 2], [1, 0, 3, 2]]}
    assert arguments_of(unattended.client.rpop("uploads"))[2] == both
    (waiting,) = REVIEW_LIST.entries(unattended.client)
    assert waiting.options == both


def test_a_redo_leaves_out_a_source_that_was_replaced(archive, sample, unattended):
    """Its areas, and those that keep a face clear, would be at other places of the new version."""
    sample()
    drawn = stored(unattended)
    key = drawn.pictures[1].output.rpartition("/")[2]
    samples.mark(unattended.client, drawn.name, 1, [[1, 0, 3, 2]], "ana")
    archive.source(key, b"another picture")
    try:
        assert "0 enqueued" in sample("--redo").stderr
        assert not unattended.client.llen("uploads")
    finally:
        archive.source(key)


@pytest.mark.parametrize(
    ("address", "message"),
    [("s3://clean/sampling/none", "no output below"), ("s3://other", "no route of VEIL_ROUTES")],
)
def test_a_place_without_outputs_is_refused(veil, settings, archive, address, message):
    done = veil("sample", address, environment=settings)
    assert done.returncode in (1, 2)
    assert message in done.stderr
