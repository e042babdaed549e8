"""``veil train import``: make one data set of labelled pictures of any known format."""

import hashlib
import json
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tasks.bulk.misread import SMALLEST
from tasks.errors import DatasetInvalid, InvalidRequest, VeilError
from tasks.messages import label_of
from training import folders
from training.data import dataset, likeness, misread
from training.data.dataset import FACE, Box, Dataset, Picture
from training.data.formats import Label, Labelled
from worker.commands.progress import progress_bar
from worker.detection.faces import Boxes, overlap

IGNORE, DROP = "ignore", "drop"
PLACES = 1  # decimals of a pixel, so that formats that store corners, sides or shares agree
THREADS = 4
# Boxes of a label in a picture mark one object if their intersection over union is at
# least NEAR_IOU, or if no side differs by more than NEAR_PIXELS: one pixel, and what is rounded.
NEAR_IOU, NEAR_PIXELS = 0.9, 1.5
SHOWN = 5  # pictures that are named per problem

# Kinds of problems, as they follow the number of boxes or pictures.
OUTSIDE = "cut at the edge of the picture"
EMPTY = "dropped, without area or wholly outside"
LOST = "left out, because no box is left of those that were labelled"
MISSING = "left out, because the file is in none of the folders that are searched"
UNREADABLE = "left out, because the file can't be read"
OTHER_SIZE = "left out, of another size than the labels say"
SWAPPED = (
    "left out, because their labels swap width and height, or state them before EXIF turns the "
    "picture"
)
NEAR = "equal or nearly equal to one of the same picture, and joined with it"
TWO_LABELS = "nearly equal to one of another label in the same picture; both are kept"
SAME = "given more than once, and joined"
ALIKE = "similar to another one, and in its split"
DROPPED = (
    "dropped by --map or --classes, and no other is left, so that these pictures are learned as "
    "background; with --map LABEL=ignore they are not"
)
WITHOUT = "without a face"
WITHOUT_OBJECT = "without an object"
LEFT_OUT = (SWAPPED, OTHER_SIZE, MISSING, UNREADABLE, LOST)  # likely causes first


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

        A class keeps the boxes of its own label, unless `mapping` says otherwise. The label FACE
        may be in any case of its letters. Raise InvalidRequest for two targets of one label, for a
        class that nothing can become, and for one that no worker accepts.
        """
        targets: dict[str, str] = {}
        for name, target in mapping.items():
            label, became = _label(name), _label(target)
            if targets.setdefault(label, became) != became:
                raise InvalidRequest(f"--map: {label} becomes both {targets[label]} and {became}")
        if not classes:
            return cls(targets, val, test)
        labels = tuple(dict.fromkeys(map(_class, classes)))
        merged = {**{label: label for label in labels}, **targets}
        for label in labels:
            if label not in merged.values():
                raise InvalidRequest(
                    f"--classes keeps {_spoken(label)}, and --map makes {_spoken(label)} "
                    f"{_spoken(merged[label])}: leave out one of them"
                )
        return cls(merged, val, test, labels)


@dataclass
class Problem:
    """The names of the pictures that have a kind of problem, and the number of their boxes that do.

    `boxes` is 0 if it is a problem of whole pictures.
    """

    pictures: list[str] = field(default_factory=list)
    boxes: int = 0


@dataclass(frozen=True)
class Imported:
    """The result of an import.

    `mapped` counts the boxes of the sources by their label and by what became of it.
    `labels_after` counts those of the data set, without the boxes that checks removed. `problems`
    are by kind. `doubts` are sentences on boxes that look wrong as a whole.
    """

    dataset: Dataset
    mapped: Counter[tuple[str, str]]
    labels_after: Counter[str]
    problems: Mapping[str, Problem]
    doubts: Sequence[str] = ()

    @property
    def labels_before(self) -> Counter[str]:
        """The boxes of the sources by label."""
        counts: Counter[str] = Counter()
        for (name, _), count in self.mapped.items():
            counts[name] += count
        return counts


@dataclass(frozen=True)
class _Checked:
    """A picture that was read and checked.

    `given` are its boxes before they were cut or dropped, and `faults` counts those that were, by
    kind of problem.
    """

    name: str
    content: bytes
    sha256: str
    form: str
    looks: int
    size: tuple[int, int]
    faces: tuple[tuple[Box, int], ...]
    """The boxes of objects, with the places of their labels among the classes."""
    ignore: tuple[Box, ...]
    given: tuple[Box, ...]
    faults: Mapping[str, int]

    @property
    def is_lost(self) -> bool:
        """True if the picture would count as background only because boxes were dropped."""
        return not self.faces and EMPTY in self.faults


def run(labelled: Sequence[Labelled], folder: Path, choice: Choice) -> Imported:
    """Write the data set of `labelled` to `folder`, all of it or nothing.

    Raise DatasetInvalid if the boxes of a source are in another form than its format has, if most
    pictures have another size than it states, no picture remains, a split has no object or `folder`
    has another data set. Raise OutputFailed if it has other content, or can't be written. The
    digest depends on pictures and labels, not on their format.
    """
    if not _has_data_set(folder):
        folders.refuse_content(folder)
    mapped: Counter[tuple[str, str]] = Counter()
    for each in labelled:
        mapped.update((label.name, _target(label, choice.mapping)) for label in each.labels)
    _check_mapping(choice, {_label(name) for name, _ in mapped})
    problems: defaultdict[str, Problem] = defaultdict(Problem)
    with folders.written_beside(folder) as work:
        (work / "images").mkdir(parents=True)
        known, doubts = _written(labelled, choice, work, problems)
        for checked in known.values():
            if count := _of_two_labels(checked.faces):
                problems[TWO_LABELS].pictures.append(checked.name)
                problems[TWO_LABELS].boxes += count
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
    return Imported(made, mapped, after, problems, doubts)


def _check_mapping(choice: Choice, labels: Set[str]) -> None:
    for name, target in choice.mapping.items():
        if target not in (*choice.classes, IGNORE, DROP):
            wanted = dict.fromkeys(choice.mapping.values())
            classes = ",".join(label for label in wanted if label not in (IGNORE, DROP))
            raise DatasetInvalid(
                f"the label {name!r} can become {', '.join(choice.classes)}, {IGNORE} or {DROP}, "
                f"not {target!r}: make it a class with --classes {shlex.quote(classes)}"
            )
        # Other labels may be mapped to a class that no box has as its own label.
        is_own = name == target and any(
            became == target and other in labels for other, became in choice.mapping.items()
        )
        if name not in labels and not is_own:
            found = ", ".join(sorted(labels)) or "none at all"
            hint = ""
            if name == target and labels:
                hint = f"; map one of them to it with --map LABEL={shlex.quote(_spoken(name))}"
            raise DatasetInvalid(f"no box has the label {_spoken(name)!r}: there are {found}{hint}")


def _written(
    labelled: Sequence[Labelled],
    choice: Choice,
    work: Path,
    problems: defaultdict[str, Problem],
) -> tuple[dict[str, _Checked], list[str]]:
    """Read, check and write all pictures; return the accepted ones by SHA-256, and doubts."""
    known: dict[str, _Checked] = {}
    boxes = _SourceBoxes()
    with progress_bar("imported", total=len(labelled)) as bar:
        for each, checked in _in_order(labelled, choice):
            bar.advance()
            if isinstance(checked, str):
                problems[checked].pictures.append(each.name)
                continue
            boxes.add(each, checked)
            for kind, count in checked.faults.items():
                problems[kind].pictures.append(each.name)
                problems[kind].boxes += count
            if checked.is_lost:
                problems[LOST].pictures.append(each.name)
                continue
            if not checked.faces and DROPPED not in checked.faults:
                without = WITHOUT if choice.classes == (FACE,) else WITHOUT_OBJECT
                problems[without].pictures.append(each.name)
            if twin := known.get(checked.sha256):
                checked = _joined(twin, checked, problems)
            else:
                (work / _file(checked)).write_bytes(checked.content)
            known[checked.sha256] = replace(checked, content=b"", given=())
    _refuse_other_sizes(problems, len(labelled))
    boxes.refuse_faulty()
    if not known:
        hint = ": name their folder with --pictures" if MISSING in problems else ""
        raise DatasetInvalid(f"no picture is left: {_summary(problems)}{hint}")
    if not any(checked.faces for checked in known.values()):
        raise DatasetInvalid(
            f"{_causes(problems)}no picture has a {' or a '.join(map(_spoken, choice.classes))}: "
            f"look at the labels, or choose with --map LABEL={choice.classes[0]}"
        )
    return known, [*boxes.doubts(choice), *boxes.lacking(choice)]


def _spoken(label: str) -> str:
    """Return a label in a sentence."""
    return label.lower() if label == FACE else label


def _refuse_other_sizes(problems: Mapping[str, Problem], count: int) -> None:
    """Raise DatasetInvalid if most of `count` pictures have another size than the labels say."""
    wrong = {kind: problems[kind] for kind in (SWAPPED, OTHER_SIZE) if kind in problems}
    if sum(len(problem.pictures) for problem in wrong.values()) > misread.MOST * count:
        raise DatasetInvalid(
            f"most labels state another size than their picture has, so that boxes would be wrong: "
            f"{_summary(wrong)}"
        )


def _causes(problems: Mapping[str, Problem]) -> str:
    """Return the beginning of an error for which pictures that were left out may be the cause."""
    causes = {kind: problems[kind] for kind in LEFT_OUT if kind in problems}
    return f"{_summary(causes)}; " if causes else ""


class _SourceBoxes:
    """The boxes of each source with the sizes of their pictures."""

    def __init__(self) -> None:
        self._boxes: defaultdict[tuple[str, str], list[Box]] = defaultdict(list)
        self._sizes: defaultdict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
        self._pictures: Counter[str] = Counter()
        self._labels: defaultdict[str, set[int]] = defaultdict(set)

    def add(self, labelled: Labelled, checked: _Checked) -> None:
        source = labelled.source, labelled.form
        self._boxes[source] += checked.given
        self._sizes[source] += [checked.size] * len(checked.given)
        self._pictures[labelled.source] += 1
        self._labels[labelled.source].update(label for _, label in checked.faces)

    def doubts(self, choice: Choice) -> list[str]:
        """Return a sentence for each source whose boxes look wrong as a whole."""
        doubts = []
        for (source, form), boxes in self._boxes.items():
            are_faces = choice.classes == (FACE,)
            if doubt := misread.doubt(form, boxes, self._sizes[source, form], are_faces=are_faces):
                doubts.append(f"{source}: {doubt}")
        return doubts

    def lacking(self, choice: Choice) -> list[str]:
        """Return a sentence for each source and class of which only other sources have boxes.

        A source without any box is background on purpose.
        """
        return [
            f"{source}: no box of {_spoken(label)} in its {_counted(count, 'picture')}: "
            "what shows one there is learned as background"
            for source, count in self._pictures.items()
            for number, label in enumerate(choice.classes)
            if self._labels[source] and number not in self._labels[source]
        ]

    def refuse_faulty(self) -> None:
        """Raise DatasetInvalid if the boxes of a source can't be what their format wants."""
        for (source, form), boxes in self._boxes.items():
            if fault := misread.fault(form, boxes, self._sizes[source, form]):
                raise DatasetInvalid(f"{source}: {fault}")


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
        frame, form = dataset.decoded(content)
    except (OSError, VeilError):
        return UNREADABLE
    width, height = frame.width, frame.height
    if each.size is not None and each.size != (width, height):
        return SWAPPED if each.size == (height, width) else OTHER_SIZE
    scale = (width, height) if each.shares else (1, 1)
    faults: Counter[str] = Counter()
    given: list[Box] = []
    faces: list[tuple[Box, int]] = []
    ignored: list[Box] = []
    targets = [(label, _target(label, choice.mapping)) for label in each.labels]
    kept = [(label, target) for label, target in targets if target != DROP]
    for label, target in kept:
        given.append(_in_pixels(label.box, scale))
        box = _within(given[-1], width, height, faults)
        if box is None:
            continue
        if target == IGNORE:
            ignored.append(box)
        else:
            faces.append((box, choice.classes.index(target)))
    distinct, areas = _distinct_faces(sorted(faces)), _distinct(sorted(ignored))
    faults[NEAR] = len(faces) + len(ignored) - len(distinct) - len(areas)
    faults[DROPPED] = 0 if kept else len(targets)
    return _Checked(
        each.name,
        content,
        hashlib.sha256(content).hexdigest(),
        form,
        likeness.perceptual_hash(dataset.first_view(frame)),
        (width, height),
        distinct,
        areas,
        tuple(given),
        +faults,  # + removes zeros
    )


def _target(label: Label, mapping: Mapping[str, str]) -> str:
    if label.ignored:
        return IGNORE
    return mapping.get(_label(label.name), DROP if mapping else FACE)


def _label(name: str) -> str:
    """Return the label `name`, whose letters may be of any case if it is FACE."""
    return FACE if name.strip().upper() == FACE else name


def _class(name: str) -> str:
    """Return the class `name` as workers call it, which is also the folder of its evaluation.

    Raise InvalidRequest for a label that no worker accepts, and for one that is no name of a file.
    """
    try:
        label = label_of(name)
    except ValueError as error:
        raise InvalidRequest(f"--classes: {error}") from None
    if "/" in label or label in (".", ".."):
        raise InvalidRequest(f"--classes: {label!r:.80} is no name of a folder: choose another")
    return label


def _in_pixels(box: Box, scale: tuple[int, int]) -> Box:
    x1, y1, x2, y2 = (round(side * scale[i % 2], PLACES) for i, side in enumerate(box))
    return x1, y1, x2, y2


def _within(box: Box, width: int, height: int, faults: Counter[str]) -> Box | None:
    """Return `box`, in pixels, cut at the edges of the picture.

    Return None if nothing remains of it. `faults` counts both cases.
    """
    x1, y1, x2, y2 = box
    cut = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if cut[2] - cut[0] < SMALLEST or cut[3] - cut[1] < SMALLEST:
        faults[EMPTY] += 1
        return None
    if cut != box:
        faults[OUTSIDE] += 1
    return cut


def _joined(first: _Checked, second: _Checked, problems: defaultdict[str, Problem]) -> _Checked:
    """Return a picture that was listed twice, with the boxes of both.

    Two labellings of an object seldom agree to the pixel. `problems` counts the boxes of `second`
    that are nearly one of `first` and not equal to it.
    """
    problems[SAME].pictures.append(second.name)
    new_faces = [face for face in second.faces if face not in first.faces]
    new_ignore = [box for box in second.ignore if box not in first.ignore]
    faces = _distinct_faces([*first.faces, *new_faces])
    ignore = _distinct([*first.ignore, *new_ignore])
    given = len(first.faces) + len(new_faces) + len(first.ignore) + len(new_ignore)
    if near := given - len(faces) - len(ignore):
        problems[NEAR].pictures.append(second.name)
        problems[NEAR].boxes += near
    return replace(first, faces=faces, ignore=ignore)


def _distinct_faces(faces: Sequence[tuple[Box, int]]) -> tuple[tuple[Box, int], ...]:
    """Return `faces`, sorted, without those that are nearly an earlier one of the same label."""
    boxes: defaultdict[int, list[Box]] = defaultdict(list)
    for box, label in faces:
        boxes[label].append(box)
    distinct = [(box, label) for label, its in boxes.items() for box in _distinct(its)]
    return tuple(sorted(distinct))


def _of_two_labels(faces: Sequence[tuple[Box, int]]) -> int:
    """Return the number of `faces` that are nearly an earlier one of another label."""
    corners = np.array([box for box, _ in faces], np.float32).reshape(-1, 4)
    labels = np.array([label for _, label in faces])
    return sum(
        _is_near(corners[number], corners[:number][labels[:number] != labels[number]])
        for number in range(1, len(faces))
    )


def _distinct(boxes: Sequence[Box]) -> tuple[Box, ...]:
    """Return `boxes`, sorted, without those that are nearly an earlier one."""
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    kept: list[int] = []
    for number, box in enumerate(corners):
        if not _is_near(box, corners[kept]):
            kept.append(number)
    return tuple(sorted(boxes[number] for number in kept))


def _is_near(box: Boxes, known: Boxes) -> bool:
    """Return True if one of the `known` boxes [n, 4] is nearly the same as `box` [4]."""
    is_close = (np.abs(known - box) <= NEAR_PIXELS).all(axis=1)
    return bool((is_close | (overlap(box, known) >= NEAR_IOU)).any())


def _file(checked: _Checked) -> str:
    return f"images/{checked.sha256[:20]}.{checked.form.lower()}"


def _split(
    known: Mapping[str, _Checked], choice: Choice, problems: defaultdict[str, Problem]
) -> list[Picture]:
    """Return the pictures with their splits.

    The content of a picture decides its split, so that later imports with more pictures don't move
    it. Pictures that look alike get the split of the first of them.
    """
    ordered = [known[sha256] for sha256 in sorted(known)]
    pictures = []
    for members in likeness.groups([checked.looks for checked in ordered]):
        if len(members) > 1:
            problems[ALIKE].pictures += [ordered[i].name for i in members[1:]]
        split = _split_of(ordered[members[0]], choice)
        pictures += [_picture(ordered[i], split, choice.classes) for i in members]
    shares = {"train": 1 - choice.val - choice.test, "val": choice.val, "test": choice.test}
    for name, share in shares.items():
        if share > 0 and not any(picture.split == name and picture.faces for picture in pictures):
            raise DatasetInvalid(
                f"{_causes(problems)}the split {name!r} would have no "
                f"{dataset.kind_of(choice.classes)}: "
                "give more pictures, or another --val and --test"
            )
    for number, label in enumerate(choice.classes):
        trained = [each.boxes_of(number) for each in pictures if each.split == "train"]
        if len(choice.classes) > 1 and not any(trained):
            raise DatasetInvalid(
                f"{_causes(problems)}the split 'train' would have no {label}: give more pictures"
            )
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
    if not _has_data_set(folder):
        work.replace(folder.resolve())
        return replace(made, folder=folder)
    earlier = Dataset.load(folder)
    if earlier.digest != made.digest:
        held = f"another data set, of {len(earlier.pictures):,} pictures"
        if _without_splits(earlier) == _without_splits(made):
            held = "the same pictures with other splits, of another --val or --test"
        raise DatasetInvalid(f"{folder} holds {held}: choose another --to, or remove it")
    return earlier


def _without_splits(made: Dataset) -> str:
    """Return the digest that the data set would have if no picture had a split."""
    return dataset.digest((replace(each, split="") for each in made.pictures), made.labels)


def _has_data_set(folder: Path) -> bool:
    return (folder / dataset.INDEX).is_file()


def _summary(problems: Mapping[str, Problem]) -> str:
    return "; ".join(problem_lines(problems)) or "the sources have none"


def problem_lines(problems: Mapping[str, Problem]) -> list[str]:
    """Return a line for each kind of problem, with the names of the first pictures."""
    lines = []
    for kind, problem in problems.items():
        names = problem.pictures
        counted = _counted(len(names), "picture")
        if problem.boxes:
            counted = f"{_counted(problem.boxes, 'box', 'boxes')} in {counted}"
        more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
        lines.append(f"{counted} {kind}: {', '.join(names[:SHOWN])}{more}")
    return lines


def _counted(count: int, noun: str, plural: str | None = None) -> str:
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
