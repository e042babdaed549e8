"""Marks from annotation tools: which shapes are exposed faces."""

import json
from dataclasses import replace

import pytest

from tasks.errors import DatasetInvalid
from tasks.records.samples import Sample, SampledPicture
from worker.sampling import marked
from worker.sampling.acceptance import accept

FACE_BOX, PLATE_BOX, ELSEWHERE = [0, 0, 20, 20], [40, 40, 60, 50], [70, 10, 90, 30]
PICTURE = SampledPicture(
    "s3://clean/a.jpg",
    "e",
    "s3://raw/=s3://clean/",
    width=100,
    height=80,
    boxes_xyxy=[FACE_BOX],
    others_xyxy=[PLATE_BOX],
    other_labels=["plate"],
)
OTHERS = {"plate"}
SAMPLE = Sample("0a1b2c3d", ["s3://clean"], 1, 1, 1.8e9, [PICTURE])


def test_labels_that_may_be_those_of_faces_are_no_others():
    heads = replace(PICTURE, boxes_xyxy=[], other_labels=["head"])
    both = replace(SAMPLE, pictures=[PICTURE, heads])

    assert marked.no_face_labels(both, ["screen", "FACE"]) == {"plate", "head", "screen"}
    assert marked.no_face_labels(replace(SAMPLE, pictures=[heads]), ["screen"]) == {"plate"}


@pytest.mark.parametrize(
    ("label", "area", "is_exposed"),
    [
        ("face", FACE_BOX, False),
        ("extra", ELSEWHERE, False),
        ("plate", PLATE_BOX, False),
        ("plate", ELSEWHERE, False),
        ("exposed", PLATE_BOX, True),
        ("head", ELSEWHERE, True),
    ],
)
def test_a_shape_is_exposed_unless_it_was_hidden(tmp_path, label, area, is_exposed):
    path = tmp_path / "marks.jsonl"
    shapes = [{"area": area, "label": label}]
    path.write_text(json.dumps({"name": PICTURE.output, "shapes": shapes}))
    found = marked.read(path, SAMPLE, OTHERS)
    assert found.marks[0].exposed_xyxy == ([area] if is_exposed else [])


def test_a_visible_object_of_another_label_is_no_exposed_face_and_keeps_its_label(tmp_path):
    path = tmp_path / "marks.jsonl"
    shapes = [{"area": ELSEWHERE, "label": "plate"}, {"area": [0, 40, 10, 50], "label": "exposed"}]
    lines = [{"name": name, "shapes": shapes[:1]} for name in ("s3://clean/other.jpg",)]
    lines.append({"name": PICTURE.output, "shapes": shapes})
    path.write_text("\n".join(map(json.dumps, lines)))

    found = marked.read(path, SAMPLE, OTHERS)

    assert (found.no_faces, found.others, found.others_exposed) == ({"plate": 1}, 1, 0)
    (finding,) = accept(SAMPLE, found.marks).misses
    assert finding.exposed_xyxy == [[0, 40, 10, 50]]
    assert finding.others == [("plate", PLATE_BOX), ("plate", ELSEWHERE)]


def test_a_picture_that_is_in_the_file_twice_is_refused(tmp_path):
    path = tmp_path / "marks.jsonl"
    lines = [{"output": PICTURE.output, "exposed": exposed} for exposed in ([ELSEWHERE], [])]
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DatasetInvalid, match=r"has s3://clean/a\.jpg twice"):
        marked.read(path, SAMPLE, OTHERS)
