"""`python -m tools.demo` as `make demo` runs it: what it delivers, what it leaves behind, and that
it can be stopped.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import boto3
import pytest
import redis
from PIL import Image

from tests.command import start_command

RUN_SECONDS = 150
# A service or a step announces itself on standard error; what is started by then has to be stopped.
WHILE_SERVICES_START = "Services"
WHILE_PICTURES_ARE_MADE = "Queue"
RULES = "FACE: method=fill margin=0.3"


def processes_in(folder):
    """The processes that run in `folder`: the demo and everything that it started."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink().is_relative_to(folder) and process.name != str(
                os.getpid()
            ):
                found[int(process.name)] = (
                    (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                )
    return found


def wait_until_gone(folder):
    deadline = time.monotonic() + 30
    while (left := processes_in(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


@pytest.fixture
def images(tmp_path, samples):
    """Three small pictures, one of them in a folder."""
    folder = tmp_path / "images"
    for name in ("a.jpg", "b.png", "deep/c d.webp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(samples["astronaut.png"]) as image:
            image.crop((100, 0, 360, 260)).save(folder / name)
    return folder


@pytest.fixture
def demo(tmp_path, images, repository):
    """Start ``python -m tools.demo`` in a folder of its own; whatever is left in it at the end is
    killed.
    """
    cwd = tmp_path / "cwd"
    cwd.mkdir()

    def start(*arguments, **environment):
        settings = {
            **os.environ,
            "PYTHONPATH": str(repository),
            "IMAGES": str(images),
            "KEEP": "",
            **environment,
        }
        return start_command(
            [sys.executable, "-m", "tools.demo", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=settings,
            start_new_session=True,
        )

    start.cwd = cwd
    yield start
    for pid in processes_in(cwd):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def finish(process):
    """Its exit code and what it said."""
    try:
        _, said = process.communicate(timeout=RUN_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        _, said = process.communicate()
        pytest.fail(f"the demo did not end within {RUN_SECONDS} s: {said}")
    return process.returncode, said


def test_pictures_go_through_and_nothing_stays_running(demo, images):
    Image.new("RGB", (260, 260)).save(images / "nobody.png")
    code, said = finish(demo(VEIL_NO_FACES="hold"))

    assert code == 0, said
    assert "s3://raw/nobody.png: held, no face found" in said
    assert "4 pictures: 3 anonymized, 1 held (veil review list)" in said
    made = demo.cwd / ".demo"
    summary = json.loads((made / "summary.json").read_text())
    assert set(summary) == {
        "pictures",
        "anonymized",
        "held",
        "failed",
        "faces",
        "found",
        "seconds",
        "pictures_per_second",
        "outputs",
        "contact_sheet",
        "flower",
    }
    counts = {name: summary[name] for name in ("pictures", "anonymized", "held", "failed", "faces")}
    assert counts == {"pictures": 4, "anonymized": 3, "held": 1, "failed": 0, "faces": 3}
    assert summary["flower"] is None, "Flower was stopped"
    # Both are rounded to hundredths.
    assert summary["pictures_per_second"] == pytest.approx(
        3 / summary["seconds"], rel=0.05, abs=0.01
    )
    outputs = demo.cwd / summary["outputs"]
    for name, kind in (("a.jpg", "JPEG"), ("b.png", "PNG"), ("deep/c d.webp", "WEBP")):
        with Image.open(outputs / name) as image:
            assert (image.format, image.size) == (kind, (260, 260))
    with Image.open(demo.cwd / summary["contact_sheet"]) as sheet:
        sheet.load()
        assert min(sheet.size) > 200
    assert wait_until_gone(demo.cwd) == {}


@pytest.mark.parametrize(
    ("moment", "times", "keep"),
    [
        (WHILE_SERVICES_START, 1, "1"),
        (WHILE_SERVICES_START, 2, ""),
        (WHILE_PICTURES_ARE_MADE, 1, ""),
    ],
)
def test_after_ctrl_c_no_process_survives(demo, moment, times, keep):
    process = demo(KEEP=keep)
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith(moment):
            break
    else:
        pytest.fail(f"the demo ended before its step {moment}: {said}")
    if moment == WHILE_SERVICES_START:
        deadline = time.monotonic() + 60
        while len(processes_in(demo.cwd)) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert len(processes_in(demo.cwd)) >= 3

    for _ in range(times):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
    code, rest = finish(process)

    assert code != 0
    assert "Traceback" not in rest
    assert wait_until_gone(demo.cwd) == {}


def test_a_broken_picture_fails_alone_and_kept_services_answer_until_they_are_stopped(demo, images):
    (images / "broken.jpg").write_bytes((images / "a.jpg").read_bytes()[:3000])

    code, said = finish(demo(KEEP="1", VEIL_RULES=RULES))

    assert code == 1, said
    assert "broken.jpg" in said
    assert "UnreadableImage" in said
    assert said.splitlines()[-1].split(maxsplit=1) == [
        "Failed",
        "1 picture, named above; the services worked. make reports it as Error 1.",
    ]
    assert "building it" not in said, "the other tests have built it"
    summary = json.loads((demo.cwd / ".demo/summary.json").read_text())
    assert (summary["pictures"], summary["anonymized"], summary["failed"]) == (4, 3, 1)
    outputs = demo.cwd / summary["outputs"]
    files = {path.relative_to(outputs).as_posix() for path in outputs.rglob("*") if path.is_file()}
    assert files == {"a.jpg", "b.png", "deep/c d.webp"}

    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(summary["flower"], timeout=20)
    environment = demo.cwd / ".demo/environment.sh"
    assert environment.stat().st_mode & 0o077 == 0
    exports = shlex.split(environment.read_text())
    settings = dict(word.split("=", 1) for word in exports if word != "export")
    assert settings["VEIL_RULES"] == RULES, "a shell has the settings of the worker"
    with redis.Redis.from_url(
        settings["VEIL_REDIS_URL"], password=settings["VEIL_REDIS_PASSWORD"]
    ) as client:
        assert client.ping()
    veil = subprocess.run(
        [
            Path(sys.executable).parent / "veil",
            "enqueue",
            "--prefix",
            "s3://raw",
            "--wait",
            "--json",
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **settings},
    )
    statuses = sorted(json.loads(line)["status"] for line in veil.stdout.splitlines())
    assert statuses == ["failed", "skipped", "skipped", "skipped"]

    client = boto3.client(
        "s3",
        endpoint_url=settings["VEIL_S3_ENDPOINT"],
        region_name="us-east-1",
        aws_access_key_id=settings["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=settings["AWS_SECRET_ACCESS_KEY"],
    )
    client.upload_file(images / "a.jpg", "raw", "put later.jpg")
    client.get_waiter("object_exists").wait(
        Bucket="clean", Key="put later.jpg", WaiterConfig={"Delay": 1}
    )

    code, said = finish(demo())
    assert code == 1
    assert "make demo-stop" in said
    assert len(processes_in(demo.cwd)) == 6, (
        "Redis, S3, the trigger, Flower, a worker and its supervisor"
    )

    code, _ = finish(demo("stop"))
    assert code == 0
    assert wait_until_gone(demo.cwd) == {}
    assert not (demo.cwd / ".demo/running.json").exists()


def test_a_folder_without_pictures_is_one_line(demo, images):
    shutil.rmtree(images)
    images.mkdir()

    code, said = finish(demo())

    assert code == 1
    assert "has no pictures in it" in said.replace("\n", "")
    assert "Traceback" not in said
    assert wait_until_gone(demo.cwd) == {}
