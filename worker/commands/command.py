"""The base of every command: checks the environment, and ends with the code that it returns."""

import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand

from worker.commands.exit_codes import ExitCode

Function = TypeVar("Function", bound=Callable[..., Any])

LINE_BREAK = re.compile(r"(?<!\n)\n(?!\n)")  # within a paragraph


class Command(TyperCommand):
    """A command whose function returns an ExitCode; None stands for OK."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        if text := attributes.get("help"):
            # Rich keeps the line breaks of a docstring, whatever the width of the terminal.
            attributes["help"] = LINE_BREAK.sub(" ", text)
        super().__init__(*arguments, **attributes)

    def invoke(self, ctx: Any) -> None:
        """Refuse misspelt settings, run the command and exit.

        Arguments are parsed before, so ``--help`` works in any environment. Raise SettingsInvalid
        for a ``VEIL_`` variable that is not a setting.
        """
        from tasks.settings import refuse_unknown
        from worker.settings import WorkerSettings

        refuse_unknown(os.environ, WorkerSettings)
        ctx.exit(super().invoke(ctx) or ExitCode.OK)


class CommandApp(typer.Typer):
    """The Typer app of a module: its only command, or a group of commands."""

    def __init__(self, group_help: str | None = None) -> None:
        super().__init__(
            help=group_help,
            no_args_is_help=True,
            add_completion=False,
            # Typer's own tracebacks show local variables: pictures and credentials.
            pretty_exceptions_enable=False,
        )

    def command(self, name: str | None = None, **options: Any) -> Callable[[Function], Function]:
        """Register a function as a Command. `options` are those of Typer."""
        return super().command(name, cls=Command, **options)
