"""The metadata of a model's folder: its score threshold and the digest of its files."""

import pytest

from tasks.errors import ModelInvalid
from worker.detection.model import (
    DEFAULT_THRESHOLD,
    digest_of,
    in_a_line,
    stated_labels,
    stated_threshold,
)


@pytest.mark.parametrize(
    ("content", "threshold"),
    [
        ('{"score_threshold": 0.3}', 0.3),
        ('{"score_threshold": "0.25"}', 0.25),
        ("{}", DEFAULT_THRESHOLD),
        (None, DEFAULT_THRESHOLD),
    ],
)
def test_the_threshold_is_the_stated_one_or_the_default(tmp_path, content, threshold):
    if content is not None:
        (tmp_path / "veil.json").write_text(content)
    assert stated_threshold(tmp_path, "own.zip") == threshold


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("no JSON", "is no JSON: line 1, column 1"),
        ('{"score_threshold": 0.3,}', "is no JSON: line 1 has a comma with nothing after it"),
        ('{\n"labels": {"1": "a",\n},\n}', "is no JSON: line 2 has a comma with nothing after it"),
        ('{"a": 1,\n b: 2}', "is no JSON: line 2, column 2: expecting property name"),
        ("[]", "must be a JSON object"),
        ('{"score_threshold": null}', "must be like"),
        ('{"score_threshold": "much"}', "must be like"),
        ('{"score_threshold": 0}', "between 0 and 1"),
        ('{"score_threshold": 1}', "between 0 and 1"),
        ('{"score_threshold": NaN}', "between 0 and 1"),
    ],
)
def test_a_threshold_that_is_none_is_refused_in_one_line(tmp_path, content, reason):
    (tmp_path / "veil.json").write_text(content)
    with pytest.raises(ModelInvalid, match=reason) as raised:
        stated_threshold(tmp_path, "own.zip")
    assert str(raised.value).startswith("veil.json of own.zip")
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("content", [None, "{}", '{"score_threshold": 0.3, "veil": "0.2.0"}'])
def test_a_model_may_state_no_labels(tmp_path, content):
    if content is not None:
        (tmp_path / "veil.json").write_text(content)
    assert stated_labels(tmp_path) == {}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"label": {"1": "plate"}}', "label is unknown: did you mean labels"),
        ('{"Labels": {"1": "plate"}}', "Labels is unknown: did you mean labels"),
        ('{"labels": {}}', "there are none"),
        ('{"labels": ["plate"]}', 'must be like {"1": "FACE", "2": "plate"}: they are no JSON obj'),
        ('{"labels": {"one": "plate"}}', "'one' is no number of a class"),
        ('{"labels": {"FACE": 1}}', "'FACE' is no number of a class, the number comes first"),
        ('{"labels": {"FACE": "1"}}', "'FACE' is no number of a class, the number comes first"),
        ('{"labels": {"1": ["FACE"]}}', "the label of the class 1 is no text"),
        ('{"labels": {"1": ""}}', "'' is no label"),
        ('{"labels"', "veil.json is no JSON: line 1, column 10: expecting ':' delimiter"),
        ("[]", "must be a JSON object"),
    ],
)
def test_labels_that_are_not_understood_are_refused(tmp_path, content, reason):
    (tmp_path / "veil.json").write_text(content)
    with pytest.raises(ModelInvalid) as refused:
        stated_labels(tmp_path)
    assert reason in str(refused.value)


def test_the_digest_covers_the_names_and_the_contents_of_all_files(tmp_path):
    digests = set()
    for number, files in enumerate(
        [{"a": "1"}, {"a": "2"}, {"b": "1"}, {"a": "1", "c/d": ""}, {"a": "1", "cd": ""}]
    ):
        for name, content in files.items():
            path = tmp_path / str(number) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        digests.add(digest_of(tmp_path / str(number)))
    assert len(digests) == 5


def test_the_digest_does_not_depend_on_the_place_of_the_folder(tmp_path):
    for folder in ("one", "other"):
        (tmp_path / folder / "variables").mkdir(parents=True)
        (tmp_path / folder / "variables" / "index").write_text("x")
    assert digest_of(tmp_path / "one") == digest_of(tmp_path / "other")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("first\nsecond"), "first"),
        (ValueError(), "ValueError"),
        (ValueError("x" * 500), "x" * 200),
        (
            ValueError(
                "Graph execution error:\n\nDetected at node Reshape defined at:\n"
                '  File "train.py", line 1\n<stack traces unavailable>\n'
                "Input to reshape has 192 values\n\t [[{{node Reshape}}]]"
            ),
            "Input to reshape has 192 values",
        ),
    ],
)
def test_an_error_becomes_one_line(error, line):
    assert in_a_line(error) == line
