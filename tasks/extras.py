"""The extras of Veil: packages that only some of its processes need."""


def not_installed(package: str, extra: str) -> str:
    """Return the line that says how to install `package`, which `extra` has."""
    return (
        f"{package} is not installed here: run pip install '.[{extra}]' in a copy of the repository"
    )
