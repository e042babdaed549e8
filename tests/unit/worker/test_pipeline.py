"""An output that this worker would hold is not taken for done."""

from types import SimpleNamespace

import pytest

from tasks.errors import OptionsUnusable
from tasks.messages import FACE, AnonymizeOptions, Rule
from tasks.routes import Routes
from tasks.signatures import Key
from worker.anonymizer import Limits
from worker.masking.regions import MaskStyle
from worker.pipeline import Pipeline
from worker.treatments import Treatments

LABELS = (FACE, "document")
KEY = Key.parse("k1=" + 64 * "a")


def pipeline(labels=LABELS, hold_without_faces=False, keys=(), **rules):
    anonymizer = SimpleNamespace(
        limits=Limits(max_bytes=1, max_pixels=1, fetch_seconds=1),
        hold_without_faces=hold_without_faces,
        verify="off",
        treatments=Treatments(MaskStyle(), labels, {name: Rule(**rules[name]) for name in rules}),
        recipe="5a38d4c65c2c5ab0",
    )
    return Pipeline(store=None, anonymizer=anonymizer, routes=Routes(()), keys=keys)


def receipt(*labels):
    """Return the receipt of an output with objects of `labels`."""
    return SimpleNamespace(labels=list(labels), left_xyxy=[])


@pytest.mark.parametrize(("labels", "is_held"), [((FACE,), False), ((FACE, "document"), True)])
def test_an_output_with_an_object_to_hold_is_not_done(labels, is_held):
    made, holding = receipt(*labels), pipeline(document={"hold": True})
    assert holding._would_hold(made, AnonymizeOptions()) == is_held
    allowed = AnonymizeOptions.parse(rules={"document": {"hold": False}})
    assert not holding._would_hold(made, allowed)
    assert not pipeline()._would_hold(made, AnonymizeOptions())


def test_an_output_whose_exempt_areas_may_show_an_object_to_hold_is_not_done():
    exempt = AnonymizeOptions(exempt=((0, 0, 9, 9),))
    assert pipeline(document={"hold": True})._would_hold(receipt(FACE), exempt)
    assert not pipeline()._would_hold(receipt(FACE), exempt)


@pytest.mark.parametrize(
    ("made", "labels", "is_held"),
    [
        (receipt("document"), LABELS, True),
        (receipt("document"), ("document",), False),
        (receipt(FACE), LABELS, False),
        (receipt(), LABELS, True),
        (receipt(), ("document",), True),
    ],
)
def test_an_output_without_the_label_that_is_sought_is_not_done(made, labels, is_held):
    holding = pipeline(labels, hold_without_faces=True)
    assert holding._would_hold(made, AnonymizeOptions()) == is_held


def test_the_options_of_an_output_with_a_rule_for_a_label_that_is_not_found_any_more_are_unusable():
    signing = pipeline(keys=[KEY])
    known = AnonymizeOptions.parse(rules={"document": {"hold": False}})
    assert signing._usable(known) == known
    with pytest.raises(OptionsUnusable, match=r"the options of the existing output.* for plate"):
        signing._usable(AnonymizeOptions.parse(rules={"plate": {"method": "fill"}}))
