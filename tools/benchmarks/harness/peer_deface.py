"""A script that runs the function of deface for one picture, with a loaded model.

The environment of this script has deface but not Veil. Its protocol is that of
tools.benchmarks.harness.child.
"""

import contextlib
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

from deface.centerface import CenterFace
from deface.deface import image_detect

# The defaults of the command of deface.
DEFAULTS = {
    "threshold": 0.2,
    "replacewith": "blur",
    "mask_scale": 1.3,
    "ellipse": True,
    "draw_scores": False,
    "enable_preview": False,
    "keep_metadata": False,
    "mosaicsize": 20,
}


def main() -> None:
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        model = CenterFace(in_shape=None, backend="auto")
        versions = {
            name: version(name)
            for name in ("deface", "onnx", "onnxruntime", "opencv-python", "numpy", "imageio")
        }
        print(json.dumps({"backend": model.backend, **versions}), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(anonymized(model, **json.loads(line))), file=answers, flush=True)


def anonymized(
    model: CenterFace, paths: list[str], output: str, **options: float
) -> dict[str, object]:
    """Anonymize `paths` one after the other; return the seconds and the names of failures.

    `options` replace the defaults.
    """
    chosen = {**DEFAULTS, **options}
    failed = []
    started = time.perf_counter()
    for path in paths:
        try:
            image_detect(
                ipath=path, opath=str(Path(output) / Path(path).name), centerface=model, **chosen
            )
        except Exception as error:  # the command of deface would end
            failed.append(f"{Path(path).name}: {type(error).__name__}: {error}")
    return {"seconds": time.perf_counter() - started, "failed": failed}


if __name__ == "__main__":
    main()
