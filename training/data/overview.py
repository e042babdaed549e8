"""The report of an import: a Markdown file with tables and plots of the data set."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import OutputFailed
from training import charts
from training.data import dataset, samples
from training.data.dataset import SPLITS, Box, Picture, sides
from training.data.importing import DROP, Imported, Problem, problem_lines

SIZES = (8, 16, 32, 64, 128, 256)  # limits of the rows by size of face, in pixels
SAMPLES = "samples.jpg"
MANY = (0, 1, 2, 3, 5, 10, 20, 50)  # lower limits of the rows by number of faces in a picture


def write(imported: Imported, folder: Path) -> dict[str, Any]:
    """Write ``report.md`` and its plots to `folder`, and return its figures.

    Raise OutputFailed if they can't be written.
    """
    figures = summary(imported)
    try:
        _write(imported, figures, folder)
    except OSError as error:
        raise OutputFailed(f"the report in {folder} can't be written: {error.strerror}") from None
    return figures


def _write(imported: Imported, figures: dict[str, Any], folder: Path) -> None:
    sizes, faces = "faces_by_size.png", "pictures_by_faces.png"
    shown = samples.write(imported.dataset, folder / SAMPLES)
    kind = dataset.kind_of(imported.dataset.labels)
    kinds = f"{kind}s"
    charts.bars(
        folder / sizes,
        f"{kinds.title()} by size",
        "side of a square as large, pixels",
        kinds,
        figures["face_sizes"],
    )
    charts.bars(
        folder / faces,
        f"Pictures by {kinds}",
        f"{kinds} in a picture",
        "pictures",
        figures["faces_per_picture"],
    )
    lines = [*imported.doubts, *problem_lines(imported.problems)]
    text = [
        "# Data set",
        "",
        f"Digest `{imported.dataset.digest}`.",
        "",
        *table(("split", "pictures", kinds, "ignored areas"), _rows(figures["splits"])),
        "",
        "## Labels",
        "",
        *table(("label in the sources", "becomes", "boxes"), _mapped(imported)),
        "",
        *table(("label in the data set", "boxes"), imported.labels_after.most_common()),
        "",
        "## Samples",
        "",
        f"{shown} of the pictures, with the boxes of the data set in blue and ignored areas in "
        "grey. If a box is not around its object, the labels are in another form than their "
        "format has.",
        "",
        f"![Pictures with their boxes]({SAMPLES})",
        "",
        f"## {kind.title()} sizes",
        "",
        f"Half of the {kinds} are smaller than {figures['median_face']:g} px "
        "(side of a square as large).",
        "",
        *_by_split("pixels", figures["face_sizes"]),
        "",
        f"![{kinds.title()} by size]({sizes})",
        "",
        f"## {kinds.title()} in a picture",
        "",
        *_by_split(kinds, figures["faces_per_picture"]),
        "",
        f"![Pictures by {kinds}]({faces})",
        "",
        "## Checks",
        "",
        *([f"- {line}" for line in lines] or ["Nothing was found."]),
        "",
    ]
    (folder / "report.md").write_text("\n".join(text))


def summary(imported: Imported) -> dict[str, Any]:
    """Return the figures of the report."""
    pictures = imported.dataset.pictures
    splits, face_sizes, faces_per_picture = {}, {}, {}
    for name in SPLITS:
        chosen = [picture for picture in pictures if picture.split == name]
        if not chosen:
            continue
        faces = [len(picture.faces) for picture in chosen]
        ignored = sum(len(picture.ignore) for picture in chosen)
        splits[name] = {"pictures": len(chosen), "faces": sum(faces), "ignored areas": ignored}
        face_sizes[name] = _counted(_face_sides(chosen), SIZES, below=True)
        faces_per_picture[name] = _counted(faces, MANY)
    return {
        "digest": imported.dataset.digest,
        "splits": splits,
        "labels_before": dict(imported.labels_before.most_common()),
        "labels_after": dict(imported.labels_after.most_common()),
        "dropped": sum(n for (_, became), n in imported.mapped.items() if became == DROP),
        "median_face": round(float(np.median(_face_sides(pictures))), 1),
        "face_sizes": face_sizes,
        "faces_per_picture": faces_per_picture,
        "doubts": list(imported.doubts),
        "problems": {kind: _counts(problem) for kind, problem in imported.problems.items()},
    }


def _counts(problem: Problem) -> dict[str, int]:
    boxes = {"boxes": problem.boxes} if problem.boxes else {}
    return {**boxes, "pictures": len(problem.pictures)}


def label_line(figures: dict[str, Any]) -> str:
    """Return the numbers of boxes by label, in the sources and in the data set.

    The latter are followed by the number of those that --map or --classes drops.
    """
    dropped = {DROP: figures["dropped"]} if figures["dropped"] else {}
    before, after = (
        ", ".join(f"{name} {count:,}" for name, count in counts.items())
        for counts in (figures["labels_before"], {**figures["labels_after"], **dropped})
    )
    return f"{before} → {after}"


def _mapped(imported: Imported) -> list[tuple[str, str, int]]:
    return [(*names, count) for names, count in imported.mapped.most_common()]


def _face_sides(pictures: Sequence[Picture]) -> NDArray[np.float64]:
    boxes: list[Box] = []
    for picture in pictures:
        boxes += picture.faces
    return sides(boxes)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [head, ["---"] * len(head)]
    lines += [[_cell(value) for value in row] for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _rows(counts: dict[str, dict[str, int]]) -> list[list[Any]]:
    return [[name, *row.values()] for name, row in counts.items()]


def _by_split(what: str, counts: dict[str, dict[str, int]]) -> list[str]:
    names = list(next(iter(counts.values())))
    return table(
        (what, *counts), [[name, *(its[name] for its in counts.values())] for name in names]
    )


def _counted(values: Any, limits: Sequence[int], below: bool = False) -> dict[str, int]:
    """Return the number of `values` between each limit and the next.

    With `below`, a first row counts the values under the first limit.
    """
    edges = [0, *limits] if below else list(limits)
    row = np.searchsorted(edges, np.asarray(values), side="right") - 1
    counts = Counter(row.tolist())
    ranges = zip(edges, [*edges[1:], None], strict=True)
    return {_range(first, last, below): counts[i] for i, (first, last) in enumerate(ranges)}


def _range(first: int, last: int | None, real: bool) -> str:
    if last is None:
        return f"from {first}"
    if real:
        return f"{first}–{last}"
    return f"{first}" if last == first + 1 else f"{first}–{last - 1}"
