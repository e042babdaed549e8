"""``veil train import``: make one data set of labelled pictures of any known format."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from tasks.errors import DatasetInvalid, VeilError
from training import dataset, folders, likeness
from training.dataset import FACE, Box, Dataset, Picture
from training.formats import Label, Labelled
from worker.commands.progress import progress_bar

IGNORE, DROP = "ignore", "drop"
PLACES = 1  # decimals of a pixel, so that formats that store corners, sides or shares agree
SMALLEST = 1.0  # pixels; a box with a smaller side is dropped
THREADS = 4
SHOWN = 5  # pictures that are named per problem

OUTSIDE = "boxes that reached outside their picture were cut"
EMPTY = "boxes without area, or wholly outside, were dropped"
MISSING = "pictures that labels point to are not there"
UNREADABLE = "pictures can't be read"
OTHER_SIZE = "pictures have another size than their labels say"
SAME = "pictures came more than once, and were joined"
ALIKE = "pictures look like another one, and share its split"
WITHOUT = "pictures have no face"


@dataclass(frozen=True)
class Choice:
    """The options of an import.

    `mapping` maps a label of the sources to one of `classes`, IGNORE (neither an object nor none)
    or DROP. Other labels become FACE if it is empty, and are dropped otherwise. `val` and `test`
    are shares of the pictures. `classes` are the labels of the data set.
    """

    mapping: Mapping[str, str] = field(default_factory=dict)
    val: float = 0.1
    test: float = 0.1
    classes: tuple[str, ...] = (FACE,)

    @classmethod
    def of(
        cls, mapping: Mapping[str, str], val: float, test: float, classes: Sequence[str]
    ) -> "Choice":
        """Return the choice of labels `classes`; without them, all labels become FACE.

        A class keeps the boxes of its own label, unless `mapping` maps others to it. The label
        ``face`` becomes FACE.
        """
        if not classes:
            return cls(mapping, val, test)
        names = {name: FACE if name.lower() == FACE.lower() else name for name in classes}
        own = {name: label for name, label in names.items() if label not in mapping.values()}
        return cls({**own, **mapping}, val, test, tuple(dict.fromkeys(names.values())))


@dataclass(frozen=True)
class Imported:
    """The result of an import.

    `mapped` counts the boxes of the sources by their label and by what became of it.
    `labels_after` counts those of the data set, without the boxes that checks removed. `problems`
    contains the names of pictures by kind of problem.
    """

    dataset: Dataset
    mapped: Counter[tuple[str, str]]
    labels_after: Counter[str]
    problems: dict[str, list[str]]

    @property
    def labels_before(self) -> Counter[str]:
        """The boxes of the sources by label."""
        counts: Counter[str] = Counter()
        for (name, _), count in self.mapped.items():
            counts[name] += count
        return counts


@dataclass(frozen=True)
class _Checked:
    """A picture that was read and checked."""

    name: str
    content: bytes
    sha256: str
    form: str
    looks: int
    size: tuple[int, int]
    faces: tuple[tuple[Box, int], ...]
    """The boxes of objects, with the places of their labels among the classes."""
    ignore: tuple[Box, ...]
    problems: tuple[str, ...]


def run(labelled: Sequence[Labelled], folder: Path, choice: Choice) -> Imported:
    """Write the data set of `labelled` to `folder`, all of it or nothing.

    Raise DatasetInvalid if no picture remains, a split has no face or `folder` has other content,
    and OutputFailed if it can't be written. The digest depends on pictures and labels, not on their
    format.
    """
    mapped: Counter[tuple[str, str]] = Counter()
    for each in labelled:
        mapped.update((label.name, _target(label, choice.mapping)) for label in each.labels)
    _check_mapping(choice, {name for name, _ in mapped})
    problems: dict[str, list[str]] = {}
    with folders.written_beside(folder) as work:
        (work / "images").mkdir(parents=True)
        known = _written(labelled, choice, work, problems)
        pictures = _split(known, choice, problems)
        index = dataset.index(pictures, choice.classes)
        (work / dataset.INDEX).write_text(json.dumps(index, indent=1) + "\n")
        made = _placed(work, folder)
    after: Counter[str] = Counter()
    for picture in pictures:
        after[IGNORE] += len(picture.ignore)
        for number, label in enumerate(choice.classes):
            after[label] += len(picture.boxes_of(number))
    after = +after  # + removes zeros
    return Imported(made, mapped, after, problems)


def _check_mapping(choice: Choice, labels: Set[str]) -> None:
    for name, target in choice.mapping.items():
        if target not in (*choice.classes, IGNORE, DROP):
            raise DatasetInvalid(
                f"the label {name!r} can become {', '.join(choice.classes)}, {IGNORE} or {DROP}, "
                f"not {target!r}"
            )
        if name not in labels:
            found = ", ".join(sorted(labels)) or "none at all"
            raise DatasetInvalid(f"no box has the label {name!r}: there are {found}")


def _written(
    labelled: Sequence[Labelled], choice: Choice, work: Path, problems: dict[str, list[str]]
) -> dict[str, _Checked]:
    """Read, check and write all pictures; return the accepted ones by SHA-256."""
    known: dict[str, _Checked] = {}
    with progress_bar("imported", total=len(labelled)) as bar:
        for each, checked in _in_order(labelled, choice):
            bar.advance()
            if isinstance(checked, str):
                problems.setdefault(checked, []).append(each.name)
                continue
            for problem in checked.problems:
                problems.setdefault(problem, []).append(each.name)
            if twin := known.get(checked.sha256):
                problems.setdefault(SAME, []).append(each.name)
                checked = _joined(twin, checked)
            else:
                (work / _file(checked)).write_bytes(checked.content)
            known[checked.sha256] = replace(checked, content=b"")
    if not known:
        hint = ": name their folder with --pictures" if MISSING in problems else ""
        raise DatasetInvalid(f"no picture is left: {_summary(problems)}{hint}")
    if not any(checked.faces for checked in known.values()):
        raise DatasetInvalid(
            "no picture has a face: look at the labels, or choose with --map LABEL=FACE"
        )
    return known


def _in_order(
    labelled: Sequence[Labelled], choice: Choice
) -> Iterator[tuple[Labelled, "_Checked | str"]]:
    """Yield each picture with its checked form or its problem, in order.

    Pictures are read in chunks, which bounds the memory for their contents.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(labelled), 8 * THREADS):
            chunk = labelled[start : start + 8 * THREADS]
            yield from zip(chunk, pool.map(lambda each: _check(each, choice), chunk), strict=True)


def _check(each: Labelled, choice: Choice) -> "_Checked | str":
    """Return the picture with corrected boxes, or the problem that excludes it."""
    if each.path is None:
        return MISSING
    try:
        content = each.path.read_bytes()
        pixels, form = dataset.decoded(content)
    except (OSError, VeilError):
        return UNREADABLE
    height, width = pixels.shape[:2]
    if each.size is not None and each.size != (width, height):
        return OTHER_SIZE
    scale = (width, height) if each.shares else (1, 1)
    problems: set[str] = set()
    faces: list[tuple[Box, int]] = []
    ignored: list[Box] = []
    for label in each.labels:
        target = _target(label, choice.mapping)
        if target == DROP or not (box := _within(label.box, scale, width, height, problems)):
            continue
        if target == IGNORE:
            ignored.append(box)
        else:
            faces.append((box, choice.classes.index(target)))
    if not faces:
        problems.add(WITHOUT)
    return _Checked(
        each.name,
        content,
        hashlib.sha256(content).hexdigest(),
        form,
        likeness.perceptual_hash(pixels),
        (width, height),
        tuple(sorted(faces)),
        tuple(sorted(ignored)),
        tuple(sorted(problems)),
    )


def _target(label: Label, mapping: Mapping[str, str]) -> str:
    if label.ignored:
        return IGNORE
    return mapping.get(label.name, DROP if mapping else FACE)


def _within(
    box: Box, scale: tuple[int, int], width: int, height: int, problems: set[str]
) -> Box | None:
    """Return `box` in pixels, cut at the edges of the picture.

    Return None if nothing remains of it. Both cases add to `problems`.
    """
    x1, y1, x2, y2 = (round(side * scale[i % 2], PLACES) for i, side in enumerate(box))
    cut = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if cut[2] - cut[0] < SMALLEST or cut[3] - cut[1] < SMALLEST:
        problems.add(EMPTY)
        return None
    if cut != (x1, y1, x2, y2):
        problems.add(OUTSIDE)
    return cut


def _joined(first: _Checked, second: _Checked) -> _Checked:
    """Return a picture that was listed twice, with the boxes of both."""
    faces = sorted({*first.faces, *second.faces})
    ignore = sorted({*first.ignore, *second.ignore})
    return replace(first, faces=tuple(faces), ignore=tuple(ignore))


def _file(checked: _Checked) -> str:
    return f"images/{checked.sha256[:20]}.{checked.form.lower()}"


def _split(
    known: Mapping[str, _Checked], choice: Choice, problems: dict[str, list[str]]
) -> list[Picture]:
    """Return the pictures with their splits.

    The content of a picture decides its split, so that later imports with more pictures don't move
    it. Pictures that look alike get the split of the first of them.
    """
    ordered = [known[sha256] for sha256 in sorted(known)]
    pictures = []
    for members in likeness.groups([checked.looks for checked in ordered]):
        if len(members) > 1:
            problems.setdefault(ALIKE, []).extend(ordered[i].name for i in members[1:])
        split = _split_of(ordered[members[0]], choice)
        pictures += [_picture(ordered[i], split, choice.classes) for i in members]
    shares = {"train": 1 - choice.val - choice.test, "val": choice.val, "test": choice.test}
    for name, share in shares.items():
        if share > 0 and not any(picture.split == name and picture.faces for picture in pictures):
            raise DatasetInvalid(
                f"the split {name!r} would have no face: "
                "give more pictures, or another --val and --test"
            )
    for number, label in enumerate(choice.classes):
        trained = [each.boxes_of(number) for each in pictures if each.split == "train"]
        if len(choice.classes) > 1 and not any(trained):
            raise DatasetInvalid(f"the split 'train' would have no {label}: give more pictures")
    return pictures


def _picture(checked: _Checked, split: str, labels: Sequence[str]) -> Picture:
    boxes = tuple(box for box, _ in checked.faces)
    numbers = tuple(number for _, number in checked.faces) if len(labels) > 1 else ()
    name = _file(checked)
    return Picture(name, checked.sha256, *checked.size, boxes, checked.ignore, split, numbers)


def _split_of(checked: _Checked, choice: Choice) -> str:
    drawn = int(checked.sha256[:13], 16) / 16**13
    if drawn < choice.test:
        return "test"
    return "val" if drawn < choice.test + choice.val else "train"


def _placed(work: Path, folder: Path) -> Dataset:
    """Move the finished data set to `folder`, unless it already contains the same one."""
    made = Dataset.load(work)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not (folder / dataset.INDEX).is_file() or Dataset.load(folder).digest != made.digest:
            raise DatasetInvalid(
                f"{folder} holds something else: choose another --to, or remove it"
            )
        return Dataset.load(folder)
    work.replace(folder.resolve())
    return replace(made, folder=folder)


def _summary(problems: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(problem_lines(problems)) or "the sources have none"


def problem_lines(problems: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a line for each kind of problem, with the names of the first pictures."""
    lines = []
    for kind, names in problems.items():
        more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
        lines.append(f"{len(names):,} × {kind}: {', '.join(names[:SHOWN])}{more}")
    return lines
