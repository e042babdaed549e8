"""``veil receipt verify``: the exposed faces that it finds, and what it prints about them."""

import io
from typing import get_args

import numpy as np
from PIL import Image

from tasks.addresses import ObjectUri
from tasks.bulk.verify import GOOD, State, Verdict
from tests.drawn import found
from tests.made_receipts import anonymized
from worker import bootstrap, logs
from worker.anonymizer import Anonymizer, Limits
from worker.commands.receipt import ADVICE, MAX_FACES_SHOWN, _face_texts, _redetection, _Tally
from worker.masking.regions import MaskStyle
from worker.settings import WorkerSettings


def face(number):
    return {"box_xyxy": [number, 0, number + 9, 12], "score": number / 100}


def test_an_exposed_face_is_its_box_as_a_flag_takes_it_and_its_score():
    assert list(_face_texts([face(20), face(71)])) == [
        "71,0,80,12 (score 0.71)",
        "20,0,29,12 (score 0.20)",
    ]


def test_of_many_exposed_faces_the_strongest_are_printed():
    *shown, rest = _face_texts([face(number) for number in range(1003 + MAX_FACES_SHOWN)])
    assert len(shown) == MAX_FACES_SHOWN
    assert shown[0].startswith(f"{1002 + MAX_FACES_SHOWN},0,")
    assert rest == "and 1,003 more (--json)"


class OnLargePages:
    """A detector that finds a face in large pictures alone, beyond the size of small ones."""

    def detect(self, picture):
        return found((60, 40, 80, 70)) if len(picture) > 50 else found()


def test_a_face_on_a_page_beyond_the_size_of_the_first_is_exposed(monkeypatch):
    limits = Limits(max_bytes=10**6, max_pixels=10**6, fetch_seconds=5)
    made = Anonymizer(detector=OnLargePages(), style=MaskStyle(), limits=limits)
    monkeypatch.setattr(bootstrap, "build_anonymizer", lambda _: made)
    monkeypatch.setattr(logs, "configure", lambda _: None)  # It outlasts the test.
    pages = [Image.fromarray(np.zeros((*size, 3), np.uint8)) for size in ((20, 30), (80, 100))]
    target = io.BytesIO()
    pages[0].save(target, "TIFF", save_all=True, append_images=pages[1:])
    receipt = anonymized(30, 20, format="TIFF")
    (exposed,) = _redetection(WorkerSettings())(target.getvalue(), None, receipt)
    assert exposed["box_xyxy"] == [60, 40, 80, 70]


def told(capsys, *several):
    """Return the lines of the summary of verdicts with these states."""
    tally = _Tally()
    for states in several:
        tally.add(Verdict(ObjectUri.parse("s3://clean/a.jpg"), None, states))
    tally.print(0.81, as_json=False)
    return capsys.readouterr().err.splitlines()


def test_a_summary_of_nothing_is_its_time(capsys):
    assert told(capsys) == ["0 verified in 0.8 s"]


def test_the_parts_of_a_summary_sum_up_and_deletions_are_apart(capsys):
    deleted = [("ok", "source deleted")] * 2
    lines = told(capsys, *deleted, ("ok", "source unknown"), ("no receipt",), ("original",))
    assert lines[:3] == [
        "5 verified: 1 original, 3 ok, 1 no receipt in 0.8 s",
        "also: 1 source unknown",
        "2 sources deleted",
    ]
    assert [line.partition(": ")[0] for line in lines[3:]] == ["original", "no receipt"]


def test_every_kind_of_fault_has_advice():
    advised = [state for states, _ in ADVICE for state in states]
    assert sorted(advised) == sorted(set(get_args(State)) - set(GOOD))
