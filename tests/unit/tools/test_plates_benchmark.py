"""The benchmark of plates: what counts as hidden, and what as a false area."""

import numpy as np

from tasks.messages import Rule
from tools.benchmarks.plates import Plate, false_areas, groups, hidden_pixels, is_hidden
from worker.detection.faces import Detections
from worker.masking.regions import MaskStyle
from worker.treatments import Treatments

SIZE = 200, 100


def found(*boxes):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(
        boxes, np.full(len(boxes), 0.9, np.float32), labelled=np.array(["plate"] * len(boxes))
    )


def covered(*boxes, margin=0.0):
    rules = {"plate": Rule(margin=margin)}
    return hidden_pixels(found(*boxes), Treatments(MaskStyle(), ("plate",), rules), SIZE)


def test_a_plate_is_hidden_from_nine_tenths_of_its_box_on():
    hidden = covered((20, 20, 110, 40))

    assert hidden.sum() == 90 * 20
    assert is_hidden(hidden, [20, 20, 120, 40])
    assert not is_hidden(hidden, [20, 20, 121, 40])


def test_the_margin_of_the_rule_hides_too():
    assert not is_hidden(covered((30, 20, 110, 40)), [20, 20, 120, 40])
    assert is_hidden(covered((30, 20, 110, 40), margin=0.12), [20, 20, 120, 40])


def test_two_objects_hide_a_plate_together():
    assert is_hidden(covered((20, 20, 70, 40), (70, 20, 120, 40)), [20, 20, 120, 40])


def test_an_object_that_overlaps_no_plate_is_a_false_area():
    plates = np.array([[20, 20, 120, 40]], np.float32)

    assert false_areas(found((20, 20, 120, 40), (20, 60, 120, 80)), plates) == 1
    assert false_areas(found((0, 0, 200, 100)), plates) == 0  # a tenth of it is the plate
    assert false_areas(found((20, 60, 120, 80)), plates[:0]) == 1


def test_plates_are_counted_by_height_and_origin():
    plates = [Plate(8, "a", False), Plate(15.9, "b", True), Plate(16, "b", True)]

    counted = {(by, value): (rate.hits, rate.cases) for by, value, rate in groups(plates)}

    assert counted == {
        ("all", ""): (2, 3),
        ("all", "16 px and more"): (1, 1),
        ("height", "0-16 px"): (1, 2),
        ("height", "16-32 px"): (1, 1),
        ("origin", "a"): (0, 1),
        ("origin", "b"): (2, 2),
    }
