"""The settings that a preview compares: those of the environment, and changes of them."""

import re
from dataclasses import dataclass

from tasks.errors import SettingsInvalid
from tasks.routes import Route
from tasks.settings import PREFIX, refuse_unknown
from worker.settings import WorkerSettings, changes_no_picture

CURRENT = "current settings"
# A comma separates two settings only if a name and an equals sign follow, because values such as
# those of VEIL_SCALES have commas too.
NEXT_SETTING = re.compile(r",(?=\s*[A-Za-z_0-9]+\s*=)")


@dataclass(frozen=True)
class Variant:
    """Settings to try, and the name that people gave them."""

    name: str
    settings: WorkerSettings


def variants(changes: list[str], route: Route | None = None) -> list[Variant]:
    """Return the settings of the environment, and a variant of them for each of `changes`.

    With a `route`, they are those that hold on it. Raises SettingsInvalid for a change that is no
    setting of workers, or has a wrong value.
    """
    own = {} if route is None else dict(route.settings)
    name = CURRENT if route is None or route.name is None else f"{CURRENT} of {route.name}"
    found = [Variant(name, WorkerSettings.load(**own))]
    tried: list[dict[str, str]] = []
    for text in changes:
        values = _values(text)
        if values in tried:
            raise SettingsInvalid(f"--compare {text!r:.100}: the same settings are given twice")
        tried.append(values)
        found.append(Variant(text.strip(), WorkerSettings.load(**own | values)))
    return found


def _values(text: str) -> dict[str, str]:
    """Return the values in ``VEIL_REGION=full`` or ``preset=thorough,margin=0.2``, by field."""
    values: dict[str, str] = {}
    for part in NEXT_SETTING.split(text):
        name, equals, value = part.partition("=")
        field = name.strip().upper().removeprefix(PREFIX).lower()
        if not equals or not field:
            raise SettingsInvalid(f"--compare {text!r:.100}: give SETTING=VALUE, as in region=full")
        refuse_unknown({PREFIX + field.upper(): value}, WorkerSettings)
        if changes_no_picture(field):
            raise SettingsInvalid(
                f"--compare {text!r:.100}: {PREFIX}{field.upper()} changes no picture"
            )
        if field in values:
            raise SettingsInvalid(
                f"--compare {text!r:.100}: {PREFIX}{field.upper()} is given twice: "
                "repeat --compare to try several values"
            )
        values[field] = value.strip()
    return values
