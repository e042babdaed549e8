"""Formats of annotation tools: what is written is read again, and damage is named."""

import io
import json
from xml.etree import ElementTree

import pytest

from tasks.bulk.annotations import FORMATS, WRITERS, AnnotatedPicture, Shape, read
from tasks.errors import DatasetInvalid

PICTURES = [
    AnnotatedPicture("s3://clean/a b&\"<'.jpg", 640, 480, [Shape((1, 2, 30, 40), score=0.5)]),
    AnnotatedPicture("s3://clean/none.jpg", 64, 48),
    AnnotatedPicture("s3://clean/ü\n.jpg", 64, 48, [Shape((5, 6, 7, 8), "exposed")]),
    AnnotatedPicture("s3://clean/car.jpg", 64, 48, [Shape((1, 2, 9, 4), "plate <eu>")]),
]


def written(form, pictures=PICTURES):
    file = io.StringIO()
    writer = WRITERS[form](file)
    for picture in pictures:
        writer.add(picture)
    writer.close()
    return file.getvalue()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("pictures", [PICTURES, []], ids=["some", "none"])
def test_what_is_written_is_read_again(form, pictures, tmp_path):
    path = tmp_path / "boxes"
    path.write_text(written(form, pictures))
    found = read(path)
    assert [(one.name, one.width, one.height) for one in found] == [
        (one.name, one.width, one.height) for one in pictures
    ]
    assert [[(shape.area, shape.label) for shape in one.shapes] for one in found] == [
        [(shape.area, shape.label) for shape in one.shapes] for one in pictures
    ]


def test_coco_is_what_its_readers_expect():
    whole = json.loads(written("coco"))
    assert whole["annotations"][0]["bbox"] == [1, 2, 29, 38]
    assert {image["id"] for image in whole["images"]} >= {
        annotation["image_id"] for annotation in whole["annotations"]
    }
    assert {one["id"]: one["name"] for one in whole["categories"]} == {
        1: "face",
        2: "exposed",
        3: "extra",
        4: "plate <eu>",
    }


def test_cvat_is_what_its_reader_expects():
    root = ElementTree.fromstring(written("cvat"))
    assert root.findtext("version") == "1.1"
    labels = [name.text for name in root.findall("meta/task/labels/label/name")]
    assert labels == ["face", "exposed", "extra", "plate <eu>"]
    box = root.find("image/box")
    assert box.attrib | {"label": "face", "xtl": "1", "ybr": "40"} == box.attrib


@pytest.mark.parametrize(
    ("element", "area"),
    [
        ('<ellipse cx="50" cy="40" rx="20" ry="10"/>', (30, 30, 70, 50)),
        ('<ellipse cx="50" cy="40" rx="20" ry="10" rotation="90"/>', (40, 20, 60, 60)),
        ('<mask rle="1, 2" left="5" top="6" width="10" height="20"/>', (5, 6, 15, 26)),
        (
            '<box xtl="10" ytl="20" xbr="50" ybr="40" rotation="90"/>',
            (40, 10, 40, 50, 20, 50, 20, 10),
        ),
        ('<box xtl="10" ytl="20" xbr="50" ybr="40" rotation="0.0"/>', (10, 20, 50, 40)),
        ('<tag label="blurred"/>', None),
    ],
)
def test_each_shape_of_cvat_marks_its_area(tmp_path, element, area):
    path = tmp_path / "boxes.xml"
    path.write_text(f'<annotations><image name="a">{element}</image></annotations>')
    (picture,) = read(path)
    assert [shape.area for shape in picture.shapes] == ([] if area is None else [area])


@pytest.mark.parametrize("tag", ["polyline", "points", "cuboid", "skeleton"])
def test_a_shape_without_an_area_is_refused(tmp_path, tag):
    """Without it the file would say that the face under it stays clear."""
    path = tmp_path / "boxes.xml"
    path.write_text(f'<annotations><image name="a"><{tag} points="1,2;3,4"/></image></annotations>')
    with pytest.raises(DatasetInvalid, match=f"{tag} is no area"):
        read(path)


def test_marks_of_a_sample_are_lines():
    marks = '{"output": "s3://clean/a.jpg", "exposed": [[1, 2, 3, 4]]}\n'
    marks += '{"output": "s3://clean/b.jpg", "exposed": []}\n'

    class Memory:
        def read_text(self, encoding):
            return marks

    first, second = read(Memory())
    assert (first.shapes, second.shapes) == ([Shape((1, 2, 3, 4), "exposed")], [])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "hello",
        "<annotations><image>",
        '<annotations><image name="a" width="x"/></annotations>',
        '{"images": [{"id": 1}], "annotations": []}',
        '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "bbox": [1]}]}',
        '{"name": "a", "shapes": [{"area": [5, 5, 1, 1]}]}',
        '{"name": "a", "shapes": [{"area": ["1", 2, 3, 4]}]}',
        "[1, 2]",
    ],
)
def test_a_damaged_file_is_refused_on_one_line(content, tmp_path):
    path = tmp_path / "boxes"
    path.write_text(content)
    if not content:
        assert read(path) == []
        return
    with pytest.raises(DatasetInvalid) as refused:
        read(path)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)


def coco(boxes, **changes):
    """Return COCO with one picture of 640 x 480 pixels."""
    image = {"id": 1, "file_name": "s3://clean/a.jpg", "width": 640, "height": 480}
    annotations = [{"image_id": 1, "category_id": 1, "bbox": box} for box in boxes]
    whole = {"images": [image], "annotations": annotations, "categories": []}
    return json.dumps({**whole, **changes})


def jsonl(area):
    return json.dumps({"name": "s3://clean/a.jpg", "shapes": [{"area": area}]})


def cvat(attributes):
    return f'<annotations><image name="s3://clean/a.jpg"><box {attributes}/></image></annotations>'


CORNERS = [[400, 100, 492, 224], [300, 200, 380, 300], [500, 300, 580, 400]]
FRACTIONS = "looks like fractions of the picture: give pixels"


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (coco(CORNERS), "boxes look like x1 y1 x2 y2; COCO wants x y width height"),
        (
            coco([[0.4, 0.3, 0.2, 0.2]]),
            f"'s3://clean/a.jpg': the area 0.4, 0.3, 0.6, 0.5 {FRACTIONS}",
        ),
        (
            jsonl([0.1, 0.1, 0.9, 0.9]),
            f"'s3://clean/a.jpg': the area 0.1, 0.1, 0.9, 0.9 {FRACTIONS}",
        ),
        (cvat('xtl="0.1" ytl="0.2" xbr="0.9" ybr="0.6"'), FRACTIONS),
        (coco([[1, 2, 0, 30]]), "'s3://clean/a.jpg': 1, 2, 1, 32 is no area of the picture"),
        (coco([[1, 2, 3]]), "'s3://clean/a.jpg': the bbox [1, 2, 3] has not four numbers"),
        (coco([[1, 2, "3", 4]]), "'s3://clean/a.jpg': a part of it is of another type"),
        (coco([[1, 2, float("inf"), 4]]), "'s3://clean/a.jpg': a coordinate is no number"),
        (
            f"{jsonl([1, 2, 3, 4])}\n{jsonl([300, 200, 80, 100])}",
            "line 2, 's3://clean/a.jpg': 300, 200, 80, 100 is no area",
        ),
        (f"{jsonl([1, 2, 3, 4])}\n{{", "line 2 is no JSON object"),
        (coco([], annotations=[{"image_id": 2, "bbox": [1, 2, 3, 4]}]), "no image has the id 2"),
        (coco([], images=[{"id": 1, "file_name": "a"}] * 2), "'a': two images have the id 1"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}]', "results of a detector"),
        ('{"annotations": []}', "COCO without images"),
        ('{"name": "a"}', "'a': it has no 'shapes'"),
        ("5", "line 1 is no JSON object"),
    ],
)
def test_the_cause_is_named_with_its_picture(content, cause, tmp_path):
    path = tmp_path / "boxes"
    path.write_text(content)
    with pytest.raises(DatasetInvalid) as refused:
        read(path)
    assert cause in str(refused.value)
    assert "Error" not in str(refused.value)


def test_fractions_of_pixels_are_hidden_and_the_noise_of_a_tool_is_not(tmp_path):
    path = tmp_path / "boxes"
    path.write_text(f"{jsonl([5.5, 6.9, 40.1, 50])}\n{jsonl([4.98, 6.01, 40.04, 49.99])}")
    assert [picture.shapes[0].area for picture in read(path)] == [(5, 6, 41, 50), (5, 6, 40, 50)]


@pytest.mark.parametrize(
    "boxes",
    [
        [[600, 100, 80, 90]],
        [[600, 100, 80, 90], [590, 300, 90, 90], *([10 * n, 9, 30, 40] for n in range(20))],
    ],
)
def test_a_few_boxes_that_reach_outside_are_read(boxes, tmp_path):
    path = tmp_path / "boxes"
    path.write_text(coco(boxes))
    assert len(read(path)[0].shapes) == len(boxes)
