"""The systemd unit agrees with the exit codes and the shutdown of a worker."""

import configparser
import subprocess

import pytest

from worker.commands.exit_codes import ExitCode
from worker.settings import WorkerSettings


@pytest.fixture(scope="module")
def path(repository):
    return repository / "docker" / "systemd" / "veil-worker.service"


@pytest.fixture(scope="module")
def service(path):
    # A key may occur several times in a section.
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read_string(path.read_text())
    return unit["Service"]


def test_systemd_takes_the_unit(path, tmp_path, programs, system_program):
    copy = tmp_path / path.name
    text = path.read_text().replace("/opt/veil/bin/veil", str(programs / "veil"))
    copy.write_text(text.replace("User=veil", "User=root"))
    done = subprocess.run(
        [system_program("systemd-analyze"), "verify", "--man=no", copy],
        check=False,
        capture_output=True,
        text=True,
    )
    # Other units of the machine may have faults of their own.
    assert [line for line in done.stderr.splitlines() if path.name in line] == []


def test_only_a_worker_that_cannot_use_its_settings_is_left_alone(service):
    assert service["Restart"] == "always"
    assert service["RestartPreventExitStatus"] == str(ExitCode.UNUSABLE.value)


def test_a_stop_reaches_each_worker_once_and_gives_it_the_time_that_it_takes(service):
    assert service["KillMode"] == "mixed"
    assert "KillSignal" not in service
    assert float(service["TimeoutStopSec"]) >= WorkerSettings().grace_seconds + 10


def test_a_process_that_takes_too_much_memory_does_not_end_the_others(service):
    assert service["OOMPolicy"] == "continue"


def test_the_page_names_the_files_of_the_unit(service, repository):
    page = (repository / "docs" / "running.md").read_text()
    for name in (service["EnvironmentFile"], service["ExecStart"].partition("/bin/")[0]):
        assert name in page
