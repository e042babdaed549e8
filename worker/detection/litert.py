"""CenterFace in 8 bits, run by LiteRT on a CPU, faster than TensorFlow and without it."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from tasks.errors import DetectionFailed, ModelInvalid
from worker.detection.centerface.maps import MIN_SCORE, decode
from worker.detection.faces import Detections
from worker.detection.model import (
    NETWORK,
    digest_of,
    in_a_line,
    require_graph,
    stated_layout,
    stated_threshold,
)
from worker.pixels import Pixels
from worker.process import processors
from worker.process.silence import silenced

# The pixels, over all shapes, for which each lane keeps interpreters: enough for one of the largest
# shape and a few of smaller ones. An interpreter takes one shape. Creating it takes half the time
# of a run, and it needs 50 to 75 bytes per pixel.
KEPT_PIXELS = 4_000_000
# The side, in pixels, of the black picture that the network is tried on.
TRIAL_SIDE = 256

Shape = tuple[int, ...]


class QuantizedModel:
    """A Model that runs ``network.tflite`` in a folder.

    The network takes uint8 [1, H, W, 3] and returns the maps of worker.detection.centerface.maps,
    in the layout that veil.json states.
    """

    engine = "litert"
    on_gpu = False
    fixed_size: tuple[int, int] | None = None

    def __init__(
        self,
        folder: Path,
        digest: str | None = None,
        lanes: int = 1,
        least_score: float = MIN_SCORE,
        name: str | None = None,
    ) -> None:
        """Load and check the network in `folder`.

        `digest` names a model whose files are not the same on every machine; by default it is
        computed from the files. The processors are divided among `lanes`. Faces below `least_score`
        are not reported. `name` is the model's name in messages, by default the folder. Raises
        ModelInvalid, in one line, if the network can't be used.
        """
        self.name = name or str(folder)
        if not (folder / NETWORK).is_file():
            raise ModelInvalid(
                f"{self.name} holds no {NETWORK}, which VEIL_ENGINE=litert runs: "
                "set VEIL_ENGINE to auto or tensorflow"
            )
        # Workers with a GPU run the graph, so a folder without one is no model for all workers.
        require_graph(folder)
        count = processors.available()
        self.folder = folder
        self.device = f"CPU ({count} cores)"
        self.lanes = lanes
        self.digest = digest or digest_of(folder)
        self.score_threshold = stated_threshold(folder, self.name)
        self._layout = stated_layout(folder)
        self._least_score = least_score
        self._network = (folder / NETWORK).read_bytes()
        self._threads = max(1, count // lanes)
        self._idle: list[tuple[Shape, Interpreter]] = []
        self._lock = threading.Lock()
        self._try()

    def _try(self) -> None:
        """Run once on a black picture, which shows whether the network works."""
        try:
            with silenced():
                self.predict(np.zeros((1, TRIAL_SIDE, TRIAL_SIDE, 3), np.uint8))
        except Exception as error:
            raise ModelInvalid(
                f"{NETWORK} of {self.name} fails on a black picture: {in_a_line(error)}"
            ) from None

    def predict(self, batch: Pixels) -> Sequence[Detections]:
        """Return one Detections for each canvas of `batch`, uint8 RGB [n, height, width, 3].

        Boxes are in pixels of the canvas. Raises DetectionFailed if the network returns something
        else than its maps, or values that are not finite.
        """
        return [decode(self._maps(canvas), self._least_score, self._layout) for canvas in batch]

    def _maps(self, canvas: Pixels) -> NDArray[np.float32]:
        """Return the network's maps for `canvas`, float32 [height, width, channels]."""
        interpreter = self._borrow(canvas.shape)
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], canvas[None])
        interpreter.invoke()
        (maps,) = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        self._give_back(canvas.shape, interpreter)
        is_float = np.issubdtype(maps.dtype, np.floating)
        channels = sum(self._layout.channels)
        if not is_float or maps.ndim != 3 or maps.shape[-1] != channels:
            shape = list(maps.shape)
            raise DetectionFailed(
                f"the network returns {maps.dtype} {shape}, not float [height, width, {channels}]"
            )
        return np.asarray(maps, np.float32)

    def _borrow(self, shape: Shape) -> Any:
        """Return an interpreter for canvases of `shape` that no other thread uses."""
        with self._lock:
            for place in reversed(range(len(self._idle))):
                if self._idle[place][0] == shape:
                    return self._idle.pop(place)[1]
        interpreter = Interpreter(model_content=self._network, num_threads=self._threads)
        interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], [1, *shape])
        interpreter.allocate_tensors()
        return interpreter

    def _give_back(self, shape: Shape, interpreter: Any) -> None:
        """Keep `interpreter` for later, and drop those that were used longest ago."""
        with self._lock:
            self._idle.append((shape, interpreter))
            while self._idle_pixels() > KEPT_PIXELS * self.lanes:
                self._idle.pop(0)

    def _idle_pixels(self) -> int:
        return sum(height * width for (height, width, _), _ in self._idle)
