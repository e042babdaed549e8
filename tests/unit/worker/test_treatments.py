"""The treatment of a label follows from settings, rules and options, and unsigned ones only add."""

import numpy as np
import pytest

from tasks.errors import InvalidRequest
from tasks.messages import FACE, AnonymizeOptions, Rule
from tests.drawn import found
from worker.detection.faces import Detections, clip
from worker.detection.labelled import with_label
from worker.masking.regions import MaskStyle
from worker.treatments import OTHER_MARGIN, Treatments

STYLE = MaskStyle("surround", 0.7, 0.1, "ellipse", 0.05)
LABELS = (FACE, "plate", "document")


def treatments(**rules):
    return Treatments(STYLE, LABELS, {label: Rule(**rule) for label, rule in rules.items()})


def options(**values):
    return AnonymizeOptions.parse(**values)


def test_faces_have_the_style_of_the_settings_and_other_objects_are_hidden_whole():
    assert treatments().of(FACE).style == STYLE
    assert treatments().of("plate").style == MaskStyle(
        "surround", 1.0, OTHER_MARGIN, "rectangle", 0.05
    )


def test_a_rule_changes_the_values_that_it_has():
    ruled = treatments(plate={"margin": 0.3}, FACE={"region": 1.0})
    assert ruled.of("plate").style == MaskStyle("surround", 1.0, 0.3, "rectangle", 0.05)
    assert ruled.of(FACE).style.region == 1.0


def test_the_rule_of_every_other_label_is_for_those_without_a_rule_and_never_for_faces():
    ruled = Treatments(STYLE, LABELS, {"*": Rule(ignore=True), "plate": Rule(hold=True)})
    assert [ruled.of(label).ignore for label in LABELS] == [False, False, True]


def test_options_replace_the_settings_and_their_rules_the_rest():
    ruled = treatments(plate={"method": "blur"})
    asked = options(method="fill", region="full", rules={"document": {"method": "pixelate"}})
    styles = [ruled.of(label, asked).style for label in LABELS]
    assert [style.method for style in styles] == ["fill", "fill", "pixelate"]
    assert styles[0].region == 1.0


def test_the_region_of_a_request_is_that_of_faces_alone():
    assert treatments().of("plate", options(region="top")).style.region == 1.0


def test_a_rule_for_an_unknown_label_is_refused():
    with pytest.raises(InvalidRequest, match="choose from FACE, plate, document"):
        treatments().check(options(rules={"dog": {"hold": True}}))
    treatments().check(options(rules={"plate": {"hold": True}}))


def some():
    boxes = found((0, 0, 30, 30), (40, 0, 60, 9), (70, 0, 90, 10))
    return Detections(boxes.boxes_xyxy, boxes.scores, labelled=np.array([FACE, "plate", "plate"]))


def test_small_and_ignored_objects_are_not_wanted():
    ruled = treatments(plate={"smallest": 10})
    assert ruled.wanted(some(), options()).boxes_xyxy[:, 0].tolist() == [0, 70]
    ignored = options(rules={"plate": {"ignore": True}})
    assert ruled.wanted(some(), ignored).labels.tolist() == [FACE]


def test_a_request_that_ignores_every_label_is_refused():
    ignoring = {label: {"ignore": True} for label in LABELS}
    with pytest.raises(InvalidRequest, match=r"every label: choose from FACE, plate, document"):
        treatments().check(options(rules=ignoring))
    with pytest.raises(InvalidRequest, match=r"every label: choose from plate,"):
        Treatments(STYLE, ("plate",)).check(options(rules={"plate": {"ignore": True}}))
    treatments().check(options(rules={**ignoring, "plate": {"margin": 0.1}}))
    # What a rule holds is not ignored.
    treatments(plate={"hold": True}).check(options(rules=ignoring))


@pytest.mark.parametrize(
    ("rules", "asked", "leaves_visible"),
    [
        ({}, {}, False),
        ({}, {"extra": [[0, 0, 9, 9]], "rules": {"plate": {"method": "blur"}}}, False),
        ({}, {"exempt": [[0, 0, 9, 9]]}, True),
        ({}, {"rules": {"plate": {"ignore": True}}}, True),
        ({}, {"rules": {"FACE": {"smallest": 99999}}}, True),
        ({"FACE": {"ignore": True}}, {}, True),
        ({"FACE": {"smallest": 9}}, {}, True),
        ({"FACE": {"smallest": 9}}, {"rules": {"FACE": {"smallest": 0}}}, False),
        ({"document": {"ignore": True}}, {}, False),
    ],
)
def test_rules_and_exempt_areas_can_leave_objects_visible(rules, asked, leaves_visible):
    assert treatments(**rules).leaves_visible(options(**asked)) == leaves_visible


def test_the_side_of_an_object_at_the_edge_counts_as_if_it_was_whole():
    cut = clip(found((-30, 0, 9, 40), (50, 0, 59, 40)), 100, 100)
    wanted = treatments(FACE={"smallest": 10}).wanted(cut, options())
    assert wanted.boxes_xyxy.tolist() == [[0, 0, 9, 40]]


def test_objects_to_hold_hold_their_picture():
    ruled = treatments(plate={"hold": True})
    assert ruled.to_hold(some().labels, options())
    assert not ruled.to_hold([FACE], options())
    assert not ruled.to_hold(["plate"], options(rules={"plate": {"hold": False}}))


def test_a_request_to_ignore_does_not_publish_what_the_settings_hold():
    ruled = treatments(plate={"hold": True})
    asked = options(rules={"plate": {"ignore": True}})
    assert len(ruled.wanted(some(), asked)) == len(some())
    assert ruled.to_hold(some().labels, asked)
    released = options(rules={"plate": {"ignore": True, "hold": False}})
    assert ruled.wanted(some(), released).labels.tolist() == [FACE]
    assert not ruled.to_hold(some().labels, released)


def test_a_rule_does_not_hold_and_ignore():
    with pytest.raises(InvalidRequest, match=r"rules\.plate: hold and ignore contradict"):
        options(rules={"plate": {"hold": True, "ignore": True}})


def test_each_label_is_a_part_with_its_style():
    faces, plates = treatments(plate={"method": "fill"}).parts(some(), options())
    assert (len(faces.sightings), faces.style.method) == (1, "surround")
    assert plates.sightings.boxes_xyxy[:, 0].tolist() == [40, 70]
    assert plates.style.method == "fill"
    (alone,) = treatments().parts(Detections.none(), options())
    assert alone.style == STYLE


WEAKER = [
    {"method": "blur"},
    {"region": 0.6},
    {"rules": {"plate": {"ignore": True}}},
    {"rules": {"plate": {"smallest": 5}}},
    {"rules": {"plate": {"margin": 0.1}}},
    {"rules": {"plate": {"shape": "ellipse"}}},
    {"rules": {"document": {"hold": False}}},
    {"rules": {"dog": {"method": "fill"}}},
]
STRONGER = [
    {"method": "fill"},
    {"region": 0.9},
    {"rules": {"plate": {"margin": 0.4}}},
    {"rules": {"plate": {"hold": True}, "document": {"method": "fill"}}},
]


@pytest.mark.parametrize("weaker", WEAKER, ids=str)
def test_of_unsigned_options_nothing_weaker_stays(weaker):
    ruled = treatments(document={"hold": True})
    asked = options(extra=[[1, 2, 3, 4]], exempt=[[0, 0, 9, 9]], **weaker)
    assert ruled.without_weaker(asked) == options(extra=[[1, 2, 3, 4]])


@pytest.mark.parametrize("stronger", STRONGER, ids=str)
def test_of_unsigned_options_what_hides_more_stays(stronger):
    assert treatments().without_weaker(options(**stronger)) == options(**stronger)


def test_labels_of_detections_stay_with_their_boxes():
    plates = with_label(found((0, 0, 1, 1), (2, 0, 3, 1)), "plate")
    joined = Detections.joined([found((5, 0, 6, 1)), plates])
    assert joined.labels.tolist() == [FACE, "plate", "plate"]
    assert joined[[2, 0]].labels.tolist() == ["plate", FACE]
    assert found((0, 0, 1, 1)).labelled is None
