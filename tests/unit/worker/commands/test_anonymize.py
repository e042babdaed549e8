"""Local files: which are taken, where outputs go, that no source is replaced, and that one bad file
ends nothing.
"""

import io
import os
import subprocess
import sys
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.errors import DetectionFailed, OutputFailed
from tasks.messages import AnonymizeOptions
from worker.anonymizer import Anonymizer, Limits
from worker.commands import anonymize
from worker.commands.anonymize import Job, _print, anonymize_file, find_jobs
from worker.commands.interruption import Terminated
from worker.detection.faces import Detections
from worker.masking.regions import MaskStyle
from worker.settings import WorkerSettings

FACE = (10, 10, 30, 30)


class Finds:
    def __init__(self, *boxes):
        self._found = Detections(
            np.array(boxes, np.float32).reshape(-1, 4), np.full(len(boxes), 0.75, np.float32)
        )

    def detect(self, picture):
        return self._found


class Fails:
    def __init__(self, error):
        self._error = error

    def detect(self, picture):
        raise self._error


def anonymizer(detector=None, **options):
    limits = Limits(max_bytes=10**6, max_pixels=10**6, fetch_seconds=5)
    style = MaskStyle("fill", 1.0, 0.0)
    return Anonymizer(detector=detector or Finds(FACE), style=style, limits=limits, **options)


def picture(form="PNG"):
    target = io.BytesIO()
    Image.new("RGB", (40, 40), (200, 180, 160)).save(target, form)
    return target.getvalue()


@pytest.fixture
def folder(tmp_path):
    """A folder of files, ``{relative path: content}`` written into it."""

    def make(name, files):
        for relative, content in files.items():
            path = tmp_path / name / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return tmp_path / name

    return make


def targets(paths, output):
    return {
        str(job.source): str(job.output.relative_to(output)) for job in find_jobs(paths, output)
    }


# --- which files, and where to


def test_a_folders_structure_is_kept(folder, tmp_path):
    source = folder("in", {"a.jpg": b"", "deep/er/b.png": b"", "deep/c.JPG": b"", "notes.txt": b""})
    assert targets([source], tmp_path / "out") == {
        f"{source}/{name}": name for name in ("a.jpg", "deep/c.JPG", "deep/er/b.png", "notes.txt")
    }


def test_the_outputs_of_heic_have_the_suffix_that_is_set(folder, tmp_path):
    source, output = folder("in", {"a.HEIC": b"", "d/b.heif": b"", "c.png": b""}), tmp_path / "out"
    jobs = find_jobs([source], output, ".jpg")
    names = {job.output.relative_to(output).as_posix() for job in jobs}
    assert names == {"a.jpg", "d/b.jpg", "c.png"}
    (source / "a.jpg").write_bytes(b"")
    with pytest.raises(OutputFailed, match="would both become"):
        find_jobs([source], output, ".jpg")


def test_files_come_in_a_stable_order(folder, tmp_path):
    source = folder("in", dict.fromkeys(("b.jpg", "a.jpg", "z/a.jpg", "c/a.jpg"), b""))
    assert list(targets([source], tmp_path / "out").values()) == [
        "a.jpg",
        "b.jpg",
        "c/a.jpg",
        "z/a.jpg",
    ]


def test_a_named_file_goes_to_the_top_of_the_output(folder, tmp_path):
    source = folder("in", {"deep/a.jpg": b"", ".hidden.jpg": b""})
    jobs = list(find_jobs([source / "deep/a.jpg", source / ".hidden.jpg"], tmp_path / "out"))
    assert [(job.output.name, job.named) for job in jobs] == [
        ("a.jpg", True),
        (".hidden.jpg", True),
    ]


def test_what_is_left_out_of_folders_is_told(folder, tmp_path):
    source = folder(
        "in",
        {"a.jpg": b"", ".b.jpg": b"", ".git/c.jpg": b"", "d/.e/f.jpg": b"", "out/a.jpg": b""},
    )
    (source / "link").symlink_to(tmp_path)
    os.mkfifo(source / "pipe")
    left_out = set()
    jobs = find_jobs([source, source / "d"], source / "out", on_left_out=left_out.add)
    assert [job.source.name for job in jobs] == ["a.jpg"]
    names = {path.relative_to(source).as_posix() for path in left_out}
    assert names == {".b.jpg", ".git", "d/.e", "link", "pipe"}


def test_an_output_folder_within_the_input_is_not_read_again(folder):
    source = folder(
        "in", {"a.jpg": b"", "out/a.jpg": b"", "out/deep/b.jpg": b"", "other/out/c.jpg": b""}
    )
    assert targets([source], source / "out") == {
        f"{source}/a.jpg": "a.jpg",
        f"{source}/other/out/c.jpg": "other/out/c.jpg",
    }


def test_an_output_folder_is_recognised_by_any_name(folder, tmp_path, monkeypatch):
    source = folder("in", {"a.jpg": b"", "out/a.jpg": b""})
    (tmp_path / "link").symlink_to(source / "out")
    monkeypatch.chdir(tmp_path)
    assert [job.output.name for job in find_jobs([source], tmp_path / "link")] == ["a.jpg"]


def test_outputs_that_would_be_one_are_refused(folder, tmp_path):
    one, other = folder("one", {"a.jpg": b""}), folder("other", {"a.jpg": b""})
    for paths in ([one, other], [one / "a.jpg", other / "a.jpg"], [one, other / "a.jpg"]):
        with pytest.raises(OutputFailed, match="both become"):
            list(find_jobs(paths, tmp_path / "out"))


@pytest.mark.parametrize("folder_comes_first", [False, True])
def test_a_file_that_is_named_twice_is_done_once_as_a_named_one(
    folder, tmp_path, monkeypatch, folder_comes_first
):
    source = folder("in", {"a.jpg": b"", "b.jpg": b"", "deep/c.jpg": b""})
    (tmp_path / "link").symlink_to(source)
    monkeypatch.chdir(tmp_path)
    named = [Path("link/a.jpg"), Path("in/../in/a.jpg")]
    paths = [Path("in"), *named] if folder_comes_first else [*named, Path("in")]
    for output in (tmp_path / "out", None):
        jobs = {job.source.name: job.named for job in find_jobs(paths, output)}
        assert jobs == {"a.jpg": True, "b.jpg": False, "c.jpg": False}
        assert len(find_jobs(paths, output)) == 3
    both = find_jobs([source / "deep/c.jpg", source / "deep", source], tmp_path / "out")
    assert sorted(str(job.output.relative_to(tmp_path / "out")) for job in both) == [
        "a.jpg",
        "b.jpg",
        "c.jpg",
        "deep/c.jpg",
    ]
    assert len(find_jobs([source / "deep/c.jpg", source / "deep", source], None)) == 3


def test_a_link_beside_its_file_has_an_output_of_its_own(folder, tmp_path):
    source = folder("in", {"a.jpg": b""})
    (source / "b.jpg").symlink_to("a.jpg")
    assert [job.output.name for job in find_jobs([source], tmp_path / "out")] == ["a.jpg", "b.jpg"]
    assert [job.source.name for job in find_jobs([source], None)] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("paths", "output"),
    [
        (["in/a.jpg"], "in"),
        (["in"], "in"),
        (["in/../in/a.jpg"], "in/deep/.."),
        (["in"], "link"),
        (["link/a.jpg"], "in"),
        (["also.jpg"], "."),
        (["other", "in/deep"], "in"),
        (["in/deep/b.jpg", "other"], "in"),
    ],
)
def test_no_source_is_ever_replaced(folder, tmp_path, monkeypatch, paths, output):
    source = folder("in", {"a.jpg": b"1", "deep/b.jpg": b"2", "deep/deep/b.jpg": b"3"})
    folder("other", {"deep/b.jpg": b"4"})
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "also.jpg").symlink_to(source / "a.jpg")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputFailed, match="would be replaced"):
        list(find_jobs([Path(path) for path in paths], Path(output)))


def test_a_folder_without_files_gives_no_jobs(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert list(find_jobs([tmp_path / "empty"], tmp_path / "out")) == []


# --- one file


def job(path, output, named=False):
    return Job(path, output, named)


def test_a_face_in_a_file_is_hidden(folder, tmp_path):
    source = folder("in", {"a.png": picture()}) / "a.png"
    outcome = anonymize_file(anonymizer(), job(source, tmp_path / "out/deep/a.png"), 10**6)
    assert (outcome.status, outcome.faces, outcome.error) == ("anonymized", 1, None)
    assert (outcome.source, outcome.output) == (str(source), str(tmp_path / "out/deep/a.png"))
    assert (outcome.boxes_xyxy, outcome.scores) == ([list(FACE)], [0.75])
    pixels = np.asarray(Image.open(outcome.output))
    assert not pixels[10:30, 10:30].any()
    assert (pixels[30:] == (200, 180, 160)).all()
    assert source.read_bytes() == picture()


def test_faces_are_only_detected_if_a_job_has_no_output(folder, tmp_path, capsys):
    source = folder("in", {"a.png": picture(), "b/a.png": picture()})
    jobs = list(find_jobs([source, source / "a.png"], None))
    assert [job.output for job in jobs] == [None] * 2
    outcome = anonymize_file(anonymizer(), jobs[0], 10**6)
    assert (outcome.status, outcome.output, outcome.faces) == ("detected", None, 1)
    assert (outcome.width, outcome.height) == (40, 40)
    assert (outcome.boxes_xyxy, outcome.scores) == ([list(FACE)], [0.75])
    _print(outcome, as_json=False)
    assert capsys.readouterr().out == f"{source / 'a.png'}: 1 face, 40 × 40 pixels\n"
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["a.png", "a.png"]
    _print(replace(outcome, labels=["plate", "plate"]), as_json=False)
    assert ": 0 faces, 2 plates, 40" in capsys.readouterr().out


def test_faces_in_exempt_areas_are_not_detected(folder):
    source = folder("in", {"a.png": picture()}) / "a.png"
    exempt = AnonymizeOptions(exempt=((0, 0, 40, 40),))
    outcome = anonymize_file(anonymizer(), Job(source, None, True), 10**6, exempt)
    assert (outcome.status, outcome.faces) == ("detected", 0)


def test_a_file_without_faces_is_held_by_setting_and_nothing_is_written(folder, tmp_path):
    source = folder("in", {"a.png": picture()}) / "a.png"
    outcome = anonymize_file(
        anonymizer(Finds(), hold_without_faces=True), job(source, tmp_path / "out/a.png"), 10**6
    )
    assert (outcome.status, outcome.output, outcome.faces) == ("held", None, 0)
    assert outcome.reason == "no face found"
    assert not (tmp_path / "out").exists()


class FindsAnother:
    """A detector that finds a face in another place at each look."""

    looks = 0

    def detect(self, picture):
        self.looks += 1
        x = 3 * self.looks
        return Detections(np.array([(x, 10, x + 2, 20)], np.float32), np.array([0.5], np.float32))


@pytest.mark.parametrize(("verify", "status"), [("flag", "anonymized"), ("hold", "held")])
def test_a_file_in_which_faces_are_still_found_is_named_with_its_reason(
    folder, tmp_path, capsys, verify, status
):
    source = folder("in", {"a.png": picture()}) / "a.png"
    made = anonymizer(FindsAnother(), verify=verify)
    outcome = anonymize_file(made, job(source, tmp_path / "out/a.png"), 10**6)
    assert (outcome.status, outcome.reason) == (status, "faces still found in the output")
    assert outcome.found_by_check == outcome.faces - 1
    assert (tmp_path / "out/a.png").exists() == (verify == "flag")
    _print(outcome, as_json=False)
    assert capsys.readouterr().err == f"{source}: {status}, faces still found in the output\n"


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.jpg", b"not a picture", "UnreadableImage"),
        ("a.jpg", picture()[:-40], "UnreadableImage"),
        ("a.jpg", b"", "EmptyObject"),
        ("a.HEIC", b"\0\0\0\x18ftypheic" + bytes(40), "UnreadableImage"),
        ("a.ico", picture("ICO"), "UnsupportedImage"),
        ("a.dat", picture("PPM"), "UnsupportedImage"),
        ("a.jpg", picture("BMP") + bytes(10**6), "ImageTooLarge"),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_a_picture_that_cannot_be_anonymized_fails_with_its_reason(
    folder, tmp_path, name, content, error, named
):
    source = folder("in", {name: content}) / name
    outcome = anonymize_file(anonymizer(), job(source, tmp_path / "out" / name, named), 10**6)
    assert (outcome.status, outcome.error, outcome.output) == ("failed", error, None)
    assert len(outcome.message.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"some notes", b"", b"%PDF-1.7"])
def test_a_file_in_a_folder_that_is_no_picture_is_ignored_unless_it_was_named(
    folder, tmp_path, content
):
    source = folder("in", {"notes.txt": content}) / "notes.txt"
    found, named = (
        anonymize_file(anonymizer(), job(source, tmp_path / "out/x", flag), 10**6)
        for flag in (False, True)
    )
    assert (found.status, named.status) == ("ignored", "failed")


def test_a_picture_is_one_whatever_its_name(folder, tmp_path):
    source = folder("in", {"a.txt": picture("JPEG")}) / "a.txt"
    assert (
        anonymize_file(anonymizer(), job(source, tmp_path / "out/a.txt"), 10**6).status
        == "anonymized"
    )


@pytest.mark.parametrize(
    "error", [DetectionFailed("no"), ArithmeticError("two\nlines"), MemoryError(), KeyError("x")]
)
def test_a_detector_that_fails_leaves_no_output(folder, tmp_path, error):
    source = folder("in", {"a.png": picture()}) / "a.png"
    outcome = anonymize_file(anonymizer(Fails(error)), job(source, tmp_path / "out/a.png"), 10**6)
    assert (outcome.status, outcome.error) == ("failed", type(error).__name__)
    assert len(outcome.message.splitlines()) <= 1
    assert not (tmp_path / "out").exists()


def test_one_bad_file_never_ends_a_run(folder, tmp_path):
    source = folder(
        "in",
        {"a.png": picture(), "b.png": b"bad", "d.png": picture(), "e.txt": b"x", "f.png/g": b""},
    )
    (source / "c.png").symlink_to(source / "nowhere.png")
    output = tmp_path / "out"
    output.mkdir()
    (output / "d.png").mkdir()  # in the way of an output
    jobs = [*find_jobs([source], output), job(source / "f.png", output / "f.png", True)]
    outcomes = {
        Path(o.source).name: o.status
        for o in (anonymize_file(anonymizer(), j, 10**6) for j in jobs)
    }
    assert outcomes == {
        "a.png": "anonymized",
        "b.png": "failed",
        "c.png": "failed",
        "d.png": "failed",
        "e.txt": "ignored",
        "f.png": "failed",
        "g": "ignored",
    }
    assert sorted(path.name for path in output.rglob("*")) == ["a.png", "d.png"]


def test_a_dangling_link_is_named_with_its_target(folder, tmp_path):
    (tmp_path / "a.png").symlink_to("gone.png")
    outcome = anonymize_file(anonymizer(), job(tmp_path / "a.png", tmp_path / "b.png"), 10**6)
    assert (outcome.status, outcome.error) == ("failed", "FileNotFoundError")
    assert outcome.message.endswith("a.png is a link to gone.png, which does not exist")


def test_ctrl_c_reports_the_files_that_were_done_until_then(folder, tmp_path, monkeypatch):
    source = folder("in", {"a.png": picture(), "b.png": picture()})
    reported = []

    def interrupted(futures):
        yield next(iter(futures))
        wait(futures)
        raise KeyboardInterrupt

    monkeypatch.setattr(anonymize, "as_completed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        anonymize._anonymize_files(
            anonymizer(),
            list(find_jobs([source], tmp_path / "out")),
            WorkerSettings(),
            AnonymizeOptions(),
            reported.append,
        )
    assert sorted(Path(outcome.source).name for outcome in reported) == ["a.png", "b.png"]


def test_what_can_not_be_printed_does_not_take_the_place_of_a_signal(folder, tmp_path, monkeypatch):
    source = folder("in", {"a.png": picture(), "b.png": picture()})
    tried = []

    def interrupted(futures):
        wait(futures)
        yield futures[0]

    def report(outcome):
        tried.append(outcome)
        raise BrokenPipeError if len(tried) > 1 else Terminated

    monkeypatch.setattr(anonymize, "as_completed", interrupted)
    with pytest.raises(Terminated):
        anonymize._anonymize_files(
            anonymizer(),
            list(find_jobs([source], tmp_path / "out")),
            WorkerSettings(),
            AnonymizeOptions(),
            report,
        )
    assert len(tried) == 2


def test_ctrl_c_does_not_wait_for_a_read_that_never_ends(folder, tmp_path, monkeypatch):
    source = folder("in", {"a.png": picture()})
    os.mkfifo(tmp_path / "pipe")  # in place of a file whose file system does not answer
    jobs = [*find_jobs([source], tmp_path / "out"), Job(tmp_path / "pipe", tmp_path / "b", True)]
    reported = []

    def interrupted(futures):
        yield futures[0]
        raise KeyboardInterrupt

    monkeypatch.setattr(anonymize, "as_completed", interrupted)
    monkeypatch.setattr(anonymize, "STOP_SECONDS", 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            anonymize._anonymize_files(
                anonymizer(), jobs, WorkerSettings(), AnonymizeOptions(), reported.append
            )
        assert [outcome.status for outcome in reported] == ["anonymized"]
    finally:
        os.close(os.open(tmp_path / "pipe", os.O_RDWR))  # ends the thread that reads


@pytest.mark.parametrize(
    ("path", "defect"),
    [
        ("a.jpg", None),
        (".", None),
        ("pipe.jpg", "pipe.jpg is a pipe: name a file or a folder"),
        ("/dev/zero", "/dev/zero is a device: name a file or a folder"),
        ("absent.jpg", "absent.jpg does not exist"),
        ("a.jpg/b.jpg", "a.jpg/b.jpg does not exist"),
        ("link.jpg", "link.jpg is a link to gone.jpg, which does not exist"),
        ("loop.jpg", "loop.jpg can't be read: Too many levels of symbolic links"),
    ],
)
def test_a_path_that_is_neither_a_file_nor_a_folder_is_refused(folder, monkeypatch, path, defect):
    monkeypatch.chdir(folder("in", {"a.jpg": b""}))
    os.mkfifo("pipe.jpg")
    Path("link.jpg").symlink_to("gone.jpg")
    Path("loop.jpg").symlink_to("loop.jpg")
    assert anonymize._defect(Path(path)) == defect


def test_a_pipe_in_a_folder_is_not_waited_for(folder, tmp_path):
    source = folder("in", {"a.jpg": b""})
    os.mkfifo(source / "pipe.jpg")
    assert targets([source], tmp_path / "out") == {f"{source}/a.jpg": "a.jpg"}


def test_a_damaged_picture_without_a_suffix_is_a_failure_and_not_ignored(folder, tmp_path):
    source = folder("in", {"IMG_0001": picture("JPEG")[:-40], "notes": b"not a picture"})
    outcomes = {
        job.source.name: anonymize_file(anonymizer(), job, 10**6)
        for job in find_jobs([source], tmp_path / "out")
    }
    assert (outcomes["IMG_0001"].status, outcomes["IMG_0001"].error) == (
        "failed",
        "UnreadableImage",
    )
    assert outcomes["notes"].status == "ignored"


@pytest.mark.parametrize(
    ("missing", "settings", "expected"),
    [
        ("numpy", {}, "numpy is not installed here: run pip install '.[worker]'"),
        ("nothing", {"VEIL_MODEL": "/no/such/model"}, "/no/such/model"),
    ],
)
def test_a_command_that_cannot_begin_makes_no_folder(tmp_path, missing, settings, expected):
    (tmp_path / "a.png").write_bytes(picture())
    target = tmp_path / "out"
    program = f"import sys; sys.modules[{missing!r}] = None; from worker.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "anonymize", str(tmp_path / "a.png"), "-o", str(target)],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert not target.exists()
