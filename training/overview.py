"""What a data set holds, for the one who imported it: a Markdown report with tables and plots."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import OutputFailed
from training import charts
from training.dataset import SPLITS, sides
from training.importing import Imported, problem_lines

SIZES = (8, 16, 32, 64, 128, 256)  # pixels: limits of the rows by face size
MANY = (0, 1, 2, 3, 5, 10, 20, 50)  # faces: first of each row by faces in a picture


def write(imported: Imported, folder: Path) -> dict[str, Any]:
    """Write ``report.md`` and its plots to `folder`; the figures in it. OutputFailed when that can't be."""
    figures = summary(imported)
    try:
        _write(imported, figures, folder)
    except OSError as error:
        raise OutputFailed(f"the report in {folder} can't be written: {error.strerror}") from None
    return figures


def _write(imported: Imported, figures: dict[str, Any], folder: Path) -> None:
    sizes, faces = "faces_by_size.png", "pictures_by_faces.png"
    charts.bars(folder / sizes, "Faces by size", "side of a square as large, pixels", "faces", figures["face_sizes"])
    charts.bars(folder / faces, "Pictures by faces", "faces in a picture", "pictures", figures["faces_per_picture"])
    text = [
        "# Data set",
        "",
        f"Digest `{imported.dataset.digest}`.",
        "",
        *table(("split", "pictures", "faces", "ignored areas"), _rows(figures["splits"])),
        "",
        "## Labels",
        "",
        *table(("label in the sources", "boxes"), imported.labels_before.most_common()),
        "",
        *table(("label in the data set", "boxes"), imported.labels_after.most_common()),
        "",
        "## Face sizes",
        "",
        f"Half of the faces are smaller than {figures['median_face']:g} px (side of a square as large).",
        "",
        *_by_split("pixels", figures["face_sizes"]),
        "",
        f"![Faces by size]({sizes})",
        "",
        "## Faces in a picture",
        "",
        *_by_split("faces", figures["faces_per_picture"]),
        "",
        f"![Pictures by faces]({faces})",
        "",
        "## Checks",
        "",
        *([f"- {line}" for line in problem_lines(imported.problems)] or ["Nothing was found."]),
        "",
    ]
    (folder / "report.md").write_text("\n".join(text))


def summary(imported: Imported) -> dict[str, Any]:
    """The figures of the report."""
    pictures = imported.dataset.pictures
    by_split = {name: [p for p in pictures if p.split == name] for name in SPLITS}
    by_split = {name: chosen for name, chosen in by_split.items() if chosen}
    every = sides(box for p in pictures for box in p.faces)
    return {
        "digest": imported.dataset.digest,
        "splits": {
            name: {
                "pictures": len(chosen),
                "faces": sum(len(p.faces) for p in chosen),
                "ignored areas": sum(len(p.ignore) for p in chosen),
            }
            for name, chosen in by_split.items()
        },
        "labels_before": dict(imported.labels_before.most_common()),
        "labels_after": dict(imported.labels_after.most_common()),
        "median_face": round(float(np.median(every)), 1),
        "face_sizes": {
            name: _counted(sides(box for p in chosen for box in p.faces), SIZES, below=True)
            for name, chosen in by_split.items()
        },
        "faces_per_picture": {
            name: _counted([len(p.faces) for p in chosen], MANY) for name, chosen in by_split.items()
        },
        "problems": {kind: len(names) for kind, names in imported.problems.items()},
    }


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *([f"{c:,}" if isinstance(c, int) else str(c) for c in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _rows(counts: dict[str, dict[str, int]]) -> list[list[Any]]:
    return [[name, *row.values()] for name, row in counts.items()]


def _by_split(what: str, counts: dict[str, dict[str, int]]) -> list[str]:
    names = list(next(iter(counts.values())))
    return table((what, *counts), [[name, *(its[name] for its in counts.values())] for name in names])


def _counted(values: Any, limits: Sequence[int], below: bool = False) -> dict[str, int]:
    """How many of `values` are in each row: from one limit up to the next. With `below`, also below the first."""
    edges = [0, *limits] if below else list(limits)
    row = np.searchsorted(edges, np.asarray(values), side="right") - 1
    counts = Counter(row.tolist())
    return {
        _range(first, last, below): counts[i]
        for i, (first, last) in enumerate(zip(edges, [*edges[1:], None], strict=True))
    }


def _range(first: int, last: int | None, real: bool) -> str:
    if last is None:
        return f"from {first}"
    if real:
        return f"{first}–{last}"
    return f"{first}" if last == first + 1 else f"{first}–{last - 1}"
