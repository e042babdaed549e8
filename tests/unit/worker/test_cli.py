"""The table of commands: light to list, loaded on use, and with the same exit codes everywhere."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module, metadata
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from worker import cli, printing
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


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_a_line_of_the_list_is_the_first_line_of_the_commands_own_help(name):
    first, *_ = get_command(app_of(name)).help.splitlines()
    assert first == cli.COMMANDS[name].help


@pytest.mark.parametrize("arguments", COMMAND_LINES, ids=" ".join)
def test_a_command_keeps_its_help_and_names_itself_in_full(arguments):
    done = CliRunner().invoke(cli.app, [*arguments, "--help"], prog_name="veil")
    assert done.exit_code == 0
    assert f"Usage: veil {' '.join(arguments)}" in " ".join(done.output.split())


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("arguments", [[], *COMMAND_LINES], ids=" ".join)
def test_every_help_page_has_an_example_and_readable_names(arguments, flag):
    done = CliRunner().invoke(
        cli.app, [*arguments, flag], prog_name="veil", env={"COLUMNS": "200", "TERM": "dumb"}
    )
    assert done.exit_code == 0
    example = re.search(r"Example: (VEIL_\w+=\S+ )?(veil .*)", done.output)
    assert example
    assert example.group(2).split()[1 : len(arguments) + 1] == arguments or not arguments
    for unreadable in ("[[", "{", "<bool>", "<list[", "<str>", "]]"):
        assert unreadable not in done.output, done.output


@pytest.mark.parametrize("arguments", [[], *COMMAND_LINES], ids=" ".join)
def test_no_word_of_a_help_page_is_cut_at_80_columns(arguments):
    done = CliRunner().invoke(cli.app, [*arguments, "-h"], prog_name="veil", env={"COLUMNS": "80"})
    assert max(map(len, done.output.splitlines())) == 80
    assert "…" not in done.output, done.output


def test_an_option_that_may_be_repeated_says_so():
    for arguments in COMMAND_LINES:
        command = get_command(app_of(arguments[0]))
        command = getattr(command, "commands", {}).get(arguments[-1], command)
        for parameter in command.params:
            if getattr(parameter, "multiple", False):
                assert "repeatable" in parameter.help, (arguments, parameter.name)


# Servers, and an export of which one format is JSON lines.
WITHOUT_JSON = (["worker"], ["watch"], ["review", "serve"], ["receipt", "export"])


def test_every_command_that_prints_data_takes_json():
    for arguments in COMMAND_LINES:
        command = get_command(app_of(arguments[0]))
        if hasattr(command, "commands"):
            if len(arguments) == 1:
                continue
            command = command.commands[arguments[1]]
        flags = [flag for parameter in command.params for flag in parameter.opts]
        assert ("--json" in flags) == (arguments not in WITHOUT_JSON), arguments


def test_the_settings_are_printed_as_json_too():
    done = CliRunner().invoke(cli.app, ["settings", "--json"])
    rows = {row["variable"]: row for row in map(json.loads, done.output.splitlines())}
    assert rows["VEIL_MARGIN"]["default"] == "0.1"
    assert rows["VEIL_MODEL"]["default"] is None
    assert "from its top" in rows["VEIL_REGION"]["meaning"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"WEBHOOK_TOKEN": "short"}, "VEIL_WEBHOOK_TOKEN: needs 32 characters"),
        ({"WEBHOOK_TOKEN": "t " * 20}, "VEIL_WEBHOOK_TOKEN: needs 32 characters"),
        ({"REVIEW_URL": "http://review.example"}, "VEIL_REVIEW_URL: passwords"),
        ({"REVIEW_URL": "https://review.example/desk"}, "VEIL_REVIEW_URL: the desk needs"),
        (
            {"REVIEW_PASSWORD": "p" * 16, "REVIEW_USER_HEADER": "X-User"},
            "VEIL_REVIEW_PASSWORD and VEIL_REVIEW_USER_HEADER are both set",
        ),
        (
            {"REDIS_URL": "redis://:one-password@queue/0", "REDIS_PASSWORD": "another-one"},
            "VEIL_REDIS_URL has another password than VEIL_REDIS_PASSWORD",
        ),
    ],
    ids=str,
)
def test_a_check_of_the_settings_covers_triggers_and_the_desk(monkeypatch, capsys, settings, said):
    for name, value in settings.items():
        monkeypatch.setenv(f"VEIL_{name}", value)

    monkeypatch.setattr(sys, "argv", ["veil", "settings", "--check"])
    with pytest.raises(SystemExit) as ended:
        cli.main()

    line = capsys.readouterr().err
    assert ended.value.code == ExitCode.UNUSABLE
    assert said in line
    assert "one-password" not in line
    assert "another-one" not in line


def test_a_check_of_the_settings_is_silent_or_the_line_of_a_worker(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["veil", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    assert run("settings", "--check") == (ExitCode.OK, "", "")

    monkeypatch.setenv("VEIL_GRACE_SECONDS", "-1")
    monkeypatch.setenv("VEIL_ROUTES", "raw")
    code, out, line = run("settings", "--check")
    assert (code, out, line.count("\n")) == (ExitCode.UNUSABLE, "", 1)
    assert "VEIL_GRACE_SECONDS" in line
    assert "VEIL_ROUTES" in line
    assert run("worker") == (code, out, line)

    monkeypatch.setenv("VEIL_GRACE", "1")
    code, out, line = run("settings", "--check")
    assert (code, out) == (ExitCode.UNUSABLE, "")
    assert "VEIL_GRACE is not a setting" in line


def test_waiting_is_the_same_flag_everywhere():
    for name in ("enqueue", "backfill"):
        flags = {
            option.opts[0]: option.secondary_opts for option in get_command(app_of(name)).params
        }
        assert flags["--wait"] == ["--no-wait"]


def test_the_help_lists_the_exit_codes():
    shown = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "120"}).output
    for code in ExitCode:
        assert f"{code.value}  {code.meaning}" in shown


def test_the_command_offers_completion_for_the_shell():
    flags = [flag for parameter in get_command(cli.app).params for flag in parameter.opts]
    assert {"--install-completion", "--show-completion"} <= set(flags)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("veil en", ["enqueue"]),
        ("veil dead ret", ["retry"]),
        ("veil enqueue --met", ["--method"]),
        ("veil enqueue --method b", ["blur"]),
        ("veil enqueue --queue ", ["uploads", "backfill"]),
    ],
)
def test_a_shell_completes_commands_flags_and_values(words, expected):
    typed = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    environment = {"_VEIL_COMPLETE": "complete_bash", **typed}
    done = CliRunner().invoke(cli.app, [], prog_name="veil", env=environment)
    assert done.output.split() == expected


def test_quiet_leaves_out_the_summary_and_the_progress(capsys):
    app = CommandApp()

    @app.command(has_summary=True)
    def example() -> None:
        printing.print_summary("1 anonymized")
        printing.print_note("a warning")

    try:
        for flags, summary in (([], "1 anonymized\n"), (["-q"], ""), (["--quiet"], "")):
            done = CliRunner().invoke(app, flags)
            assert done.exit_code == 0
            assert done.stderr == f"{summary}veil: a warning\n"
    finally:
        printing.set_quiet(False)


def test_an_interruption_still_prints_the_summary(capsys):
    with pytest.raises(KeyboardInterrupt), printing.summarized(lambda: print("2 anonymized")):
        raise KeyboardInterrupt
    printed = capsys.readouterr()
    assert printed.out == "2 anonymized\n"
    assert "interrupted" in printed.err


def test_sigterm_ends_a_command_with_its_summary_and_143(monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)
    app = CommandApp()

    @app.command()
    def example() -> None:
        with printing.summarized(lambda: printing.print_summary("2 compared")):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(sys, "argv", ["veil"])
    with pytest.raises(SystemExit) as ended:
        cli.main()

    assert ended.value.code == ExitCode.TERMINATED == 143
    lines = ["veil: interrupted; what was done until then:", "2 compared"]
    assert capsys.readouterr().err.splitlines() == lines
    assert signal.getsignal(signal.SIGTERM) is before


SIGTERM_BEFORE_THE_END = """
import os, signal, time
from worker import cli, printing
from worker.commands.command import CommandApp

app = CommandApp()

@app.command()
def example() -> None:
    with printing.summarized(lambda: print("2 compared")):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

cli.app = app
cli.main()
"""


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_sigterm_keeps_its_exit_code_though_nobody_reads_the_output(monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    reader, writer = os.pipe()
    os.close(reader)
    program = [sys.executable, "-c", SIGTERM_BEFORE_THE_END]
    done = subprocess.run(
        program, check=False, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=30
    )
    os.close(writer)
    assert done.returncode == ExitCode.TERMINATED
    assert done.stderr == "veil: interrupted; what was done until then:\n"


def test_the_version_is_that_of_the_installation():
    done = CliRunner().invoke(cli.app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"veil {metadata.version('veil')}\n")


@pytest.mark.parametrize("arguments", [["settings"], ["settings", "--json"], ["--version"]])
def test_a_full_disk_is_one_line_and_exit_code_1(arguments):
    program = [sys.executable, "-c", "from worker import cli; cli.main()", *arguments]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(program, check=False, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == ExitCode.FAILED
    assert done.stderr == (
        "veil: OSError: [Errno 28] No space left on device: "
        "'standard output, or a temporary file'\n"
    )


def test_a_misspelt_command_is_refused_with_the_likely_one():
    done = CliRunner().invoke(cli.app, ["enqeue"])
    assert done.exit_code == ExitCode.UNUSABLE
    assert "'enqueue'" in done.output


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (ExitCode.STOPPED, 3), (5, 5)])
def test_the_return_value_of_a_command_is_its_exit_code(returned, code):
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


@pytest.mark.parametrize(
    "arguments",
    [
        ("enqueue", "s3://raw/a.jpg", "--rule", ""),
        ("enqueue", "s3://raw/a.jpg", "--prefix", ""),
        ("enqueue", "s3://raw/a.jpg", "--exempt", "0,0,9,9", "--exempt", ""),
        ("backfill", "s3://raw", "--to", ""),
        ("backfill", ""),
        ("watch", "--poll", "60", "--prefix", ""),
    ],
    ids=str,
)
def test_an_empty_text_is_refused_as_an_unset_variable_of_a_shell_leaves_it(
    monkeypatch, capsys, arguments
):
    monkeypatch.setattr(sys, "argv", ["veil", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == ExitCode.UNUSABLE
    said = capsys.readouterr().err
    assert "it is empty: give a value, or leave it out" in said
    assert said.count("\n") == 1
