"""Options that several commands share."""

from typing import Annotated, Any

import typer

from tasks.messages import QUEUES, AnonymizeOptions


def _known_queue(name: str) -> str:
    if name not in QUEUES:
        raise typer.BadParameter(f"choose from {', '.join(QUEUES)}")
    return name


Sources = Annotated[
    list[str] | None, typer.Argument(metavar="SOURCE", help="Addresses, s3://BUCKET/KEY.")
]
Method = Annotated[
    str | None, typer.Option(help="surround, blur, pixelate or fill; overrides VEIL_METHOD.")
]
Region = Annotated[
    str | None, typer.Option(help="top, full, or a number from 0.5 to 1; overrides VEIL_REGION.")
]
Exempt = Annotated[
    list[str] | None,
    typer.Option(
        metavar="X1,Y1,X2,Y2",
        help="Leave faces in this area clear, in pixels of the upright picture; repeatable.",
    ),
]
Extra = Annotated[
    list[str] | None,
    typer.Option(metavar="X1,Y1,X2,Y2", help="Hide this area too, face or not; repeatable."),
]
Queue = Annotated[
    str,
    typer.Option(callback=_known_queue, help="uploads or backfill; workers serve uploads first."),
]
Yes = Annotated[bool, typer.Option("--yes", help="Confirm that --all is meant.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]


def anonymize_options(
    method: str | None, region: str | None, exempt: list[str] | None, extra: list[str] | None
) -> AnonymizeOptions:
    """Return the request options that the flags ask for. Raise InvalidRequest if one is wrong."""
    fields: dict[str, Any] = {
        "exempt": [_area(text) for text in exempt or ()],
        "extra": [_area(text) for text in extra or ()],
    }
    if method is not None:
        fields["method"] = method
    if region is not None:
        fields["region"] = _number(region)
    return AnonymizeOptions.parse(**fields)


def require_confirmation(everything: bool, confirmed: bool) -> None:
    """Raise BadParameter for ``--all`` without ``--yes``."""
    if everything and not confirmed:
        raise typer.BadParameter("add --yes to confirm every picture", param_hint="--all")


def _area(text: str) -> list[Any]:
    return [_number(side) for side in text.split(",")]


def _number(text: str) -> Any:
    """Return `text` as a number, or unchanged for the error message if it is not one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
