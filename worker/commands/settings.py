"""``veil settings``: the table of settings in the documentation."""

import json

from worker.commands.command import CommandApp
from worker.commands.exit_codes import ExitCode
from worker.commands.options import Json
from worker.settings import markdown_table, table

app = CommandApp()


@app.command()
def settings(as_json: Json = False) -> ExitCode:
    """Print all settings as a Markdown table.

    Example: veil settings --json
    """
    if not as_json:
        print(markdown_table())
        return ExitCode.OK
    for variable, default, meaning in table():
        print(json.dumps({"variable": variable, "default": default, "meaning": meaning}))
    return ExitCode.OK
