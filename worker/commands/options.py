"""Options that several commands share."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, get_args

import typer

from tasks.errors import InvalidRequest
from tasks.messages import MIN_POLYGON, QUEUES, AnonymizeOptions, Method
from tasks.rules import parse_rules

METHODS = get_args(Method)
RECIPE = re.compile(r"[0-9a-f]{16}")


def _methods(incomplete: str) -> list[str]:
    """Return the methods that complete a word, for completion in a shell."""
    return [method for method in METHODS if method.startswith(incomplete)]


def _queues(incomplete: str) -> list[str]:
    """Return the queues that complete a word, for completion in a shell."""
    return [queue for queue in QUEUES if queue.startswith(incomplete)]


def _known_queue(name: str) -> str:
    if name not in QUEUES:
        raise typer.BadParameter(f"choose from {', '.join(QUEUES)}")
    return name


def _separate_suffixes(suffixes: list[str] | None) -> list[str] | None:
    for suffix in suffixes or ():
        if not suffix.strip():
            raise typer.BadParameter("an empty suffix selects nothing: name one, such as .jpg")
        if "," in suffix:
            raise typer.BadParameter(f"{suffix!r} is one suffix: repeat the flag for each")
    return suffixes


def recipe_digest(recipe: str | None) -> str | None:
    """Return the value of ``--recipe``. Raise BadParameter if it can be no recipe."""
    if recipe is not None and not RECIPE.fullmatch(recipe):
        raise typer.BadParameter("a recipe has 16 hex digits")
    return recipe


Source = Annotated[str, typer.Argument(metavar="s3://BUCKET/KEY", help="Address of a picture.")]
Sources = Annotated[
    list[str] | None,
    typer.Argument(metavar="s3://BUCKET/KEY", help="Addresses of pictures.", show_default=False),
]
MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="METHOD",
        autocompletion=_methods,
        help=f"{', '.join(METHODS)}; overrides VEIL_METHOD.",
    ),
]
Region = Annotated[
    str | None,
    typer.Option(
        metavar="REGION", help="top, full, or a number from 0.5 to 1; overrides VEIL_REGION."
    ),
]
Exempt = Annotated[
    list[str] | None,
    typer.Option(
        metavar="X1,Y1,X2,Y2",
        help="Leave faces in this area clear, in pixels of the upright picture; repeatable.",
    ),
]
Rules = Annotated[
    list[str] | None,
    typer.Option(
        "--rule",
        metavar="LABEL:VALUES",
        help="Rule for the objects of a label, such as 'plate: method=fill' or 'plate: ignore'; "
        "overrides VEIL_RULES; repeatable.",
    ),
]
Extra = Annotated[
    list[str] | None,
    typer.Option(metavar="X1,Y1,X2,Y2", help="Hide this area too, face or not; repeatable."),
]
Queue = Annotated[
    str,
    typer.Option(
        callback=_known_queue,
        autocompletion=_queues,
        metavar="QUEUE",
        help="uploads or backfill; workers serve uploads first.",
    ),
]
Suffix = Annotated[
    list[str] | None,
    typer.Option(
        callback=_separate_suffixes,
        metavar=".EXT",
        help="Only keys with this suffix, in upper or lower case; repeatable.",
    ),
]
Wait = Annotated[bool, typer.Option(help="Wait for the results; exit with 1 if a picture failed.")]
Timeout = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        min=0,
        help="With --wait: give up after this time without a result, by default 600.",
    ),
]
TIMEOUT_SECONDS = 600.0
Yes = Annotated[bool, typer.Option("--yes", help="Confirm that --all is meant.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]


def anonymize_options(
    method: str | None,
    region: str | None,
    exempt: list[str] | None,
    extra: list[str] | None,
    rules: list[str] | None = None,
) -> AnonymizeOptions:
    """Return the request options that the flags ask for. Raise InvalidRequest if one is wrong."""
    fields: dict[str, Any] = {
        "exempt": [_area(text, "--exempt") for text in exempt or ()],
        "extra": [_area(text, "--extra") for text in extra or ()],
    }
    if method is not None:
        if method not in METHODS:
            raise InvalidRequest(f"--method {method!r:.100}: choose from {', '.join(METHODS)}")
        fields["method"] = method
    if region is not None:
        fields["region"] = _number(region)
    try:
        fields["rules"] = parse_rules(";".join(rules or ()))
    except ValueError as error:
        raise InvalidRequest(f"--rule: {error}") from None
    return AnonymizeOptions.parse(**fields)


def utc_time(text: str) -> datetime:
    """Parse an ISO 8601 time; one without a zone is in UTC. Raise BadParameter."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a time like 2026-11-30 or 2026-11-30T12:00Z"
        ) from None
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def refuse_beside(option: str, is_given: object, others: Mapping[str, object]) -> None:
    """Raise BadParameter for one of `others`, by name, that has no effect beside `option`.

    A flag is given if it is True, another option if it is not None.
    """
    for name, value in others.items():
        if _is_given(is_given) and _is_given(value):
            raise typer.BadParameter(
                f"has no effect with {option}: leave out one of them", param_hint=name
            )


def refuse_without(option: str, is_given: object, others: Mapping[str, object]) -> None:
    """Raise BadParameter for one of `others`, by name, that has no effect without `option`."""
    for name, value in others.items():
        if not _is_given(is_given) and _is_given(value):
            raise typer.BadParameter(f"has no effect without {option}", param_hint=name)


def seconds_to_wait(wait: bool, timeout: float | None) -> float | None:
    """Return the time to wait for a result, None without ``--wait``.

    Raise BadParameter for a `timeout` without ``--wait``.
    """
    refuse_without("--wait", wait, {"--timeout": timeout})
    if not wait:
        return None
    return TIMEOUT_SECONDS if timeout is None else timeout


def _is_given(value: object) -> bool:
    return value is not None and value is not False


def require_confirmation(everything: bool, confirmed: bool) -> None:
    """Raise BadParameter for ``--all`` without ``--yes``."""
    if everything and not confirmed:
        raise typer.BadParameter("add --yes to confirm every picture", param_hint="--all")


def _area(text: str, flag: str) -> list[int]:
    """Return the sides of a box or the corners of a polygon in `text`, which `flag` has.

    Raise InvalidRequest for another text.
    """
    try:
        sides = [int(side) for side in text.split(",")]
        if len(sides) >= MIN_POLYGON:
            return sides
        x1, y1, x2, y2 = sides
    except ValueError:
        x1 = y1 = x2 = y2 = 0
    if not (0 <= x1 < x2 and 0 <= y1 < y2):
        raise InvalidRequest(
            f"{flag} {text!r:.100}: an area has four whole numbers, X1,Y1,X2,Y2 with X1 < X2 and "
            "Y1 < Y2, in pixels of the upright picture, none below 0; a polygon has six or more"
        )
    return [x1, y1, x2, y2]


def _number(text: str) -> Any:
    """Return `text` as a number, or unchanged for the error message if it is not one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
