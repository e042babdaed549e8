"""``detector_onnxruntime.py NETWORK PROCESSORS``: run the default network in ONNX Runtime.

The environment of this script has onnxruntime but not Veil. Its protocol is that of
tools.benchmarks.harness.child.
"""

import json
import os
import sys
import time

import numpy as np
import onnxruntime


def main(network: str, count: int) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = count
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    (wanted,) = session.get_inputs()
    print(json.dumps({"onnxruntime": onnxruntime.__version__}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        picture = np.load(question["canvas"]).astype(np.float32).transpose(2, 0, 1)[None]
        started, used = time.perf_counter(), time.process_time()
        for _ in range(question["repeat"]):
            session.run(None, {wanted.name: picture})
        answer = {
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - used,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
