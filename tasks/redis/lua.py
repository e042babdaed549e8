"""Lua scripts, which are package data beside the modules that run them.

A full Redis refuses a script at its first write, if that write needs memory, and never later. A
script that must also run in a full Redis therefore begins with a write that needs none.
"""

from importlib.resources import files


def load(package: str, *names: str) -> str:
    """Return the text of the files ``NAME.lua`` in `package`, joined in the order of `names`."""
    folder = files(package)
    return "\n".join((folder / f"{name}.lua").read_text("utf-8") for name in names)
