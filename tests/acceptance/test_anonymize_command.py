"""`veil anonymize` on a folder of pictures, as a user runs it."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command import start_command

KEYS = [
    "source",
    "output",
    "status",
    "width",
    "height",
    "faces",
    "boxes_xyxy",
    "scores",
    "labels",
    "reason",
    "found_by_check",
    "notes",
    "error",
    "message",
    "seconds",
    "older_output",
]


def lines(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def album(tmp_path_factory, samples):
    """A folder in folders with good pictures, two bad ones and a file that is none."""
    root = tmp_path_factory.mktemp("album")
    for name in ("a.jpg", "deep/b.png", "deep/er/ü +%.webp"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(samples["astronaut.png"]) as image:
            image.crop((100, 0, 360, 260)).save(root / name)
    whole = samples["admiral.jpg"].read_bytes()
    (root / "deep/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "empty.png").touch()
    (root / "notes.txt").write_text("not a picture")
    return root


@pytest.fixture(scope="module")
def run_on_album(veil, album, tmp_path_factory):
    output = tmp_path_factory.mktemp("work") / "made" / "output"
    return veil("anonymize", album, "--output", output, "--json"), output


def test_bad_files_fail_by_name_and_the_others_are_done(run_on_album, album):
    done, _ = run_on_album

    outcomes = {outcome["source"]: outcome for outcome in lines(done)}

    assert done.returncode == 1
    assert {
        source.removeprefix(f"{album}/"): outcome["status"] for source, outcome in outcomes.items()
    } == {
        "a.jpg": "anonymized",
        "deep/b.png": "anonymized",
        "deep/er/ü +%.webp": "anonymized",
        "deep/cut.jpg": "failed",
        "empty.png": "failed",
        "notes.txt": "ignored",
    }
    assert outcomes[str(album / "deep/cut.jpg")]["error"] == "UnreadableImage"
    assert outcomes[str(album / "empty.png")]["error"] == "EmptyObject"
    for outcome in outcomes.values():
        if outcome["status"] != "anonymized":
            assert outcome["output"] is None
            assert len(outcome["message"].splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert "3 anonymized" in done.stderr
    assert "2 failed" in done.stderr
    assert done.stderr.endswith(f"; outputs in {run_on_album[1]}\n")


def test_the_folders_structure_is_kept_and_holds_finished_pictures_alone(run_on_album, album):
    _, output = run_on_album

    files = sorted(
        path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()
    )

    assert files == ["a.jpg", "deep/b.png", "deep/er/ü +%.webp"]
    for name in files:
        with Image.open(output / name) as after, Image.open(album / name) as before:
            assert (after.format, after.size) == (before.format, before.size)
            assert (np.asarray(after) != np.asarray(before)).any()


def test_every_line_is_an_object_with_the_same_keys(run_on_album):
    done, output = run_on_album
    outcomes = lines(done)

    assert all(list(outcome) == KEYS for outcome in outcomes)
    for outcome in outcomes:
        assert (outcome["seconds"] is None) == (outcome["output"] is None)
        assert outcome["faces"] == len(outcome["boxes_xyxy"]) == len(outcome["scores"])
        if outcome["status"] == "anonymized":
            assert outcome["error"] is None
            assert outcome["message"] is None
            assert outcome["faces"] == 1
            assert (outcome["width"], outcome["height"]) == (260, 260)
            ((x1, y1, x2, y2),) = outcome["boxes_xyxy"]
            assert 0 <= x1 < x2 <= 260
            assert 0 <= y1 < y2 <= 260
            assert 0 < outcome["scores"][0] <= 1
            assert outcome["output"].startswith(str(output))


def test_only_the_faces_are_printed_and_nothing_is_written(veil, album, tmp_path):
    before = sorted(album.rglob("*"))
    done = veil("anonymize", album / "a.jpg", "--detect-only", "--json", cwd=tmp_path)
    assert done.returncode == 0
    (outcome,) = lines(done)
    assert list(outcome) == KEYS
    assert (outcome["status"], outcome["output"], outcome["faces"]) == ("detected", None, 1)
    assert (outcome["width"], outcome["height"]) == (260, 260)
    assert sorted(album.rglob("*")) == before
    assert list(tmp_path.iterdir()) == []


def test_an_older_file_in_the_place_of_an_output_is_told(veil, samples, tmp_path):
    for name in ("portrait.png", "held.png", "failed.png"):
        (tmp_path / "clean").mkdir(exist_ok=True)
        (tmp_path / "clean" / name).write_bytes(b"older")
    (tmp_path / "in").mkdir()
    shutil.copy(samples["astronaut.png"], tmp_path / "in/portrait.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "in/held.png")
    (tmp_path / "in/failed.png").write_bytes(b"no picture")
    command = ("anonymize", "in", "--output", "clean")
    hold = {"VEIL_NO_FACES": "hold"}

    done = veil(*command, cwd=tmp_path, environment=hold)

    older = "in/{0}: an older file is in its output's place: clean/{0}"
    assert done.returncode == 1
    assert {line for line in done.stderr.splitlines() if "older file is" in line} == {
        older.format("held.png"),
        older.format("failed.png"),
    }
    assert "2 older files in the place of an output" in done.stderr
    told = lines(veil(*command, "--json", cwd=tmp_path, environment=hold))
    assert {each["source"]: each["older_output"] for each in told} == {
        "in/portrait.png": None,
        "in/held.png": "clean/held.png",
        "in/failed.png": "clean/failed.png",
    }
    (tmp_path / "in/failed.png").unlink()
    assert veil(*command, cwd=tmp_path, environment=hold).returncode == 1
    (tmp_path / "clean/held.png").unlink()
    assert veil(*command, cwd=tmp_path, environment=hold).returncode == 0


@pytest.mark.parametrize("flags", [[], ["--detect-only", "--output", "out"]])
def test_either_a_folder_for_outputs_or_detect_only_is_given(veil, album, tmp_path, flags):
    done = veil("anonymize", album, *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert "--detect-only" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_sources_are_left_as_they_were(run_on_album, album, samples):
    with (
        Image.open(album / "deep/b.png") as image,
        Image.open(samples["astronaut.png"]) as original,
    ):
        assert (np.asarray(image) == np.asarray(original.crop((100, 0, 360, 260)))).all()


def test_good_pictures_alone_are_exit_code_0_and_silent_without_json(veil, album, tmp_path):
    done = veil(
        "anonymize", album / "a.jpg", album / "deep" / "b.png", "--output", tmp_path / "output"
    )

    assert done.returncode == 0
    assert done.stdout == ""
    assert done.stderr == f"2 anonymized; outputs in {tmp_path / 'output'}\n"
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == ["a.jpg", "b.png"]


def test_flags_ask_for_another_method_region_and_areas(veil, album, tmp_path):
    flags = [
        "--method",
        "fill",
        "--region",
        "full",
        "--extra",
        "2,3,30,20",
        "--extra",
        "240,240,260,260",
    ]

    done = veil("anonymize", album / "deep" / "b.png", "--output", tmp_path, "--json", *flags)

    assert done.returncode == 0
    (outcome,) = lines(done)
    ((x1, y1, x2, y2),) = [[round(side) for side in box] for box in outcome["boxes_xyxy"]]
    with Image.open(tmp_path / "b.png") as image:
        after = np.asarray(image)
    assert (after[y1:y2, x1:x2] == 0).all()
    assert (after[3:20, 2:30] == 0).all()
    assert (after[240:, 240:] == 0).all()


def test_a_face_in_an_exempt_area_is_left_clear(veil, album, tmp_path):
    done = veil(
        "anonymize", album / "deep" / "b.png", "--output", tmp_path, "--exempt", "0,0,260,260"
    )

    assert done.returncode == 0
    with Image.open(tmp_path / "b.png") as after, Image.open(album / "deep" / "b.png") as before:
        assert np.array_equal(np.asarray(after), np.asarray(before))


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--method", "median"], "method"),
        (["--region", "half"], "region"),
        (["--region", "0.3"], "region"),
        (["--exempt", "1,2,3"], "exempt"),
        (["--extra", "9,2,3,4"], "extra"),
        (["--extra", "a,b,c,d"], "extra"),
    ],
)
def test_flags_that_can_not_be_asked_for_are_one_line(veil, album, tmp_path, flags, complaint):
    done = veil("anonymize", album / "a.jpg", "--output", tmp_path / "output", *flags)

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("veil: InvalidRequest: ")
    assert complaint in line
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("VEIL_MARGINS", "did you mean VEIL_MARGIN?"),
        ("VEIL_SCORE_TRESHOLD", "did you mean VEIL_SCORE_THRESHOLD?"),
    ],
)
def test_an_unknown_setting_is_one_line_with_the_likely_name(veil, album, tmp_path, variable, hint):
    done = veil("anonymize", album, "--output", tmp_path / "output", environment={variable: "0.5"})

    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line == f"veil: SettingsInvalid: {variable} is not a setting: {hint}"
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("VEIL_REGION", "2"),
        ("VEIL_METHOD", "median"),
        ("VEIL_SCALES", "640,big"),
        ("VEIL_MAX_PIXELS", "many"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(veil, album, tmp_path, variable, value):
    done = veil("anonymize", album, "--output", tmp_path / "output", environment={variable: value})

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"veil: SettingsInvalid: {variable}: ")


def test_an_output_that_would_replace_its_source_is_refused(veil, album):
    before = (album / "a.jpg").read_bytes()

    done = veil("anonymize", album, "--output", album)

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "choose another --output" in line
    assert (album / "a.jpg").read_bytes() == before


def test_a_path_that_is_not_there_is_exit_code_2(veil, tmp_path):
    # A relative path: the message's box would break a long one anywhere.
    done = veil("anonymize", "missing.jpg", "--output", "output", cwd=tmp_path)

    assert done.returncode == 2
    assert done.stdout == ""
    assert "missing.jpg" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_named_pipe_is_refused(veil, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")

    done = veil("anonymize", "pipe.jpg", "--output", "output", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert "pipe.jpg is a pipe: name a file or a folder" in done.stderr


@pytest.fixture
def stuck(programs, album, tmp_path):
    """``veil anonymize --json`` of two files in the folder ``in``, of which the read of one never
    ends.
    """
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    shutil.copy(album / "a.jpg", source)
    shutil.copy(album / "a.jpg", source / "z.jpg")
    process = start_command(
        [programs / "veil", "anonymize", source, "--output", output, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "cv2" not in Path(f"/proc/{process.pid}/maps").read_text():  # loaded after the listing
        time.sleep(0.01)
    # A pipe in place of a file whose file system does not answer.
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pipe").rename(source / "z.jpg")
    with process:
        yield process
        process.kill()


SIGNALS = pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)


@SIGNALS
def test_a_signal_ends_the_command_though_a_read_never_ends(stuck, tmp_path, number, code):
    process = stuck
    assert json.loads(process.stdout.readline())["source"] == str(tmp_path / "in" / "a.jpg")
    process.send_signal(number)
    _, printed = process.communicate(timeout=30)

    assert process.returncode == code
    assert printed.splitlines()[-2:] == [
        "veil: interrupted; what was done until then:",
        f"1 anonymized; outputs in {tmp_path / 'out'}",
    ]


@SIGNALS
def test_a_signal_ends_the_command_though_nobody_reads_what_it_prints(
    stuck, tmp_path, number, code
):
    stuck.stdout.close()
    while not (tmp_path / "out" / "a.jpg").exists():
        time.sleep(0.01)
    stuck.send_signal(number)
    assert stuck.wait(30) == code
    assert stuck.stderr.read().splitlines()[-1].startswith("1 anonymized; outputs in ")


def test_without_a_reader_the_command_ends_though_a_read_never_ends(stuck):
    stuck.stdout.close()
    assert stuck.wait(60) == 1
    assert "Traceback" not in stuck.stderr.read()


def test_quiet_prints_failures_alone(veil, album, tmp_path):
    arguments = [album / "a.jpg", album / "empty.png", "-o", tmp_path, "-q"]
    done = veil("anonymize", *arguments)

    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{album / 'empty.png'}: EmptyObject: ")
    assert (tmp_path / "a.jpg").is_file()
