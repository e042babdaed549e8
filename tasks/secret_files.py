"""Secrets in files, as Docker and Kubernetes mount them: ``VEIL_X_FILE`` names the file of one."""

from collections.abc import Iterable, Mapping
from pathlib import Path

SUFFIX = "_FILE"


def read(
    environment: Mapping[str, str], variables: Iterable[str]
) -> tuple[dict[str, str], list[str]]:
    """Return the values of `variables` that `environment` names files of, and what is wrong.

    Line breaks at the end of a file are no part of its secret. An empty name of a file counts as
    none. Messages have the names of variables and files, and no values.
    """
    given = {name.upper(): value for name, value in environment.items() if value}
    values: dict[str, str] = {}
    problems = []
    for variable in variables:
        named = variable + SUFFIX
        if named not in given:
            continue
        if variable in given:
            problems.append(f"{named}: {variable} is set, too: leave out one of them")
            continue
        path = Path(given[named])
        try:
            secret = path.read_text("utf-8").rstrip("\r\n")
        except OSError as error:
            problems.append(f"{named}: {path} can't be read ({error.strerror})")
        except UnicodeDecodeError:
            problems.append(f"{named}: {path} is no text in UTF-8")
        else:
            if not secret.strip():
                problems.append(f"{named}: {path} is empty")
            elif "\n" in secret or "\r" in secret:
                problems.append(f"{named}: {path} has several lines: a secret is one line")
            else:
                values[variable] = secret
    return values, problems
