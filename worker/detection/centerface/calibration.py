"""The calibration of a network in 8 bits: a scale for each channel and a range for each tensor."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

CALIBRATION = Path(__file__).with_name("calibration.json")  # of the default model
# A scale is written as a letter, a to z: see Calibration.written.
MAX_SCALE_STEPS = 25


@dataclass(frozen=True)
class Calibration:
    """The figures, by tensor, by which the network becomes one of 8 bits.

    `scales` has a factor for each channel. The tensor's channels are divided by them and the
    weights that read it are multiplied, which only changes how much of the 8 bits each channel
    gets. `ranges` has the least and the largest value of the scaled tensor. Tensors have the names
    of the ONNX file. worker.detection.centerface.measuring computes all this.
    """

    scales: Mapping[str, Floats]
    ranges: Mapping[str, tuple[float, float]]

    @classmethod
    def read(cls, path: Path) -> "Calibration":
        """Return the calibration in the file `path`, which `written` describes."""
        return cls.parse(path.read_text())

    @classmethod
    def parse(cls, text: str) -> "Calibration":
        """Return the calibration that `written` returned as `text`."""
        stored = json.loads(text)
        scales = {name: np.exp2(-_steps(letters) / 2) for name, letters in stored["scales"].items()}
        return cls(scales, {name: (low, high) for name, (low, high) in stored["ranges"].items()})

    def written(self) -> str:
        """Return the JSON that `read` reads, with a line for each tensor.

        A scale is at most 1, and is rounded to a power of the square root of 2. It is written as a
        letter for each channel: the number of divisions by that root, from a for none.
        """
        letters = {}
        for name, scale in self.scales.items():
            steps = np.round(-2 * np.log2(scale)).clip(0, MAX_SCALE_STEPS).astype(int)
            letters[name] = "".join(chr(ord("a") + step) for step in steps)
        ranges = {}
        for name, span in self.ranges.items():
            ranges[name] = [float(f"{value:.4g}") for value in span]
        parts = []
        for title, content in (("ranges", ranges), ("scales", letters)):
            lines = [f"  {json.dumps(name)}: {json.dumps(content[name])}" for name in content]
            parts.append(f' "{title}": {{\n' + ",\n".join(lines) + "\n }")
        return "{\n" + ",\n".join(parts) + "\n}\n"


def _steps(letters: str) -> Floats:
    return np.frombuffer(letters.encode(), np.uint8).astype(np.float32) - ord("a")
