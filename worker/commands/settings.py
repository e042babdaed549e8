"""``veil settings``: the table of settings in the documentation."""

from worker.commands.command import CommandApp
from worker.commands.exit_codes import ExitCode
from worker.settings import markdown_table

app = CommandApp()


@app.command()
def settings() -> ExitCode:
    """Print all settings as a Markdown table."""
    print(markdown_table())
    return ExitCode.OK
