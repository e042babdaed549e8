"""`veil train import`: the same data set from all formats, its checks, duplicates and splits."""

import errno
import json
import os
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageFilter
from typer.testing import CliRunner

from tasks.errors import DatasetInvalid, InvalidRequest, OutputFailed
from tests import label_formats
from training.cli import app
from training.data import formats, importing, likeness, overview
from training.data.dataset import Dataset
from training.data.importing import Choice, Problem

pytest.importorskip("matplotlib", reason="pip install 'veil[worker,training]'")

EVERYTHING = Choice(val=0, test=0)


def photograph(path, seed, size=(96, 72)):
    """Return a picture that is unlike those of all other seeds."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path, quality=95)
    return path


@pytest.fixture
def pictures(tmp_path):
    """Twelve pictures of three kinds with up to two faces and an ignored area."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    made = []
    for i in range(12):
        path = photograph(folder / f"p{i}.{('jpg', 'png', 'webp')[i % 3]}", i)
        labels = [("with_mask", (10 + i, 8, 40, 50), False), ("bare", (50, 20.5, 80, 60), False)][
            : i % 3
        ]
        made.append((path, labels + [("ignore", (0, 0, 6, 6), True)] * (i % 4 == 0)))
    return made


def imported(source, folder, choice=EVERYTHING, form=None):
    return importing.run(formats.read(source, form, []), folder, choice)


WRITERS = {
    "voc": label_formats.write_voc,
    "coco": label_formats.write_coco,
    "wider": label_formats.write_wider,
    "veil": label_formats.write_veil,
}


def test_every_format_gives_the_same_data_set(pictures, tmp_path):
    found = {
        name: imported(write(pictures, tmp_path / name), tmp_path / f"set-{name}")
        for name, write in WRITERS.items()
    }

    assert len({each.dataset.digest for each in found.values()}) == 1
    one = found["voc"].dataset
    assert Counter(len(picture.faces) for picture in one.pictures) == {0: 4, 1: 4, 2: 4}
    assert sum(len(picture.ignore) for picture in one.pictures) == 3
    assert found["coco"].labels_before == {"with_mask": 8, "bare": 4, "ignore": 3}
    assert found["coco"].labels_after == {"FACE": 12, "ignore": 3}


def test_yolo_agrees_but_for_what_it_cannot_say(pictures, tmp_path):
    without_ignored = [
        (path, [label for label in labels if not label[2]]) for path, labels in pictures
    ]

    yolo = imported(label_formats.write_yolo(without_ignored, tmp_path / "yolo"), tmp_path / "a")
    voc = imported(label_formats.write_voc(without_ignored, tmp_path / "voc"), tmp_path / "b")

    assert yolo.dataset.digest == voc.dataset.digest
    assert yolo.labels_before == {"with_mask": 8, "bare": 4}
    without = yolo.problems[importing.WITHOUT].pictures
    assert without == sorted(voc.problems[importing.WITHOUT].pictures)


def test_development_pictures_give_one_digest_from_voc_and_coco(data, tmp_path):
    pictures = list(label_formats.annotations(data("masks")))[:30]

    voc = imported(
        label_formats.write_voc(pictures, tmp_path / "voc"), tmp_path / "a", Choice(val=0.2)
    )
    coco = imported(
        label_formats.write_coco(pictures, tmp_path / "coco"), tmp_path / "b", Choice(val=0.2)
    )

    assert voc.dataset.digest == coco.dataset.digest
    assert sum(len(picture.faces) for picture in voc.dataset.pictures) == sum(
        len(labels) for _, labels in pictures
    )


def test_a_chosen_mapping_keeps_ignores_and_drops(pictures, tmp_path):
    source = label_formats.write_voc(pictures, tmp_path / "voc")

    found = imported(
        source, tmp_path / "set", Choice({"with_mask": "FACE", "bare": "ignore"}, 0, 0)
    )

    assert found.mapped == {
        ("with_mask", "FACE"): 8,
        ("bare", "ignore"): 4,
        ("ignore", "ignore"): 3,
    }
    assert found.labels_before == {"with_mask": 8, "bare": 4, "ignore": 3}
    assert found.labels_after == {"FACE": 8, "ignore": 7}
    assert overview.label_line(overview.summary(found)) == (
        "with_mask 8, bare 4, ignore 3 → FACE 8, ignore 7"
    )
    only = imported(source, tmp_path / "only", Choice({"bare": "FACE"}, 0, 0))
    assert only.labels_after == {"FACE": 4, "ignore": 3}


def test_bad_boxes_and_pictures_are_named_and_the_rest_is_imported(tmp_path):
    whole = photograph(tmp_path / "whole.jpg", 1)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[:900])
    other = photograph(tmp_path / "other.jpg", 2)
    content = {
        "images": [
            {
                "file": "whole.jpg",
                "faces": [[-5, 10, 30, 40], [20, 20, 20, 50], [200, 10, 220, 30], [5, 5, 25, 30]],
            },
            {"file": "cut.jpg", "faces": [[1, 1, 20, 20]]},
            {"file": "gone.jpg", "faces": [[1, 1, 20, 20]]},
            {"file": "other.jpg", "width": 72, "height": 90, "faces": [[1, 1, 20, 20]]},
        ]
    }
    (tmp_path / "annotations.json").write_text(json.dumps(content))

    found = imported(tmp_path / "annotations.json", tmp_path / "set")

    (picture,) = found.dataset.pictures
    assert picture.faces == ((0.0, 10.0, 30.0, 40.0), (5.0, 5.0, 25.0, 30.0))
    assert found.problems == {
        importing.OUTSIDE: Problem(["whole.jpg"], 1),
        importing.EMPTY: Problem(["whole.jpg"], 2),
        importing.UNREADABLE: Problem(["cut.jpg"]),
        importing.MISSING: Problem(["gone.jpg"]),
        importing.OTHER_SIZE: Problem([other.name]),
    }
    assert importing.problem_lines(found.problems)[:3] == [
        "1 box in 1 picture cut at the edge of the picture: whole.jpg",
        "2 boxes in 1 picture dropped, without area or wholly outside: whole.jpg",
        "1 picture left out, because the file can't be read: cut.jpg",
    ]


def coco(folder, boxes):
    """Write COCO with a picture of 96 x 72 pixels for each list of `boxes`; return its file."""
    annotations = [
        {"id": 10 * number + place, "image_id": number, "category_id": 1, "bbox": box}
        for number, its in enumerate(boxes)
        for place, box in enumerate(its)
    ]
    content = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in range(len(boxes))],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "face"}],
    }
    for number in range(len(boxes)):
        photograph(folder / f"{number}.png", number)
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json"


FINE = [10, 8, 30, 40]


def test_a_picture_that_lost_all_its_boxes_is_no_background(tmp_path):
    source = coco(tmp_path, [[FINE], [[0.1, 0.2, 0.3, 0.4]], [FINE, [5, 5, 0, 9]], []])

    found = imported(source, tmp_path / "set")

    boxes = sorted(len(picture.faces) for picture in found.dataset.pictures)
    assert boxes == [0, 1, 1]
    assert found.problems == {
        importing.EMPTY: Problem(["1.png", "2.png"], 2),
        importing.LOST: Problem(["1.png"]),
        importing.WITHOUT: Problem(["3.png"]),
    }
    assert overview.summary(found)["problems"][importing.EMPTY] == {"boxes": 2, "pictures": 2}


def test_a_picture_whose_labels_are_dropped_on_purpose_stays_background(tmp_path):
    source = coco(tmp_path, [[FINE], [[0, 0, 0, 0]]])
    content = json.loads(source.read_text())
    content["categories"].append({"id": 2, "name": "tag"})
    content["annotations"][1]["category_id"] = 2
    source.write_text(json.dumps(content))

    found = imported(source, tmp_path / "set", Choice.of({"face": "FACE"}, 0, 0, []))

    assert len(found.dataset.pictures) == 2
    assert found.problems == {importing.DROPPED: Problem(["1.png"], 1)}
    assert overview.label_line(overview.summary(found)) == "face 1, tag 1 → FACE 1, drop 1"


# Faces of 20 x 25 pixels in three places of a picture of 96 x 72 pixels.
PLACES = [(5, 6), (40, 30), (70, 45)]


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        (
            [[x / 96, y / 72, 20 / 96, 25 / 72] for x, y in PLACES],
            "boxes look like fractions of the picture; COCO wants pixels",
        ),
        (
            [[x, y, x + 20, y + 25] for x, y in PLACES],
            "boxes look like x1 y1 x2 y2; COCO wants x y width height",
        ),
        ([[x + 200, y, 20, 25] for x, y in PLACES], r"3 of 3 boxes have no area, or lie wholly"),
    ],
)
def test_boxes_that_are_not_what_the_format_wants_are_refused_with_the_cause(boxes, said, tmp_path):
    source = coco(tmp_path, [[box] for box in boxes])

    with pytest.raises(DatasetInvalid, match=said) as raised:
        imported(source, tmp_path / "set")

    assert str(raised.value).startswith(str(source))
    assert not (tmp_path / "set").exists()


def test_one_of_several_sources_with_wrong_boxes_is_named(tmp_path):
    labelled = []
    for name, box in (("right", FINE), ("wrong", [0.1, 0.2, 0.3, 0.4])):
        (tmp_path / name).mkdir()
        labelled += formats.read(coco(tmp_path / name, [[box]] * 3), None, [])

    with pytest.raises(DatasetInvalid, match=r"wrong/instances\.json: boxes look like fractions"):
        importing.run(labelled, tmp_path / "set", EVERYTHING)


def test_near_duplicates_share_a_split_and_copies_are_joined(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    pictures = []
    for i in range(40):
        path = photograph(folder / f"{i}.png", i, (160, 120))
        with Image.open(path) as image:
            image.resize((120, 90)).filter(ImageFilter.GaussianBlur(0.5)).save(
                folder / f"{i}-smaller.jpg", quality=70
            )
        pictures += [(path, [("face", (10, 10, 60, 70), False)])]
        pictures += [(folder / f"{i}-smaller.jpg", [("face", (8, 8, 45, 52), False)])]
    copy = folder / "copy.png"
    copy.write_bytes(pictures[0][0].read_bytes())
    pictures.append((copy, [("face", (90, 10, 130, 70), False)]))

    found = imported(
        label_formats.write_veil(pictures, tmp_path / "veil"),
        tmp_path / "set",
        Choice(val=0.3, test=0.3),
    )

    assert len(found.dataset.pictures) == 80
    assert found.problems[importing.SAME] == Problem(["images/copy.png"])
    assert len(found.problems[importing.ALIKE].pictures) == 40
    hashes = [
        likeness.perceptual_hash(found.dataset.pixels(picture))
        for picture in found.dataset.pictures
    ]
    for members in likeness.groups(hashes):
        assert len(members) == 2
        assert len({found.dataset.pictures[i].split for i in members}) == 1
    assert {picture.split for picture in found.dataset.pictures} == {"train", "val", "test"}
    (joined,) = (picture for picture in found.dataset.pictures if len(picture.faces) == 2)
    assert joined.faces == ((10.0, 10.0, 60.0, 70.0), (90.0, 10.0, 130.0, 70.0))


def test_boxes_of_two_labellings_that_differ_by_a_pixel_are_one_object(tmp_path):
    path = photograph(tmp_path / "one.png", 0, (160, 120))
    large, small, other = (10, 10, 60, 70), (90, 10, 98, 19), (100, 60, 140, 110)
    labellings = [[large, small], [tuple(side + 1 for side in large), (91, 11, 99, 20), other]]
    labelled = []
    for number, boxes in enumerate(labellings):
        faces = [("face", box, False) for box in boxes]
        source = label_formats.write_veil([(path, faces)], tmp_path / f"veil{number}")
        labelled += formats.read(source, None, [])

    found = importing.run(labelled, tmp_path / "set", Choice(val=0, test=0))

    assert found.dataset.pictures[0].faces == (large, small, other)
    near = found.problems[importing.NEAR]
    assert (len(near.pictures), near.boxes) == (1, 2)


def test_boxes_that_one_source_gives_twice_are_one_object(tmp_path):
    """A second box of an object is a miss of every model, and halves the recall."""
    path = photograph(tmp_path / "one.png", 0, (160, 120))
    large, other, area = (10, 10, 60, 70), (100, 60, 140, 110), (2, 90, 30, 118)
    labels = [("with_mask", large, False), ("bare", tuple(side + 1 for side in large), False)]
    labels += [("plate", large, False), *[("bare", other, False)] * 2, *[("hat", area, True)] * 2]
    mapping = {"with_mask": "FACE", "bare": "FACE"}

    found = imported(
        label_formats.write_veil([(path, labels)], tmp_path / "veil"),
        tmp_path / "set",
        Choice.of(mapping, 0, 0, ["face", "plate"]),
    )

    (picture,) = found.dataset.pictures
    assert picture.boxes_of(0) == (large, other)
    assert picture.boxes_of(1) == (large,)
    assert picture.ignore == (area,)
    near = found.problems[importing.NEAR]
    assert (near.pictures, near.boxes) == (["images/one.png"], 3)


def test_a_picture_stays_in_its_split_when_others_come(pictures, tmp_path):
    choice = Choice(val=0.3, test=0)
    some = imported(
        label_formats.write_voc(pictures[:8], tmp_path / "some"), tmp_path / "a", choice
    )
    all_of_them = imported(
        label_formats.write_voc(pictures, tmp_path / "all"), tmp_path / "b", choice
    )

    splits = {picture.sha256: picture.split for picture in all_of_them.dataset.pictures}
    assert all(splits[picture.sha256] == picture.split for picture in some.dataset.pictures)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (Choice({"hat": "FACE"}), r"no box has the label 'hat': there are bare, ignore, with_mask"),
        (
            Choice({"bare": "HAT"}),
            r"'bare' can become FACE, ignore or drop, not 'HAT': make it .* --classes HAT$",
        ),
        (
            Choice.of({"with_mask": "HAT", "ignore": "drop"}, 0, 0, ["bare"]),
            r"'with_mask' can become bare, ignore or drop, not 'HAT': .* --classes bare,HAT$",
        ),
        (Choice({"bare": "ignore"}), r"no picture has a face"),
        (Choice(val=0.0001, test=0), r"the split 'val' would have no face"),
    ],
)
def test_an_unusable_data_set_is_refused_in_one_line_and_leaves_nothing(
    pictures, tmp_path, choice, said
):
    source = label_formats.write_voc(pictures, tmp_path / "voc")

    with pytest.raises(DatasetInvalid, match=said):
        imported(source, tmp_path / "set", choice)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["photographs", "voc"]


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("a.json", "{", None),
        ("a.json", '{"images": []}', None),
        ("a.json", '{"images": [{"id": 1}], "annotations": []}', None),
        ("a.json", '{"images": [], "annotations": [{"image_id": 7}], "categories": []}', None),
        ("a.json", "[]", None),
        ("a.xml", "<annotation><object><name>x</name></object></annotation>", None),
        ("a.xml", "<annotation>", None),
        ("a.txt", "a.jpg\nmany\n", None),
        ("a.txt", "a.jpg\n3\n1 1 5 5\n", None),
        ("a.csv", "a.jpg,1,2,3,4\n", None),
        ("a.csv", "a.jpg,1,2,3,4\n", "coco"),
    ],
)
def test_labels_that_cannot_be_read_are_one_line(tmp_path, name, content, form):
    (tmp_path / name).write_text(content)

    with pytest.raises(DatasetInvalid) as raised:
        formats.read(tmp_path / name, form, [])

    assert len(str(raised.value).splitlines()) == 1
    assert name in str(raised.value)


def coco_of(**parts):
    """Return a COCO file with other `parts`; one that is None is left out."""
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"id": 7, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 1, "name": "face"}],
        **parts,
    }
    return json.dumps({name: part for name, part in content.items() if part is not None})


def coco_with(annotation):
    return coco_of(annotations=[{"id": 7, "image_id": 1, "category_id": 1, **annotation}])


VOC_BOX = "<xmin>1</xmin><ymin>2</ymin><xmax>{}</xmax><ymax>9</ymax>"
VOC_OBJECT = f"<object><name>{{}}</name><bndbox>{VOC_BOX}</bndbox></object>"


def voc_with(side, name="face"):
    return f"<annotation>{VOC_OBJECT.format('face', 8)}{VOC_OBJECT.format(name, side)}</annotation>"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("Annotations/b.xml", "<annotation>", r"b\.xml is not voc, or damaged \(no element found"),
        (
            "Annotations/b.xml",
            voc_with("wide"),
            r"b\.xml, object 2, is not voc, .*'wide' in a box is not",
        ),
        (
            "boxes.xml",
            '<annotations><image name="a.jpg"/></annotations>',
            r"boxes\.xml is not voc, .*CVAT is no format of training data, export Pascal VOC or",
        ),
        ("Annotations/b.xml", "<html/>", r"b\.xml is not voc, .*it has <html> at its top\)"),
        (
            "a.json",
            "[]",
            r'a\.json has a list at its top, and COCO .* have an object with "images"',
        ),
        (
            "a.json",
            coco_of(
                annotations=[
                    {"id": 7, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]},
                    {"id": 7, "image_id": 1, "category_id": 1, "bbox": [5, 2, 3, 4]},
                ]
            ),
            r"a\.json, annotation 7, .*the id 7 occurs twice",
        ),
        ("a.json", "{}", r"a\.json is not veil, or damaged \(it has no 'images'\)"),
        (
            "a.json",
            '{"images": [{"file": "a.jpg", "faces": [[1, 2, 3]]}]}',
            r"a\.json, picture 1, is not veil, .*a box has four numbers, not 3",
        ),
        (
            "a.json",
            '{"images": [{"file": "a", "faces": [[1, 2, 3, 4], [5, 6, 7, 8]], "labels": ["a"]}]}',
            r"picture 1, is not veil, .*\(2 faces and 1 label\)",
        ),
        (
            "a.json",
            '{"images": [{"file": 5, "faces": []}]}',
            r"picture 1, .*\(a part of it is of another type than this format has\)",
        ),
        ("a.json", coco_of(images=[5]), r"image 1, .*\(a part of it is of another type than"),
        ("a.json", coco_with({"bbox": ["1", "2", "3", "4"]}), r"'1' in a box is not a number"),
        ("a.json", coco_with({"bbox": 5}), r"a box has four numbers, not 5"),
        ("labels/b.txt", "a .5 .5 .1 .1\n", r"b\.txt, line 1, .*\('a' is not a number\)"),
        ("labels/b.txt", "inf .5 .5 .1 .1\n", r"b\.txt, line 1, .*the class inf has no name"),
        ("a.json", coco_with({}), r"a\.json, annotation 7, .*it has no 'bbox'"),
        (
            "a.json",
            coco_with({"bbox": [1, float("nan"), 3, 4]}),
            r"a\.json, annotation 7, .*nan in a box is not a finite number",
        ),
        (
            "a.json",
            coco_with({"bbox": [1, 2, float("inf"), 4]}),
            r"a\.json, annotation 7, .*inf in a box is not a finite number",
        ),
        (
            "Annotations/b.xml",
            voc_with("nan"),
            r"b\.xml, object 2, is not voc, .*'nan' in a box is not",
        ),
        (
            "a.json",
            '{"name": "a.jpg"}\n{"name": "b.jpg"}\n',
            r"a\.json is no JSON .*JSON lines are no .*`veil receipt export --format coco`",
        ),
        ("Annotations/b.xml", voc_with(8, name=" "), r"b\.xml, object 2, .*a label has no name"),
        ("a.json", coco_of(categories=[{"id": 1, "name": ""}]), r"category 1, .*no name"),
        ("a.json", coco_of(categories=[{"id": 1, "name": None}]), r"category 1, .*no name"),
        (
            "a.json",
            '{"images": [{"file": "a.jpg", "faces": [[1, 2, 3, 4]], "labels": [""]}]}',
            r"a\.json, picture 1, .*a label has no name",
        ),
        (
            "a.json",
            coco_with({"category_id": 9}),
            r"annotation 7, .*category 9, which is not listed",
        ),
        ("a.json", coco_with({"image_id": 5}), r"annotation 7, .*picture 5, which is not listed"),
        ("a.json", coco_of(annotations=None), r"a\.json is not coco, .*it has no 'annotations'"),
        ("a.json", coco_of(categories=None), r"a\.json is not coco, .*it has no 'categories'"),
        ("a.json", coco_of(images=None), r"a\.json is not coco, .*it has no 'images'"),
        ("a.json", coco_of(images=[{"file_name": "a.jpg"}]), r"a\.json, image 1, .*no 'id'"),
        ("a.json", coco_of(images=[{"id": 5}], annotations=[]), r"image 5, .*no 'file_name'"),
        ("a.json", coco_of(categories=[{"id": 1}]), r"a\.json, category 1, .*no 'name'"),
        (
            "a.json",
            coco_of(images=[{"id": 5, "file_name": "a.jpg"}, {"id": 5, "file_name": "b.jpg"}]),
            r"a\.json, image 5, .*the id 5 occurs twice",
        ),
        (
            "a.json",
            coco_of(categories=[{"id": 1, "name": "face"}, {"id": 1, "name": "hat"}]),
            r"a\.json, category 1, .*the id 1 occurs twice",
        ),
        ("labels/b.txt", "0 .5 .5 .1 .1\n0 .5 half .1 .1\n", r"labels/b\.txt, line 2, is not yolo"),
        ("labels/b.txt", "0 100 80 20 30\n", r"b\.txt, line 1, .*shares of the picture's sides"),
        (
            "labels/b.txt",
            "0 .5 .5 .1 .1 .93\n",
            r"line 1, .*6 numbers, of which the last is the score of a prediction",
        ),
        ("labels/b.txt", "0 .5 .5 nan .1\n", r"b\.txt, line 1, .*shares of the picture's sides"),
        ("labels/b.txt", "0 .1 .1 .2 .1 .2 .2 .1 .2\n", r"line 1, .*9 numbers, not the 5 of a box"),
        ("w_bbx_gt.txt", "a.jpg\n2\n1 2 3 4\n", r"gt\.txt, picture a\.jpg, .*ends within it"),
    ],
)
def test_a_damaged_label_is_named_with_its_file(tmp_path, name, content, said):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(content)
    if file.suffix == ".xml":
        (file.parent / "a.xml").write_text(voc_with(8))

    with pytest.raises(DatasetInvalid, match=said):
        formats.read(tmp_path, None, [])


def yolo(folder, line, description=""):
    """Return a folder of YOLO text with one label, `line`."""
    (folder / "labels").mkdir()
    (folder / "labels" / "a.txt").write_text(line)
    (folder / "data.yaml").write_text(description)
    return folder


def test_a_yolo_class_without_a_name_is_refused_if_others_have_one(tmp_path):
    source = yolo(tmp_path, "7 .5 .5 .1 .1\n", "names: [face]\n")

    with pytest.raises(DatasetInvalid, match=r"a\.txt, line 1, .*the class 7 has no name"):
        formats.read(source, None, [])
    (tmp_path / "data.yaml").write_text("names: {7: face}\n")
    ((label,),) = (each.labels for each in formats.read(source, None, []))
    assert label.name == "face"


def test_a_yolo_source_without_labels_is_refused_unless_it_says_so(pictures, tmp_path):
    folder = tmp_path / "coco"
    (folder / "images").mkdir(parents=True)
    photograph(folder / "images" / "a.png", 0)
    said = r"coco is not yolo, .*it has no folder labels.*an empty one"
    with pytest.raises(DatasetInvalid, match=said):
        formats.read(folder, "yolo", [])

    (folder / "labels").mkdir()
    (picture,) = formats.read(folder, "yolo", [])
    assert picture.labels == ()


NOT_UTF8 = b"0 .5 .5 .1 .1\n\xff\n"


@pytest.mark.parametrize(
    ("name", "form", "line"),
    [
        ("labels/b.txt", "yolo", 2),
        ("classes.txt", "yolo", 2),
        ("data.yaml", "yolo", 2),
        ("w_bbx_gt.txt", "wider", 2),
        ("a.json", "coco", 2),
        ("a.json", "veil", 2),
    ],
)
def test_labels_in_another_encoding_are_named_with_file_and_line(tmp_path, name, form, line):
    file = tmp_path / name
    (tmp_path / "labels").mkdir()
    file.write_bytes(NOT_UTF8)

    with pytest.raises(DatasetInvalid) as raised:
        formats.read(tmp_path, form, [])
    said = f"{file} is not {form}, or damaged (line {line} is no text in UTF-8)"
    assert str(raised.value) == said


@pytest.mark.parametrize("form", ["voc", "coco", "yolo", "wider", "veil"])
def test_labels_may_begin_with_the_mark_of_utf8(form, pictures, tmp_path):
    bare = [(path, [label for label in labels if not label[2]]) for path, labels in pictures]
    write = WRITERS.get(form, label_formats.write_yolo)
    write(bare, tmp_path / form)
    plain = formats.read(tmp_path / form, form, [])
    for file in (path for path in (tmp_path / form).rglob("*.*") if not path.is_symlink()):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())

    assert formats.read(tmp_path / form, None, []) == plain


def test_json_lines_lead_to_the_export_that_can_be_imported(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"name": "s3://clean/a.jpg", "shapes": []}\n')

    with pytest.raises(DatasetInvalid, match=r"b\.jsonl: .*`veil receipt export --format coco`"):
        formats.read(tmp_path / "b.jsonl", None, [])


def test_a_class_of_a_list_may_have_blanks_in_its_name_and_needs_one(tmp_path):
    source = yolo(tmp_path, "1 .5 .5 .1 .1\n")
    (tmp_path / "classes.txt").write_text("with mask\nlicence plate\n")

    ((label,),) = (each.labels for each in formats.read(source, None, []))
    assert label.name == "licence plate"
    for names in ("with mask\n\n", "with mask\n"):
        (tmp_path / "classes.txt").write_text(names)
        with pytest.raises(DatasetInvalid, match=r"a\.txt, line 1, .*the class 1 has no name"):
            formats.read(source, None, [])
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "data.yaml").write_text("names: {0: face, 1: }\n")
    with pytest.raises(DatasetInvalid, match=r"a\.txt, line 1, .*the class 1 has no name"):
        formats.read(source, None, [])


def test_two_files_that_name_a_class_differently_are_refused(tmp_path):
    source = yolo(tmp_path, "1 .5 .5 .1 .1\n", "names: [face, plate]\n")
    (tmp_path / "labels" / "classes.txt").write_text("face\nplate\n")
    assert len(formats.read(source, None, [])) == 1
    (tmp_path / "labels" / "classes.txt").write_text("plate\nface\n")
    with pytest.raises(DatasetInvalid, match=r"classes\.txt .*class 0 is 'plate', and 'face' in"):
        formats.read(source, "yolo", [])


@pytest.mark.parametrize(
    ("line", "description"),
    [
        ("0 .5 .5 .2 .4", ""),
        ("0 .5 .5 .2 .4 .45 .4 2 .55 .4 2", "kpt_shape: [2, 3]\n"),
    ],
)
def test_a_yolo_box_may_have_keypoints(tmp_path, line, description):
    ((label,),) = (
        each.labels for each in formats.read(yolo(tmp_path, line, description), None, [])
    )

    assert label.box == pytest.approx((0.4, 0.3, 0.6, 0.7))


@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_hidden_files_beside_labels_are_left_out(pictures, tmp_path, kind):
    write = {"voc": label_formats.write_voc, "yolo": label_formats.write_yolo}[kind]
    bare = [(path, [label for label in labels if not label[2]]) for path, labels in pictures]
    source = write(bare, tmp_path / kind)
    before = len(formats.read(source, None, []))
    for path in [path for path in source.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7Mac OS X")

    assert len(formats.read(source, None, [])) == before


def test_pictures_that_share_their_yolo_labels_are_refused(pictures, tmp_path):
    source = label_formats.write_yolo([pictures[0]], tmp_path / "yolo")
    picture = next((source / "images").iterdir())
    photograph(picture.with_suffix(".png"), 99)

    with pytest.raises(DatasetInvalid, match=r"p0\.png is not yolo, .*also those of .*p0\.jpg"):
        formats.read(source, None, [])


@pytest.mark.parametrize("form", ["voc", "yolo", "wider"])
def test_json_that_is_read_as_another_format_is_refused(form, tmp_path):
    with pytest.raises(DatasetInvalid, match=f"is JSON, and {form} is not: leave out --format"):
        formats.read(coco(tmp_path, [[FINE]]), form, [])


def test_a_folder_of_which_it_is_not_clear_what_to_read_is_refused(pictures, tmp_path):
    source = label_formats.write_coco(pictures, tmp_path / "coco" / "annotations")

    with pytest.raises(DatasetInvalid, match=r"name a file, such as .*\.json"):
        formats.read(tmp_path / "coco", None, [])
    with pytest.raises(DatasetInvalid, match="name the file"):
        formats.read(tmp_path / "coco", "coco", [])
    assert len(formats.read(source, None, [])) == len(pictures)


def test_pictures_that_are_nowhere_lead_to_the_option_that_names_their_folder(pictures, tmp_path):
    (tmp_path / "a.json").write_text('{"images": [{"file": "gone.jpg", "faces": [[1, 1, 9, 9]]}]}')

    with pytest.raises(DatasetInvalid, match="name their folder with --pictures"):
        imported(tmp_path / "a.json", tmp_path / "set")
    with pytest.raises(DatasetInvalid, match=r"--pictures .*nowhere is no folder"):
        formats.read(tmp_path / "a.json", None, [tmp_path / "nowhere"])


@pytest.mark.parametrize("to", ["relative", "absolute"])
def test_a_name_that_leads_out_of_the_folders_of_pictures_is_not_followed(tmp_path, to):
    secret = photograph(tmp_path / "secret.jpg", 1)
    folder = tmp_path / "download" / "data" / "labels"
    folder.mkdir(parents=True)
    name = str(secret) if to == "absolute" else "../../../secret.jpg"
    content = {"images": [{"file": name, "faces": [[1, 1, 30, 40]]}]}
    (folder / "a.json").write_text(json.dumps(content))

    with pytest.raises(DatasetInvalid, match="in none of the folders that are searched"):
        imported(folder / "a.json", tmp_path / "set")

    (found,) = formats.read(folder / "a.json", None, [tmp_path])
    assert found.path.samefile(secret)


@pytest.mark.parametrize(("factor", "cause"), [(None, "swap width and height"), (2, "other size")])
def test_sizes_that_are_wrong_in_most_labels_are_the_cause_that_is_named(
    pictures, tmp_path, factor, cause
):
    source = label_formats.write_coco(pictures, tmp_path / "coco")
    content = json.loads(source.read_text())
    for image in content["images"]:
        size = image["height"], image["width"]
        image["width"], image["height"] = (
            size if factor is None else (factor * side for side in size)
        )
    source.write_text(json.dumps(content))

    with pytest.raises(DatasetInvalid, match=f"^most labels state another size .*{cause}"):
        imported(source, tmp_path / "set", Choice(val=0.1, test=0.1))


def test_pictures_that_are_left_out_are_named_before_the_split_that_lacks_them(pictures, tmp_path):
    source = label_formats.write_coco(pictures, tmp_path / "coco")
    (tmp_path / "photographs" / "p1.png").unlink()

    said = "^1 picture left out, because the file is in none of .*; the split 'val' would have no"
    with pytest.raises(DatasetInvalid, match=said):
        imported(source, tmp_path / "set", Choice(val=0.0001, test=0))


def test_boxes_that_look_wrong_as_a_whole_are_a_warning_of_the_command_and_in_the_report(
    pictures, tmp_path
):
    source = label_formats.write_coco(pictures, tmp_path / "coco")
    content = json.loads(source.read_text())
    for item in content["annotations"]:
        item["bbox"] = [60, 50, 30, 25]
    source.write_text(json.dumps(content))
    command = ["import", str(source), "--to", str(tmp_path / "set"), "--val", "0", "--test", "0"]

    done = CliRunner().invoke(app, command, catch_exceptions=False)

    samples = tmp_path / "set" / "samples.jpg"
    doubt = (
        f"{source}: 15 of 15 boxes reach out of their pictures on the right or at the bottom, and "
        "0 on the other sides: they look like cx cy width height"
    )
    assert f"veil: warning: {doubt}" in done.stderr
    assert f"samples: {samples}" in done.stdout
    assert doubt in (tmp_path / "set" / "report.md").read_text()


def test_a_full_disk_is_one_line_and_leaves_nothing(pictures, tmp_path, monkeypatch):
    labelled = formats.read(label_formats.write_voc(pictures, tmp_path / "voc"), None, [])

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(importing.Path, "write_bytes", full)
    with pytest.raises(OutputFailed, match="No space left on device"):
        importing.run(labelled, tmp_path / "set", EVERYTHING)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["photographs", "voc"]


def test_the_same_again_changes_nothing_and_something_else_is_refused(pictures, tmp_path):
    source = label_formats.write_voc(pictures, tmp_path / "voc")
    first = imported(source, tmp_path / "set").dataset

    assert imported(source, tmp_path / "set").dataset == first
    with pytest.raises(DatasetInvalid, match="set holds another data set, of 12 pictures: choose"):
        imported(source, tmp_path / "set", Choice({"bare": "FACE"}, 0, 0))
    with pytest.raises(DatasetInvalid, match="set holds the same pictures with other splits, of"):
        imported(source, tmp_path / "set", Choice(val=0.5, test=0))
    assert Dataset.load(tmp_path / "set") == first
    with pytest.raises(OutputFailed, match=r"voc holds something else \(Annotations\): choose"):
        imported(source, tmp_path / "voc")


def test_a_data_set_that_was_changed_is_refused(pictures, tmp_path):
    made = imported(label_formats.write_voc(pictures, tmp_path / "voc"), tmp_path / "set").dataset
    index = tmp_path / "set" / "dataset.json"
    (made.folder / made.pictures[0].file).write_bytes(b"no picture")

    with pytest.raises(DatasetInvalid, match="is damaged"):
        made.pixels(made.pictures[0])
    for content, said in (
        (index.read_text().replace('"train"', '"test"', 1), "not what its digest names"),
        (index.read_text()[:200], "is damaged"),
        (index.read_text().replace('"version": 1', '"version": 9'), "version 9"),
    ):
        index.write_text(content)
        with pytest.raises(DatasetInvalid, match=said):
            Dataset.load(tmp_path / "set")
    for wrong in (tmp_path, index):
        with pytest.raises(DatasetInvalid, match=r"holds no dataset\.json: make it"):
            Dataset.load(wrong)


def test_the_command_reports_counts_sizes_and_checks(pictures, tmp_path):
    source = label_formats.write_coco(pictures, tmp_path / "coco")
    (tmp_path / "photographs" / "p11.webp").write_bytes(b"RIFF")

    done = CliRunner().invoke(
        app,
        [
            "import",
            str(source),
            "--to",
            str(tmp_path / "set"),
            "--val",
            "0",
            "--test",
            "0",
            "--json",
        ],
    )

    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert figures["splits"] == {"train": {"pictures": 11, "faces": 10, "ignored areas": 3}}
    assert figures["labels_before"] == {"with_mask": 8, "bare": 4, "ignore": 3}
    assert sum(figures["face_sizes"]["train"].values()) == 10
    assert figures["face_sizes"]["train"]["16–32"] == 3
    assert figures["faces_per_picture"]["train"]["1"] == 4
    assert "1 picture left out, because the file can't be read: p11.webp" in done.stderr
    report = (tmp_path / "set" / "report.md").read_text()
    assert figures["digest"] in report
    for name in ("faces_by_size.png", "pictures_by_faces.png", "samples.jpg"):
        assert f"]({name})" in report
        with Image.open(tmp_path / "set" / name) as plot:
            plot.load()
    assert "1 picture left out, because the file can't be read" in report


def test_the_report_of_several_labels_speaks_of_objects(pictures, tmp_path):
    source = label_formats.write_coco(pictures, tmp_path / "coco")
    options = ["--classes", "with_mask,bare", "--val", "0", "--test", "0"]

    done = CliRunner().invoke(app, ["import", str(source), "--to", str(tmp_path / "set"), *options])

    assert done.exit_code == 0, done.output
    text = (tmp_path / "set" / "report.md").read_text()
    assert "| split | pictures | objects | ignored areas |" in text
    assert "face" not in text.replace("pictures_by_faces.png", "").replace("faces_by_size.png", "")
    assert "without a face" not in done.stderr


def test_a_mapping_that_cannot_be_read_is_refused(pictures, tmp_path):
    source = label_formats.write_coco(pictures, tmp_path / "coco")

    done = CliRunner().invoke(
        app, ["import", str(source), "--to", str(tmp_path / "set"), "--map", "FACE"]
    )

    assert isinstance(done.exception, InvalidRequest)
    assert "--map" in str(done.exception)
    assert not (tmp_path / "set").exists()


def test_chosen_classes_keep_their_labels(pictures, tmp_path):
    source = label_formats.write_voc(pictures, tmp_path / "voc")

    made = imported(source, tmp_path / "set", Choice.of({}, 0, 0, ["bare", "with_mask"]))

    assert Dataset.load(tmp_path / "set").labels == ("bare", "with_mask")
    assert made.labels_after["bare"] == 4
    assert made.labels_after["with_mask"] == 8
    for picture in made.dataset.pictures:
        assert len(picture.classes) == len(picture.faces)
        assert all(x1 == 50 for x1, *_ in picture.boxes_of(0))
        assert all(x1 < 50 for x1, *_ in picture.boxes_of(1))


def test_labels_can_be_mapped_to_classes_and_a_face_is_always_called_alike():
    choice = Choice.of({"bare": "FACE", "hat": "ignore"}, 0, 0, ["face", "plate"])

    assert choice.classes == ("FACE", "plate")
    assert choice.mapping == {"FACE": "FACE", "plate": "plate", "bare": "FACE", "hat": "ignore"}
    assert Choice.of({}, 0, 0, ["face"]) == Choice({"FACE": "FACE"}, 0, 0)


@pytest.mark.parametrize("target", ["FACE", "face", "Face"])
@pytest.mark.parametrize("classes", [[], ["face", "bare"], ["FACE", "bare"]])
def test_a_label_may_be_mapped_to_faces_in_any_case(target, classes, pictures, tmp_path):
    source = label_formats.write_voc(pictures, tmp_path / "voc")

    made = imported(source, tmp_path / "set", Choice.of({"with_mask": target}, 0, 0, classes))

    assert made.labels_after["FACE"] == 8
    assert made.labels_after["bare"] == (4 if classes else 0)


@pytest.mark.parametrize(
    ("mapping", "classes", "faces"),
    [
        ({}, ["face", "plate"], 3),
        ({"FACE": "FACE"}, [], 3),
        ({"face": "ignore"}, ["plate"], 0),
        ({"Face": "drop", "plate": "FACE"}, [], 1),
    ],
)
def test_the_faces_of_a_source_may_be_labelled_in_any_case(mapping, classes, faces, tmp_path):
    path = photograph(tmp_path / "a.png", 1)
    names = ("face", "FACE", "Face", "plate")
    boxes = {name: [1 + 20 * i, 2, 18 + 20 * i, 40] for i, name in enumerate(names)}
    objects = [{"box": box, "label": name} for name, box in boxes.items()]
    content = {"images": [{"file": path.name, "objects": objects}]}
    (tmp_path / "annotations.json").write_text(json.dumps(content))

    made = imported(
        tmp_path / "annotations.json", tmp_path / "set", Choice.of(mapping, 0, 0, classes)
    )

    assert made.labels_after["FACE"] == faces


@pytest.mark.parametrize("names", [("plate", "licence_plate"), ("licence_plate",), ("plate",)])
def test_a_class_keeps_its_own_label_beside_those_that_are_mapped_to_it(names, tmp_path):
    path = photograph(tmp_path / "a.png", 1)
    boxes = {name: [1 + 20 * i, 2, 18 + 20 * i, 40] for i, name in enumerate(("FACE", *names))}
    objects = [{"box": box, "label": name} for name, box in boxes.items()]
    content = {"images": [{"file": path.name, "objects": objects}]}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    mapping = {"licence_plate": "plate"} if "licence_plate" in names else {}

    choice = Choice.of(mapping, 0, 0, ["face", "plate"])
    made = imported(tmp_path / "annotations.json", tmp_path / "set", choice)

    assert made.labels_after == {"FACE": 1, "plate": len(names)}


def test_two_targets_of_faces_are_refused():
    with pytest.raises(InvalidRequest, match="--map: FACE becomes both FACE and drop"):
        Choice.of({"face": "FACE", "FACE": "drop"}, 0, 0, [])


@pytest.mark.parametrize("target", ["drop", "ignore", "FACE"])
def test_a_class_that_nothing_can_become_is_refused(target):
    said = f"--classes keeps plate, and --map makes plate {target.lower()}: leave out one of them"
    with pytest.raises(InvalidRequest, match=said):
        Choice.of({"plate": target}, 0, 0, ["face", "plate"])
    Choice.of({"plate": target, "licence_plate": "plate"}, 0, 0, ["face", "plate"])


def test_a_class_that_no_box_has_leads_to_the_option_that_maps_one_to_it(pictures, tmp_path):
    source = label_formats.write_voc(pictures, tmp_path / "voc")
    said = (
        r"no box has the label 'face': there are bare, .*; map one of them to it with "
        "--map LABEL=face"
    )
    with pytest.raises(DatasetInvalid, match=said):
        imported(source, tmp_path / "set", Choice.of({}, 0, 0, ["bare", "Face"]))


def test_a_box_with_two_labels_is_told(tmp_path):
    box = (10, 8, 40, 50)
    path = photograph(tmp_path / "a.png", 1)
    source = label_formats.write_voc(
        [(path, [("face", box, False), ("plate", (11, 8, 40, 50), False)])], tmp_path / "voc"
    )
    made = imported(source, tmp_path / "set", Choice.of({}, 0, 0, ["face", "plate"]))
    assert made.labels_after == {"FACE": 1, "plate": 1}
    assert made.problems[importing.TWO_LABELS].boxes == 1


def test_a_source_without_boxes_of_a_class_that_others_have_is_a_warning(tmp_path):
    """Plates in pictures in which somebody labelled faces alone are learned as background."""
    box, labelled = (10, 8, 40, 50), []
    for number, names in enumerate([("face", "plate"), ("face",), ()]):
        pictures = [
            (photograph(tmp_path / f"{number}-{i}.png", 10 * number + i), [(name, box, False)])
            for i, name in enumerate(names or ("none",))
        ]
        pictures = pictures if names else [(pictures[0][0], [])]
        source = label_formats.write_veil(pictures, tmp_path / f"veil{number}")
        labelled += formats.read(source, None, [])

    made = importing.run(labelled, tmp_path / "set", Choice.of({}, 0, 0, ["face", "plate"]))

    assert made.doubts == [
        f"{labelled[2].source}: no box of plate in its 1 picture: "
        "what shows one there is learned as background"
    ]
    faces = importing.run(labelled[:3], tmp_path / "faces", Choice.of({}, 0, 0, ["face"]))
    assert not faces.doubts


def test_one_class_of_another_name_changes_the_digest(pictures, tmp_path):
    source = label_formats.write_voc(pictures, tmp_path / "voc")

    faces = imported(source, tmp_path / "faces", Choice({"bare": "FACE"}, 0, 0)).dataset
    bare = imported(source, tmp_path / "bare", Choice.of({}, 0, 0, ["bare"])).dataset

    assert faces.pictures == bare.pictures
    assert faces.digest != bare.digest
    assert "labels" not in json.loads((tmp_path / "faces" / "dataset.json").read_text())


def test_a_class_without_a_box_to_train_on_is_refused(pictures, tmp_path):
    source = label_formats.write_voc(pictures, tmp_path / "voc")

    mapping = {"with_mask": "ignore", "ignore": "with_mask"}  # the boxes of ignore are ignored
    choice = Choice.of(mapping, 0, 0, ["bare", "with_mask"])
    with pytest.raises(DatasetInvalid, match="the split 'train' would have no with_mask"):
        imported(source, tmp_path / "set", choice)
    assert not (tmp_path / "set").exists()


def test_annotations_of_veil_may_have_objects_with_labels(pictures, tmp_path):
    path = pictures[0][0]
    item = {"file": path.name, "objects": [{"box": [1, 2, 30, 40], "label": "plate"}]}
    file = path.parent / "annotations.json"
    file.write_text(json.dumps({"images": [item]}))

    (labelled,) = formats.read(file, None, [])

    assert labelled.labels == (formats.Label("plate", (1, 2, 30, 40)),)


@pytest.mark.parametrize("label", ["a:b", "a;b", "*", "a\nb", "a" * 65])
def test_a_class_that_no_worker_accepts_is_refused_before_training(label):
    with pytest.raises(InvalidRequest, match=r"--classes: .* is no label: a label has 1 to 64"):
        Choice.of({}, 0, 0, ["face", label])


@pytest.mark.parametrize("label", ["..", ".", "a/b", "../a"])
def test_a_class_that_is_no_name_of_a_folder_is_refused(label):
    with pytest.raises(InvalidRequest, match=r"--classes: .* is no name of a folder"):
        Choice.of({}, 0, 0, ["face", label])
