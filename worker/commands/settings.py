"""``veil settings``: the table of settings in the documentation, and the check of their values."""

import json
from typing import Annotated

import typer

from worker.commands.command import CommandApp
from worker.commands.exit_codes import ExitCode
from worker.commands.options import Json
from worker.settings import WorkerSettings, markdown_table, table

Check = Annotated[
    bool,
    typer.Option("--check", help="Check the values in the environment, and print no table."),
]

app = CommandApp()


@app.command()
def settings(as_json: Json = False, check: Check = False) -> ExitCode:
    """Print or check the settings.

    The command prints a Markdown table of all settings. With --check, it checks the values in the
    environment instead, and prints nothing if a worker accepts all of them. Otherwise it prints the
    line that a worker would print, and the exit code is 2. It calls no server and loads no model:
    `veil model info` tells whether models and rules fit each other.

    Example: veil settings --check
    """
    if check:
        from tasks.storage.s3 import ObjectStore  # It imports boto3.

        ObjectStore.connect(WorkerSettings.load_for_outputs())
        return ExitCode.OK
    if not as_json:
        print(markdown_table())
        return ExitCode.OK
    for variable, default, meaning in table():
        print(json.dumps({"variable": variable, "default": default, "meaning": meaning}))
    return ExitCode.OK
