"""The share of faces that stay exposed with the default settings, counted from pixels by an independent judge."""

import json
import subprocess
import sys

import pytest

EVERY = {"crowd": 5, "masks": 6, "small": 10}  # one picture of so many, so that this takes seconds
MOST_EXPOSED = {"crowd": 0.015, "masks": 0.02, "small": 0.10}
SECONDS = 240


@pytest.fixture(scope="module")
def judged(data, exposure_tool, programs, tmp_path_factory, clean_environment):
    """What the judge says of each set, after one run over all of them."""
    sets = {name: data(name) for name in MOST_EXPOSED}
    work = tmp_path_factory.mktemp("quality")
    for name, folder in sets.items():
        labels = json.loads((folder / "annotations.json").read_text())
        labels["images"] = sorted(labels["images"], key=lambda item: item["file"])[:: EVERY[name]]
        (work / "clear" / name / "images").mkdir(parents=True)
        for item in labels["images"]:
            (work / "clear" / name / item["file"]).symlink_to((folder / item["file"]).resolve())
        (work / f"{name}.json").write_text(json.dumps(labels))
    done = subprocess.run(
        [programs / "veil", "anonymize", work / "clear", "--output", work / "anonymized"],
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr

    def judge(name):
        command = [sys.executable, exposure_tool, "--json"]
        command += ["--clear", work / "clear" / name, "--anonymized", work / "anonymized" / name / "images"]
        command += ["--annotations", work / f"{name}.json"]
        judged = subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
        return json.loads(judged.stdout)

    return {name: judge(name) for name in sets}


@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize("name", MOST_EXPOSED)
def test_few_faces_stay_exposed(judged, name):
    result = judged[name]

    assert result["withheld"] == result["resized"] == 0
    assert result["faces"] >= 40
    assert result["exposed_rate"] <= MOST_EXPOSED[name]


@pytest.mark.parametrize("name", MOST_EXPOSED)
def test_little_else_is_changed(judged, name):
    assert judged[name]["spill"] <= 0.05
