"""The errors that an error was raised from."""

from collections.abc import Iterator


def causes(error: BaseException, *, is_context_followed: bool = False) -> Iterator[BaseException]:
    """Yield `error` and the errors that it was raised from.

    If `is_context_followed`, an error that was raised from none counts as caused by the one that
    was being handled.
    """
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or (cause.__context__ if is_context_followed else None)
