"""The table of commands: light to list, loaded on use, and with the same exit codes everywhere."""

import json
import subprocess
import sys
from importlib import import_module, metadata

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from worker import cli
from worker.commands.command import CommandApp
from worker.commands.exit_codes import ExitCode
from worker.process import watchdog

LIBRARIES = {"boto3", "celery", "pydantic", "redis", "structlog"}
HEAVY = {"PIL", "ai_edge_litert", "cv2", "keras", "numpy", "onnx", "tensorflow"}
INVALID = {"VEIL_REDIS_URL": "http://nowhere", "VEIL_ROUTES": "", "VEIL_CONCURENCY": "4"}


def app_of(name):
    return import_module(cli.COMMANDS[name].module).app


def command_lines():
    """The arguments that name each command: ``["worker"]``, ``["dead", "list"]``."""
    for name in cli.COMMANDS:
        yield [name]
        for subcommand in getattr(get_command(app_of(name)), "commands", ()):
            yield [name, subcommand]


COMMAND_LINES = list(command_lines())

HELPS = """
import json, sys
from typer.testing import CliRunner
from worker import cli

for arguments in json.loads(sys.argv[1]):
    done = CliRunner().invoke(cli.app, [*arguments, "--help"], prog_name="veil")
    assert done.exit_code == 0, (arguments, done.output)
    assert "Usage: " in done.output
print(json.dumps([*sys.modules]))
"""


def modules_after_help(*command_lines, **environment):
    """The top-level modules that a new interpreter has loaded after the help of some commands."""
    program = [sys.executable, "-c", HELPS, json.dumps(command_lines)]
    done = subprocess.run(program, check=True, capture_output=True, text=True, env=environment)
    return {name.split(".")[0] for name in json.loads(done.stdout)}


def test_the_list_of_commands_needs_no_library_and_no_valid_setting():
    loaded = modules_after_help([], **INVALID)
    assert not loaded & (LIBRARIES | HEAVY)


def test_the_help_of_every_command_needs_no_heavy_library_and_no_valid_setting():
    loaded = modules_after_help(*COMMAND_LINES, **INVALID)
    assert loaded >= {"celery", "training"}
    assert not loaded & HEAVY


def test_the_list_shows_every_command_with_its_line():
    shown = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "120"}).output
    for name, entry in cli.COMMANDS.items():
        assert any(name in line and entry.help in line for line in shown.splitlines())


@pytest.mark.parametrize("name", sorted(cli.COMMANDS.keys() - {"train"}))
def test_a_line_of_the_list_is_the_first_line_of_the_commands_own_help(name):
    first, *_ = get_command(app_of(name)).help.splitlines()
    assert first == cli.COMMANDS[name].help


@pytest.mark.parametrize("arguments", COMMAND_LINES, ids=" ".join)
def test_a_command_keeps_its_help_and_names_itself_in_full(arguments):
    done = CliRunner().invoke(cli.app, [*arguments, "--help"], prog_name="veil")
    assert done.exit_code == 0
    assert f"Usage: veil {' '.join(arguments)}" in " ".join(done.output.split())


def test_the_version_is_that_of_the_installation():
    done = CliRunner().invoke(cli.app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"veil {metadata.version('veil')}\n")


def test_a_misspelt_command_is_refused_with_the_likely_one():
    done = CliRunner().invoke(cli.app, ["enqeue"])
    assert done.exit_code == ExitCode.UNUSABLE
    assert "'enqueue'" in done.output


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (ExitCode.STOPPED, 3), (5, 5)])
def test_what_a_command_returns_is_its_exit_code(returned, code):
    app = CommandApp()

    @app.command()
    def example() -> int | None:
        return returned

    assert CliRunner().invoke(app, []).exit_code == code


def test_a_misspelt_setting_stops_a_command_before_it_runs(monkeypatch):
    monkeypatch.setenv("VEIL_CONCURENCY", "4")
    app = CommandApp()
    runs = []

    @app.command()
    def example() -> None:
        runs.append(1)

    done = CliRunner().invoke(app, [])
    assert "VEIL_CONCURRENCY" in str(done.exception)
    assert runs == []


def test_the_table_of_exit_codes_has_those_of_the_watchdog():
    assert ExitCode.STALLED == watchdog.EXIT_STALLED
