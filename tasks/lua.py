"""Lua scripts, which are package data beside the modules that run them."""

from importlib.resources import files


def load(package: str, *names: str) -> str:
    """Return the script `names` of `package`: the text of its files ``NAME.lua``, in this order."""
    folder = files(package)
    return "\n".join((folder / f"{name}.lua").read_text("utf-8") for name in names)
