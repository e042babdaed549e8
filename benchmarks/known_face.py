"""Record what the default model answers in the known photograph: ``python -m benchmarks.known_face`` rewrites
``worker/models/known_face.json``. Record it anew when the weights, BUILD, the calibration or the photograph change.
"""

import json
import sys

from worker.bootstrap import plain_model
from worker.models.known_face import ANSWERS, TOLERANCES, VIEWS, answer, sure
from worker.settings import WorkerSettings


def main() -> int:
    recorded = {}
    for engine in sorted(TOLERANCES):
        model = plain_model(WorkerSettings.model_validate({"model": None, "engine": engine}))
        recorded[engine] = {view.name: answer(sure(model, view.canvas()[0])) for view in VIEWS}
    ANSWERS.write_text(json.dumps(recorded, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
