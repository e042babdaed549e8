"""A picture process whose decoder obeys the picture: its file is ``OBEY``, a word, and a picture.

The words are the methods of Orders. What an order finds out comes back as the message of an
UnsupportedImage. Every other file is decoded as usual.
"""

import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from tasks.errors import UnsupportedImage
from worker import images
from worker.process import picture_process, picture_work

ORDER = b"OBEY"
# The samples that take most of the time of a start: they have a transcoder compiled, or AVIF
# encoded slowly. Orders are in pictures of other kinds.
SLOW_SAMPLES = ("gray", "CMYK", "JPEG", "10-bit AVIF")


class Orders:
    """Orders of a decoder that runs foreign code: crash, lie, or reach for something else."""

    def segfault(self):
        ctypes.string_at(0)

    def abort(self):
        os.abort()

    def leave(self):
        os._exit(3)

    def memory(self):
        hoard = []
        while True:
            hoard.append(np.empty(1 << 26, np.uint8))

    def spin(self):
        while True:
            pass

    def bug(self):
        return {}["absent"]

    def sleep(self):
        time.sleep(1.5)

    def babble(self):
        os.write(int(sys.argv[2]), b"\xff" * 100)

    def flood(self):
        os.write(int(sys.argv[2]), bytes([12]) + (1 << 31).to_bytes(4, "little"))

    def forge(self):
        """Report a result with an output that is not there, in a format that does not exist."""
        content = json.dumps({"size": 1 << 40, "format": "EXE"}).encode()
        os.write(int(sys.argv[2]), bytes([13]) + len(content).to_bytes(4, "little") + content)

    def overreach(self):
        """Ask for more canvases than the shared memory holds."""
        content = json.dumps({"sizes": [[1920, 1920], [64, 64]]}).encode()
        os.write(int(sys.argv[2]), bytes([12]) + len(content).to_bytes(4, "little") + content)

    def escape(self):
        """Try to reach anything outside of the process; report what happened to each attempt."""
        attempts = {
            "read a file": lambda: Path("/etc/passwd").read_text(),
            "read its environment": lambda: Path("/proc/self/environ").read_bytes(),
            "read the worker's environment": lambda: Path(
                f"/proc/{os.getppid()}/environ"
            ).read_bytes(),
            "list a folder": lambda: list(Path("/").iterdir()),
            "write a file": lambda: Path("/tmp/escaped").write_text("x"),
            "open a socket": socket.socket,
            "open a local socket": lambda: socket.socket(socket.AF_UNIX),
            "resolve a name": lambda: socket.getaddrinfo("localhost", 80),
            "fork": os.fork,
            "start a program": lambda: subprocess.run(["/bin/true"], check=False),
            "become a program": lambda: os.execv("/bin/true", ["true"]),
            "signal the worker": lambda: os.kill(int(sys.argv[1]), 0),
            "have the kernel signal the worker": lambda: fcntl.fcntl(
                int(sys.argv[2]), fcntl.F_SETOWN, int(sys.argv[1])
            ),
            "signal everybody": lambda: os.kill(-1, 0),
            "raise a limit": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
            "make a file in memory": lambda: os.memfd_create("x"),
            "make shared memory larger": lambda: os.ftruncate(int(sys.argv[3]), 1 << 40),
            "make shared memory smaller": lambda: os.ftruncate(int(sys.argv[3]), 1),
            "write to a descriptor": lambda: os.pwrite(int(sys.argv[3]), b"x", 0),
            "make a pipe": os.pipe,
        }
        report = {}
        for name, attempt in attempts.items():
            try:
                report[name] = f"did it: {attempt()!r}"[:100]
            except Exception as error:
                report[name] = type(error).__name__
        thread = threading.Thread(target=lambda: report.update({"start a thread": "did it"}))
        thread.start()
        thread.join()
        raise UnsupportedImage(json.dumps(report))

    def tell(self):
        """Report the environment, the limits, and the modules that could hold credentials."""
        kinds = ("AS", "CORE", "CPU", "FSIZE", "NOFILE")
        limits = {kind: resource.getrlimit(getattr(resource, f"RLIMIT_{kind}")) for kind in kinds}
        suspects = [
            name for name in ("boto3", "botocore", "redis", "celery") if name in sys.modules
        ]
        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        report = {
            "environment": dict(os.environ),
            "limits": limits,
            "modules": suspects,
            "ignores SIGINT": ignored,
        }
        raise UnsupportedImage(json.dumps(report))


decode = images.decode


def obey(content, *arguments):
    if not content.startswith(ORDER):
        return decode(content, *arguments)
    _, word, rest = content.split(b" ", 2)
    getattr(Orders(), word.decode())()
    return decode(rest, *arguments)


samples = picture_work._samples


def quick_samples(side):
    return {kind: make for kind, make in samples(side).items() if kind not in SLOW_SAMPLES}


if __name__ == "__main__":
    images.decode = obey
    picture_work._samples = quick_samples
    picture_process.main()
