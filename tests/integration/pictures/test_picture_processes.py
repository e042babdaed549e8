"""Picture processes: a picture that kills its process is its own loss, and a decoder that runs
foreign code reaches nothing.

``CHILD_KILLS=100`` is the long form of the tests of what remains.
"""

import contextlib
import io
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.errors import (
    Busy,
    DetectionFailed,
    ImageTooLarge,
    InvalidRequest,
    PictureCrashed,
    PictureProcessLost,
    UnreadableImage,
    UnsupportedImage,
)
from tasks.messages import FACE, AnonymizeOptions
from worker import images
from worker.anonymizer import Anonymizer, Limits, Stopwatch
from worker.detection.canvas import GPU_SIDES
from worker.detection.detector import ScaledDetector
from worker.detection.faces import Detections
from worker.detection.labelled import Search
from worker.detection.presets import PassSettings
from worker.detection.tiled import ANY_SIZE, ModelInput, one_by_one
from worker.isolated import IsolatedAnonymizer
from worker.masking.regions import MaskStyle
from worker.metadata.kept import Kept
from worker.process import pool as pools
from worker.process.channel import Configuration
from worker.process.pool import (
    CRASHED_AT,
    MAX_STDERR_BYTES,
    PicturePool,
    PictureProcess,
    UnexpectedError,
)

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = Path(__file__).parents[1] / "hostile_process.py"
COMMAND = (sys.executable, "-P", "-X", "faulthandler", str(PROGRAM))
CHILD_KILLS = int(os.environ.get("CHILD_KILLS", "4"))
LIMITS = Limits(max_bytes=1 << 20, max_pixels=1_000_000, fetch_seconds=5, decode_seconds=1)
STYLE = MaskStyle("fill", 1.0, 0.1)
PASSES = PassSettings((64,), 1.0, 64, mirrored=False, turned="never")
SECRET = "a-secret-of-the-worker"


def face(canvas):
    height, width = canvas.shape[:2]
    boxes = np.array([(width / 4, height / 4, width / 2, height / 2)], np.float32)
    return Detections(boxes, np.array([0.9], np.float32))


FACES = one_by_one(face)


def isolated(pool, infer=FACES, takes=ANY_SIZE, passes=PASSES, **options):
    configuration = Configuration(
        style=STYLE,
        labels=(FACE,),
        rules={},
        limits=LIMITS,
        hold_without_faces=False,
        verify=options.get("verify", "off"),
        keep=Kept(),
        inputs=(takes,),
        searches=(Search(FACE, 0, passes, 0.5, 0.55, takes, 60, {}),),
        detect_seconds=60,
        memory_bytes=300 << 20,
        output_bytes=8 << 20,
        runs_for_long=True,
    )
    pool.configure(configuration)
    local = Anonymizer(
        detector=ScaledDetector(infer, passes, 0.5, takes), style=STYLE, limits=LIMITS, **options
    )
    return local, IsolatedAnonymizer(local, pool, [infer], seconds=60)


def picture(form="PNG", side=64):
    target = io.BytesIO()
    Image.new("RGB", (side, side), (200, 180, 160)).save(target, form)
    return target.getvalue()


def order(word, form="PNG"):
    return b"OBEY " + word.encode() + b" " + picture(form)


@pytest.fixture
def short(monkeypatch):
    """Let a stage stall after two seconds."""
    monkeypatch.setattr(pools, "STALL_MARGIN_SECONDS", 1)


@pytest.fixture(scope="module")
def hostile():
    """An anonymizer with two picture processes that obey their pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("VEIL_REDIS_PASSWORD", SECRET)
        patch.setenv("SOME_TOKEN", SECRET)
        pool = PicturePool(2, COMMAND)
        _, anonymizer = isolated(pool)
        yield anonymizer
        pool.close()


@pytest.fixture(scope="module")
def reported(hostile):
    """``reported(word)`` returns what a picture process reports of an order."""

    def report(word):
        with pytest.raises(UnsupportedImage) as raised:
            hostile.anonymize(order(word), Stopwatch())
        return json.loads(str(raised.value))

    return report


@pytest.fixture(scope="module", params=["off", "flag"])
def both(request):
    """A value of VEIL_VERIFY, and the anonymizers for it: in this process, and in another."""
    pool = PicturePool(1)
    yield request.param, *isolated(pool, verify=request.param)
    pool.close()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "AVIF"])
def test_a_picture_process_makes_the_same_output(form, both):
    verify, local, apart = both
    content = picture(form)
    options = AnonymizeOptions(extra=((1, 2, 9, 8),))
    stages, stopwatch = [], Stopwatch()
    expected = local.anonymize(content, Stopwatch(stages.append), options)
    began = []
    stopwatch = Stopwatch(began.append)

    result = apart.anonymize(content, stopwatch, options)

    assert result.content == expected.content
    assert (result.format, result.content_type) == (expected.format, expected.content_type)
    assert (result.width, result.height) == (64, 64)
    assert np.array_equal(result.detections.boxes_xyxy, expected.detections.boxes_xyxy)
    assert np.array_equal(result.detections.scores, expected.detections.scores)
    assert result.checked.verdict == expected.checked.verdict
    assert began == stages
    assert list(stopwatch.seconds) == ["decode", "detect", "mask", "encode"] + (
        ["verify"] if verify == "flag" else []
    )
    found = apart.detect_file(content)
    assert found.content is None
    assert len(found.detections) == 1


def test_a_picture_process_that_starts_while_the_worker_stops_waits_for_its_picture():
    """Celery sets a default timeout of sockets then."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(5)
    try:
        pool = PicturePool(1)
    finally:
        socket.setdefaulttimeout(before)
    _, apart = isolated(pool)
    (pid,) = pool.pids
    time.sleep(1)
    assert apart.anonymize(picture(), Stopwatch()).format == "PNG"
    assert pool.pids == [pid]
    pool.close()


def test_a_picture_process_copies_an_avif_too():
    """The copy is decoded by another library than the picture."""
    pool = PicturePool(1)
    try:
        local, apart = isolated(pool, one_by_one(lambda _: Detections.none()))
        content = picture("AVIF")
        expected = local.anonymize(content, Stopwatch())
        assert expected.content == images.decode(content, 10**6).reassembled
        assert apart.anonymize(content, Stopwatch()).content == expected.content
    finally:
        pool.close()


def test_a_picture_process_sends_the_canvases_of_several_passes_at_once():
    calls = []

    def infer(canvases):
        calls.append([canvas.shape for canvas in canvases])
        return [face(canvas) for canvas in canvases]

    pool = PicturePool(1)
    takes = ModelInput(None, at_once=8, has_few_shapes=True)
    passes = PassSettings((128, 300, 600), 1.0, 64, mirrored=False, turned="never")
    local, apart = isolated(pool, infer, takes, passes)
    content = picture(side=600)
    expected = local.anonymize(content, Stopwatch())

    result = apart.anonymize(content, Stopwatch())

    pool.close()
    assert result.content == expected.content
    assert len(result.detections) > 0
    assert calls[: len(calls) // 2] == calls[len(calls) // 2 :]
    assert max(len(shapes) for shapes in calls) > 1
    sides = {side for shapes in calls for shape in shapes for side in shape[:2]}
    assert sides <= set(GPU_SIDES)


def test_the_errors_of_a_picture_are_those_of_the_anonymizer(hostile):
    with pytest.raises(UnreadableImage, match="picture"):
        hostile.anonymize(b"nothing", Stopwatch())
    with pytest.raises(UnreadableImage):
        hostile.anonymize(picture("JPEG")[:200], Stopwatch())
    with pytest.raises(ImageTooLarge, match="VEIL_MAX_PIXELS"):
        hostile.anonymize(picture(side=1001), Stopwatch())
    with pytest.raises(ImageTooLarge, match="VEIL_MAX_BYTES"):
        hostile.anonymize(bytes(LIMITS.max_bytes + 1), Stopwatch())


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("segfault", r"SIGSEGV while decoding \(__init__.py:\d+ string_at\)"),
        ("abort", "SIGABRT while decoding"),
        ("leave", "exit code 3 while decoding"),
        ("memory", "out of memory while decoding"),
        ("spin", "stalled while decoding"),
        ("babble", "a wrong message while decoding: .*unknown kind 255"),
        ("flood", "a wrong message while decoding: .*2,147,483,648 bytes"),
        ("forge", "a wrong message while decoding: RESULT"),
        ("overreach", "a wrong message while decoding: a canvas of 64 × 64 pixels"),
    ],
)
def test_a_picture_that_kills_two_processes_fails_for_good_and_alone(hostile, short, word, reason):
    neighbours = 6
    with ThreadPoolExecutor(3) as threads:
        others = [
            threads.submit(hostile.anonymize, picture(), Stopwatch()) for _ in range(neighbours)
        ]
        with pytest.raises(PictureCrashed, match=f"{reason}.*; {reason}"):
            hostile.anonymize(order(word), Stopwatch())
        assert [len(other.result().detections) for other in others] == [1] * neighbours
    assert hostile.anonymize(picture(), Stopwatch()).content


def test_an_area_outside_of_the_picture_is_refused_by_name(hostile):
    options = AnonymizeOptions(exempt=((64, 0, 99, 9),))
    with pytest.raises(InvalidRequest, match="the exempt area 64,0,99,9 is outside"):
        hostile.anonymize(picture(), Stopwatch(), options)


def test_a_bug_in_a_picture_process_is_named_and_the_process_lives(hostile):
    before = pids(hostile)
    with pytest.raises(UnexpectedError, match=r"KeyError: .*absent"):
        hostile.anonymize(order("bug"), Stopwatch())
    assert pids(hostile) == before


def entries(folder):
    return {path.name for path in Path(folder).iterdir()}


def pids(anonymizer):
    return sorted(anonymizer._pool.pids)


def kill_while_at_work(anonymizer, kills):
    """Kill the process of a picture that sleeps, `kills` times, and return the outcome."""
    with ThreadPoolExecutor(1) as threads:
        outcome = threads.submit(anonymizer.anonymize, order("sleep"), Stopwatch())
        killed = set()
        while len(killed) < kills and not outcome.done():
            time.sleep(0.5)
            for pid in set(pids(anonymizer)) - killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        return outcome.result()


@pytest.fixture(scope="module")
def one():
    pool = PicturePool(1, COMMAND)
    _, anonymizer = isolated(pool)
    yield anonymizer
    pool.close()


def test_a_picture_whose_process_is_killed_from_outside_is_tried_once_more(one):
    assert kill_while_at_work(one, 1).content


def test_a_picture_whose_processes_are_killed_from_outside_is_not_given_up(one):
    with pytest.raises(PictureProcessLost, match="SIGKILL"):
        kill_while_at_work(one, 100)


def test_a_failure_of_the_detector_passes_through_and_the_process_lives():
    pool = PicturePool(1, COMMAND)
    errors = [DetectionFailed("no"), MemoryError("full"), KeyError("bug")]

    def infer(canvas):
        if errors:
            raise errors[0]
        return face(canvas)

    _, anonymizer = isolated(pool, one_by_one(infer))
    before = pool.pids
    while errors:
        with pytest.raises(type(errors[0])) as raised:
            anonymizer.anonymize(picture(), Stopwatch())
        assert raised.value is errors.pop(0)
    assert anonymizer.anonymize(picture(), Stopwatch()).content
    assert pool.pids == before
    pool.close()


def test_a_stage_that_is_refused_ends_the_work(one):
    def refuse(stage):
        if stage == "masking":
            raise LookupError(stage)

    with pytest.raises(LookupError):
        one.anonymize(picture(), Stopwatch(refuse))
    assert one.anonymize(picture(), Stopwatch()).content


def test_a_process_that_was_left_at_work_gives_the_next_picture_no_other_result(one):
    def interrupt(*_):
        raise MemoryError("in the worker, while it waits for the result")

    main = threading.main_thread().ident
    before = signal.signal(signal.SIGUSR1, interrupt)
    timer = threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGUSR1))
    timer.start()
    try:
        with pytest.raises(MemoryError):
            one.anonymize(order("sleep"), Stopwatch())
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)

    for form in ("PNG", "GIF"):
        assert one.anonymize(picture(form), Stopwatch()).format == form


@pytest.mark.parametrize("path", [b"a", b"/", b"a/", b'File "', b"a.py"])
def test_what_a_process_writes_before_it_dies_is_searched_in_no_time(path):
    written = b'File "' + path * (MAX_STDERR_BYTES // len(path))
    began = time.process_time()
    assert not CRASHED_AT.search(written)
    assert time.process_time() - began < 1


# --- the sandbox


def test_a_decoder_that_runs_foreign_code_reaches_nothing(reported):
    report = reported("escape")
    assert report.pop("start a thread") == "did it"
    allowed = {name: what for name, what in report.items() if what.startswith("did it")}
    assert allowed == {}
    assert not Path("/tmp/escaped").exists()


def test_a_picture_process_has_no_secret_and_narrow_limits(reported):
    report = reported("tell")
    assert SECRET not in json.dumps(report)
    assert {name for name in report["environment"] if name.startswith(("AWS", "VEIL"))} == set()
    assert report["modules"] == []
    assert report["ignores SIGINT"]
    limits = report["limits"]
    assert limits["CORE"][0] == 0
    assert limits["FSIZE"] == [0, 0]
    assert limits["NOFILE"][1] <= 64
    assert 0 < limits["AS"][1] < 3 << 30
    assert 0 < limits["CPU"][0] < 2000


def test_a_picture_process_has_no_descriptor_but_its_own(tmp_path):
    """Each has standard streams, its channel, and files in memory: two shared ones, its module."""
    (tmp_path / "of the worker").touch()
    with (tmp_path / "of the worker").open() as opened, socket.socket() as connection:
        os.set_inheritable(opened.fileno(), True)
        os.set_inheritable(connection.fileno(), True)
        pool = PicturePool(1)
        isolated(pool)
        (pid,) = pool.pids
        names = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
        pool.close()
    assert len(names) <= 8, names
    kinds = sorted(name.partition(":")[0] for name in names)
    assert kinds.count("socket") == 1
    assert set(kinds) == {"/dev/null", "/memfd", "pipe", "socket"}


# --- nothing remains


def test_killed_picture_processes_leave_nothing(one):
    shared = entries("/dev/shm")
    one.anonymize(picture(), Stopwatch())
    before = len(entries("/proc/self/fd"))
    for _ in range(CHILD_KILLS):
        for pid in pids(one):
            os.kill(pid, signal.SIGKILL)
        assert one.anonymize(picture(), Stopwatch()).content
    assert len(entries("/proc/self/fd")) <= before
    assert entries("/dev/shm") <= shared


WORKER = """
import sys, time
from tests.integration.pictures import test_picture_processes as tests
from worker.anonymizer import Stopwatch
from worker.process.pool import PicturePool
pool = PicturePool(1, tests.COMMAND)
_, anonymizer = tests.isolated(pool)
print(pool.pids[0], flush=True)
anonymizer.anonymize(tests.order("spin"), Stopwatch())
"""


@pytest.mark.timeout(60 + 20 * CHILD_KILLS)
def test_a_killed_worker_leaves_no_picture_process(wait_until):
    shared = entries("/dev/shm")
    for _ in range(max(1, CHILD_KILLS // 4)):
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        with worker:
            pid = int(worker.stdout.readline())
            time.sleep(0.3)  # The picture is decoded by now, without an end.
            worker.kill()
        wait_until(lambda pid=pid: not is_running(pid), 10)
    assert entries("/dev/shm") <= shared


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_threads_that_start_processes_may_end(hostile):
    """The kernel ends a picture process with the thread that started it."""
    pool = PicturePool(1, COMMAND)
    _, anonymizer = isolated(pool)
    for pid in pool.pids:
        os.kill(pid, signal.SIGKILL)
    thread = threading.Thread(target=anonymizer.anonymize, args=(picture(), Stopwatch()))
    thread.start()
    thread.join()
    (pid,) = pool.pids
    time.sleep(0.2)
    assert is_running(pid)
    assert anonymizer.anonymize(picture(), Stopwatch()).content
    assert pool.pids == [pid]
    pool.close()


# --- the pool


def test_processes_are_started_when_several_pictures_are_worked_on_at_once():
    pool = PicturePool(3, COMMAND)
    _, anonymizer = isolated(pool)
    for _ in range(3):
        assert anonymizer.anonymize(picture(), Stopwatch()).content
    assert len(pool.pids) == 1
    with ThreadPoolExecutor(5) as threads:
        together = [
            threads.submit(anonymizer.anonymize, order("sleep"), Stopwatch()) for _ in range(8)
        ]
        assert all(one.result().content for one in together)
    assert 2 <= len(pool.pids) <= 3
    pool.close()
    assert pool.pids == []


def test_a_process_that_cannot_start_says_why(tmp_path):
    program = tmp_path / "broken.py"
    program.write_text("raise SystemExit('a library is missing')")
    pool = PicturePool(1, (sys.executable, str(program)))
    with pytest.raises(PictureProcessLost, match="exit code 1 while starting: a library is miss"):
        isolated(pool)


def test_a_picture_fails_for_now_if_no_process_can_be_started_any_more(tmp_path):
    program = tmp_path / "process.py"
    program.write_text(f"import runpy; runpy.run_path({str(PROGRAM)!r}, run_name='__main__')")
    pool = PicturePool(1, (sys.executable, "-P", str(program)))
    _, anonymizer = isolated(pool)
    program.write_text("raise SystemExit('the disk is gone')")
    with pytest.raises(PictureProcessLost, match="the disk is gone"):
        anonymizer.anonymize(order("segfault"), Stopwatch())
    program.write_text(f"import runpy; runpy.run_path({str(PROGRAM)!r}, run_name='__main__')")
    assert anonymizer.anonymize(picture(), Stopwatch()).content
    pool.close()


def test_a_process_that_was_not_prepared_gets_no_picture():
    pool = PicturePool(2, COMMAND)
    isolated(pool)
    pool._configuration = replace(pool._configuration, inputs=())  # which raises ValueError
    with (
        pool.borrowed(),
        pytest.raises(PictureProcessLost, match="max"),
        pool.borrowed(is_new=True),
    ):
        pass
    assert len(pool.pids) == 1
    pool.close()


def open_descriptors():
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("more", range(7))
def test_a_process_that_is_not_started_leaves_no_descriptor(more):
    first_free = os.dup(0)
    os.close(first_free)
    before = open_descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free + more, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            PictureProcess(COMMAND)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert open_descriptors() == before


def test_a_picture_whose_second_try_waits_too_long_is_not_tried_without_limit(wait_until):
    pool = PicturePool(2, COMMAND, wait_seconds=0.1)
    _, anonymizer = isolated(pool)

    def second_process_works():
        with contextlib.suppress(Busy):
            return anonymizer.anonymize(picture(), Stopwatch()).content

    with pool.borrowed():
        wait_until(second_process_works)
        with pytest.raises(PictureProcessLost, match=r"out of memory.*busy with other pictures"):
            anonymizer.anonymize(order("memory"), Stopwatch())
    pool.close()


def test_a_picture_that_waits_too_long_for_a_process_is_busy():
    pool = PicturePool(1, COMMAND, wait_seconds=0.1)
    _, anonymizer = isolated(pool)
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(anonymizer.anonymize, order("sleep"), Stopwatch())
        time.sleep(0.5)
        with pytest.raises(Busy):
            anonymizer.anonymize(picture(), Stopwatch())
        assert slow.result().content
    pool.close()
