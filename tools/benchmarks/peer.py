"""Veil compared with deface 1.5.0, a command-line tool for the same purpose.

The benchmark installs deface, with the packages that make it fast, into an environment in the
user's cache. Its functions run in one process with their defaults, and those of `veil anonymize` in
another one with the settings of the environment. Both read and write files, and their runs
alternate. Start and warm-up do not count. The judge of the benchmark `exposure` evaluates both
outputs. SETS (crowd,masks,small,large), PICTURES (of each set at most) and ROUNDS configure the
benchmark.
"""

import json
import math
import os
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import platformdirs
from PIL import Image
from rich.console import Console
from rich.table import Table

from tools.benchmarks.exposure import judged, sources
from tools.benchmarks.harness import child, pictures
from tools.benchmarks.harness.child import Child
from worker import logs
from worker.settings import WorkerSettings

# Without ONNX Runtime, deface uses OpenCV, which is slower.
PACKAGES = ("deface==1.5.0", "onnx", "onnxruntime")
SETS = "crowd,masks,small,large"
MOST = 1000  # pictures per set
ROUNDS = 2
WARM_UP = 8  # pictures
# The pictures of the set `large`: their megapixels, and the number of pictures of crowd in each.
LARGE = ((8, 1), (12, 4), (16, 1), (24, 4), (8, 4), (12, 1), (16, 4), (24, 1))

Box = list[float]


def run() -> None:
    """Print a line for the peer's environment, and one for each set."""
    data, judge = sources()
    missing = [
        str(path)
        for path in (judge, data / "crowd", data / "masks", data / "small")
        if not path.exists()
    ]
    if missing:
        print(f"bench: peer needs {', '.join(missing)}", file=sys.stderr)
        return
    rounds = int(os.environ.get("ROUNDS") or ROUNDS)
    table = Table(
        "set", "pictures", "pictures/s", "deface", "ratio", "exposed", "deface", "failed", "deface"
    )
    with TemporaryDirectory(prefix="veil-bench-") as name:
        folder = Path(name)
        with (
            child.started("veil", [sys.executable, "-m", __name__], folder) as ours,
            child.started(
                "deface",
                [environment(), Path(__file__).parent / "harness" / "peer_deface.py"],
                folder,
            ) as theirs,
        ):
            print(json.dumps({"bench": "peer_environment", **theirs.ready}), flush=True)
            for set_name in (os.environ.get("SETS") or SETS).split(","):
                wanted = (
                    enlarged(data / "crowd", folder / "large")
                    if set_name == "large"
                    else data / set_name
                )
                figures, failed = _compare(
                    wanted, ours, theirs, rounds, folder / "outputs" / set_name
                )
                print(json.dumps({"bench": "peer", "set": set_name, **figures}), flush=True)
                table.add_row(set_name, *_cells(figures), *(str(len(names)) for names in failed))
                for line in (*failed[0], *(f"deface: {line}" for line in failed[1])):
                    print(f"bench: not done: {line}", file=sys.stderr)
    Console(stderr=True, width=120).print(table)


def _compare(
    wanted: Path, ours: Child, theirs: Child, rounds: int, outputs: Path
) -> tuple[dict[str, Any], list[list[str]]]:
    """Return the figures of a set, and the failures of both programs."""
    paths = [str(wanted / item["file"]) for item in _items(wanted)][
        : int(os.environ.get("PICTURES") or MOST)
    ]
    sides = {"veil": ours, "deface": theirs}
    folders = {name: outputs / name for name in sides}
    seconds = dict.fromkeys(sides, 0.0)
    failed: dict[str, list[str]] = {}
    for name, side in sides.items():
        folders[name].mkdir(parents=True)
        side.ask(paths=paths[:WARM_UP], output=str(folders[name]))
    for number in range(rounds):
        for name, side in list(sides.items())[:: 1 if number % 2 else -1]:
            answer = side.ask(paths=paths, output=str(folders[name]))
            seconds[name] += answer["seconds"]
            failed[name] = answer["failed"]
    rates = {name: rounds * len(paths) / seconds[name] for name in sides}
    exposed = {name: judged(wanted, folders[name])["exposed_rate"] for name in sides}
    figures = {
        "pictures": len(paths),
        "pictures_per_second": round(rates["veil"], 3),
        "deface_pictures_per_second": round(rates["deface"], 3),
        "ratio": round(rates["veil"] / rates["deface"], 3),
        "exposed_rate": exposed["veil"],
        "deface_exposed_rate": exposed["deface"],
    }
    return figures, [failed["veil"], failed["deface"]]


def _cells(figures: dict[str, Any]) -> Iterator[str]:
    yield str(figures["pictures"])
    yield f"{figures['pictures_per_second']:.2f}"
    yield f"{figures['deface_pictures_per_second']:.2f}"
    yield f"{figures['ratio']:.2f}"
    yield f"{figures['exposed_rate']:.2%}"
    yield f"{figures['deface_exposed_rate']:.2%}"


def environment() -> Path:
    """Return the interpreter of the environment of deface; install it at the first call."""
    folder = platformdirs.user_cache_path("veil") / "peer" / "-".join(PACKAGES).replace("==", "-")
    python, installed = folder / "bin" / "python", folder / "installed"
    if not installed.exists():
        print(f"bench: installing {' '.join(PACKAGES)} into {folder} (once) …", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES],
            check=True,
        )
        installed.touch()
    return python


def enlarged(crowd: Path, folder: Path) -> Path:
    """Make the set `large`: pictures of crowd, single or in tiles of four, enlarged."""
    (folder / "images").mkdir(parents=True)
    items = iter(_items(crowd))
    made = []
    for number, (megapixels, count) in enumerate(LARGE):
        path = folder / "images" / f"{number}-{megapixels}mp.jpg"
        parts = [next(items) for _ in range(count)]
        image, faces, ignored = _together(crowd, parts, megapixels)
        path.write_bytes(pictures.encoded(image, "JPEG"))
        size = {"width": image.width, "height": image.height}
        made.append({"file": f"images/{path.name}", **size, "faces": faces, "ignore": ignored})
    (folder / "annotations.json").write_text(json.dumps({"images": made}))
    return folder


def _together(
    crowd: Path, parts: Sequence[dict[str, Any]], megapixels: float
) -> tuple[Image.Image, list[Box], list[Box]]:
    """Return one picture of `parts`, one or four, with its faces and ignored areas."""
    images = [Image.open(crowd / part["file"]).convert("RGB") for part in parts]
    side = int(math.sqrt(len(parts)))
    scale = math.sqrt(megapixels * 1e6 / len(parts) / (images[0].width * images[0].height))
    width, height = round(images[0].width * scale), round(images[0].height * scale)
    whole = Image.new("RGB", (side * width, side * height))
    boxes: dict[str, list[Box]] = {"faces": [], "ignore": []}
    for i, (image, part) in enumerate(zip(images, parts, strict=True)):
        left, top = i % side * width, i // side * height
        whole.paste(image.resize((width, height), Image.Resampling.BICUBIC), (left, top))
        across, down = width / image.width, height / image.height
        for kind, found in boxes.items():
            for x1, y1, x2, y2 in part.get(kind, []):
                found.append(
                    [left + x1 * across, top + y1 * down, left + x2 * across, top + y2 * down]
                )
    return whole, boxes["faces"], boxes["ignore"]


def _items(folder: Path) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads((folder / "annotations.json").read_text())["images"]
    return items


def main() -> None:
    """Serve the work of `veil anonymize` in a process that has loaded its model."""
    from worker.bootstrap import build_file_anonymizer
    from worker.commands.anonymize import Job, anonymize_file

    settings = WorkerSettings.load()
    logs.configure("json")
    anonymizer = build_file_anonymizer(settings)
    pool = ThreadPoolExecutor(settings.pictures_in_flight())

    def anonymized(paths: list[str], output: str) -> dict[str, Any]:
        jobs = [Job(Path(path), Path(output) / Path(path).name, named=True) for path in paths]
        started = time.perf_counter()
        outcomes = list(
            pool.map(lambda job: anonymize_file(anonymizer, job, settings.max_bytes), jobs)
        )
        seconds = time.perf_counter() - started
        failed = [
            f"{Path(o.source).name}: {o.error}: {o.message}"
            for o in outcomes
            if o.status == "failed"
        ]
        return {"seconds": seconds, "failed": failed}

    child.serve(anonymized)


if __name__ == "__main__":
    main()
