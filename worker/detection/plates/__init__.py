"""The plate detector that comes with Veil: CenterFace's network with one class, ``plate``.

Its folder has two files of an export of `veil train export`: the network in 8 bits, and veil.json.
"""

from pathlib import Path

FOLDER = Path(__file__).with_name("model")
LABEL = "plate"


def folder() -> Path:
    """Return the folder of the model. Raises ValueError if this installation has none."""
    if not is_installed():
        raise ValueError("this installation of Veil has no plate detector")
    return FOLDER


def is_installed() -> bool:
    """Return whether this installation has the model."""
    return (FOLDER / "veil.json").is_file()
