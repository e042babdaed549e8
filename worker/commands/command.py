"""The bases of commands and groups: readable help, checked settings, and the exit code returned."""

import math
import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from worker import printing
from worker.commands.exit_codes import ExitCode
from worker.commands.interruption import Terminated, terminable

Function = TypeVar("Function", bound=Callable[..., Any])

LINE_BREAK = re.compile(r"(?<!\n)\n(?!\n)")  # within a paragraph
# The base of Typer's errors about the command line. It has no public name.
USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
HELP_FLAGS = {"help_option_names": ["-h", "--help"]}


class Command(TyperCommand):
    """A command whose function returns an ExitCode; None stands for OK."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        if text := attributes.get("help"):
            # Rich keeps the line breaks of a docstring, whatever the width of the terminal.
            attributes["help"] = LINE_BREAK.sub(" ", text)
        super().__init__(*arguments, **attributes)

    def get_params(self, ctx: Any) -> list[Any]:
        return without_types(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments. An error names this command, also one of the parser itself."""
        try:
            return super().parse_args(ctx, args)
        except USAGE_ERROR as error:
            error.ctx = error.ctx or ctx  # type: ignore[attr-defined]
            raise

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help with narrow gaps, so that 80 columns have room for the longest flag."""
        from typer import rich_utils  # Rich takes long to import.

        rich_utils.STYLE_OPTIONS_TABLE_PADDING = (0, 1, 0, 0)  # type: ignore[assignment]
        super().format_help(ctx, formatter)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the usage line, without Typer's braces around required arguments."""
        return [piece.strip("{").replace("}", "") for piece in super().collect_usage_pieces(ctx)]

    def invoke(self, ctx: Any) -> None:
        """Refuse misspelt settings, run the command and exit. SIGTERM raises Terminated.

        Arguments are parsed before, so ``--help`` works in any environment. Raise SettingsInvalid
        for a ``VEIL_`` variable that is not a setting, and BadParameter for a number that is not
        finite, and for an empty text.
        """
        from worker.settings import WorkerSettings

        self._refuse_infinite(ctx)
        self._refuse_empty(ctx)
        WorkerSettings.refuse_misspelt(os.environ)
        try:
            with terminable():
                code = super().invoke(ctx)
        except Terminated:  # Typer would exit as after Ctrl-C.
            code = ExitCode.TERMINATED
        ctx.exit(code or ExitCode.OK)

    def _refuse_infinite(self, ctx: Any) -> None:
        """Raise BadParameter for NaN and infinity, which no limit of an option excludes."""
        for parameter in self.get_params(ctx):
            value = ctx.params.get(parameter.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise typer.BadParameter(f"{value} is not a finite number", ctx, parameter)

    def _refuse_empty(self, ctx: Any) -> None:
        """Raise BadParameter for an empty text, which an unset variable of a shell leaves."""
        for parameter in self.get_params(ctx):
            value = ctx.params.get(parameter.name)
            if "" in (value if isinstance(value, list | tuple) else (value,)):
                message = "it is empty: give a value, or leave it out"
                raise typer.BadParameter(message, ctx, parameter)


class QuietCommand(Command):
    """A command that takes ``--quiet``: it then shows no progress, and prints no summary."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.params.append(_quiet_option())


class CommandGroup(TyperGroup):
    """A group of commands with readable help."""

    def get_params(self, ctx: Any) -> list[Any]:
        return without_types(super().get_params(ctx))


class CommandApp(typer.Typer):
    """The Typer app of a module: its only command, or a group of commands."""

    def __init__(self, group_help: str | None = None) -> None:
        super().__init__(
            cls=CommandGroup,
            help=group_help,
            context_settings=HELP_FLAGS,
            no_args_is_help=True,
            add_completion=False,
            # Typer's own tracebacks show local variables: pictures and credentials.
            pretty_exceptions_enable=False,
        )

    def command(
        self, name: str | None = None, *, has_summary: bool = False, **options: Any
    ) -> Callable[[Function], Function]:
        """Register a function as a Command. `options` are those of Typer.

        A command that `has_summary` on standard error takes ``--quiet``, which leaves it out.
        """
        options.setdefault("context_settings", HELP_FLAGS)
        return super().command(name, cls=QuietCommand if has_summary else Command, **options)


def without_types(parameters: list[Any]) -> list[Any]:
    """Return `parameters` without the types ``<bool>`` and ``<list[str]>`` in their help."""
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.is_flag:
            parameter.metavar = ""
        elif isinstance(parameter, TyperArgument):
            # The metavar of an argument is its name, and Typer has no other way to drop the type.
            vars(parameter)["display_type_rich"] = _no_type
    return parameters


def _no_type(**_: Any) -> None:
    return None


def _quiet_option() -> TyperOption:
    def apply(is_quiet: bool) -> None:
        printing.set_quiet(is_quiet)

    app = typer.Typer(add_completion=False)

    @app.command()
    def template(
        quiet: bool = typer.Option(
            False,
            "--quiet",
            "-q",
            callback=apply,
            expose_value=False,
            help="Print results and errors only: no progress, no summary.",
        ),
    ) -> None:
        """Have Typer make the option, because its constructor is not public."""

    (option,) = typer.main.get_command(app).params
    return option  # type: ignore[return-value]
