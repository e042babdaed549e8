"""``python -m tools.benchmarks [NAME]``: describe the machine, and run one or all benchmarks."""

import json
import signal
import subprocess
import sys
from typing import Any

from tasks.errors import VeilError
from tools.benchmarks import (
    accelerator,
    average_precision,
    check,
    detector,
    dimensions,
    end_to_end,
    enqueue,
    exposure,
    face_sizes,
    fidelity,
    gpu,
    groups,
    latency,
    memory,
    networks,
    peer,
    plates,
    reconcile,
    reid,
    scaling,
    soak,
    stages,
    upload_latency,
    wrong_outputs,
)
from tools.benchmarks.harness import machine
from tools.local.servers import ServerFailed

BENCHMARKS = {
    "exposure": exposure.run,
    "groups": groups.run,
    "average_precision": average_precision.run,
    "plates": plates.run,
    "fidelity": fidelity.run,
    "check": check.run,
    "wrong_outputs": wrong_outputs.run,
    "face_sizes": face_sizes.run,
    "dimensions": dimensions.run,
    "reid": reid.run,
    "detector": detector.run,
    "end_to_end": end_to_end.run,
    "accelerator": accelerator.run,
    "gpu": gpu.run,
    "stages": stages.run,
    "peer": peer.run,
    "latency": latency.run,
    "scaling": scaling.run,
    "soak": soak.run,
    "enqueue": enqueue.run,
    "upload_latency": upload_latency.run,
    "reconcile": reconcile.run,
    "memory": memory.run,
    "networks": networks.run,
}


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)  # stops servers and removes folders
    names = sys.argv[1:] or list(BENCHMARKS)
    for name in names:
        if name not in BENCHMARKS:
            print(
                f"bench: no benchmark {name!r}: choose from {', '.join(BENCHMARKS)}",
                file=sys.stderr,
            )
            return 2
    try:
        print(json.dumps({"bench": "machine", **machine.described()}), flush=True)
        for name in names:
            BENCHMARKS[name]()
    except (ServerFailed, VeilError, subprocess.CalledProcessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted, everything is stopped", file=sys.stderr)
        return 130
    return 0


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
