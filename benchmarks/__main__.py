"""``python -m benchmarks [NAME]``: run one benchmark, or all of them."""

import sys

from benchmarks import enqueue, exposure, reconcile, reid, upload_latency

BENCHMARKS = {
    "exposure": exposure.run,
    "reid": reid.run,
    "enqueue": enqueue.run,
    "upload_latency": upload_latency.run,
    "reconcile": reconcile.run,
}


def main() -> int:
    names = sys.argv[1:] or list(BENCHMARKS)
    for name in names:
        if name not in BENCHMARKS:
            print(f"bench: no benchmark {name!r}: choose from {', '.join(BENCHMARKS)}", file=sys.stderr)
            return 2
        BENCHMARKS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
