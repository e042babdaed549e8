"""Numbers of objects by label, as texts for people."""

from collections.abc import Sequence

from tasks.messages import FACE
from worker.printing import counted


def counted_objects(labels: Sequence[str]) -> str:
    """Return the number of objects of each of `labels`, such as ``2 faces, 1 plate``."""
    others = sorted(set(labels) - {FACE})
    parts = [counted(labels.count(FACE), "face")]
    return ", ".join([*parts, *(counted(labels.count(label), label) for label in others)])
