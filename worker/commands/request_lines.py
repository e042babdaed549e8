"""Requests in a file or on standard input: an address or a JSON object a line."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tasks.errors import InvalidRequest, VeilError
from tasks.messages import AnonymizeOptions, AnonymizeRequest
from tasks.publishing import Wanted
from tasks.routes import Routes

STANDARD_INPUT = "-"
MAX_LINE_BYTES = 256 << 10  # the options with the most areas have half as many


@contextmanager
def opened(name: str) -> Iterator[IO[bytes]]:
    """Open the file `name`, or standard input for ``-``. Raise InvalidRequest if it can't be."""
    if name == STANDARD_INPUT:
        yield sys.stdin.buffer
        return
    try:
        with Path(name).open("rb") as file:
            yield file
    except OSError as error:
        if error.filename is None:
            raise
        raise InvalidRequest(f"--from {name:.200}: {error.strerror}") from None


def wanted(
    file: IO[bytes], options: AnonymizeOptions | None, routes: Routes | None
) -> Iterator[Wanted]:
    """Yield the pictures that the lines of `file` ask for, and read them on demand.

    A line without options has `options`; those of a line take precedence. Raise InvalidRequest,
    or BucketNotAllowed for an address outside of `routes`, with the number of the line.
    """
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        try:
            if len(line) > MAX_LINE_BYTES:
                raise InvalidRequest(f"longer than {MAX_LINE_BYTES:,} bytes")
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if text:
                request = _request(text, options)
                if routes is not None:
                    routes.resolve(request)
                yield Wanted(request.source, request.destination, options=request.options)
        except UnicodeDecodeError:
            raise InvalidRequest(f"line {number}: no text in UTF-8") from None
        except VeilError as error:
            raise type(error)(f"line {number}: {error}") from None


def _request(text: str, options: AnonymizeOptions | None) -> AnonymizeRequest:
    if not text.startswith("{"):
        if "://" not in text:
            raise InvalidRequest(
                f"{text!r:.100} is not an address: a line has an address like s3://BUCKET/KEY or a "
                "JSON object; empty lines are skipped, and comments are not known"
            )
        return AnonymizeRequest.parse(source=text, options=options)
    try:
        fields: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidRequest("no valid JSON: give an address, or one JSON object") from None
    own = fields.get("options")
    if own is None:
        fields["options"] = options
    elif isinstance(own, dict) and options is not None:
        fields["options"] = {**options.to_json(), **own}
    return AnonymizeRequest.parse(**fields)
