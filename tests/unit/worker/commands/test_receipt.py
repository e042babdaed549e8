"""``veil receipt verify``: what it prints about exposed faces."""

from worker.commands.receipt import MAX_FACES_SHOWN, _face_texts


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
