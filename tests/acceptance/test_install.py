"""An installation without extras is a producer: it enqueues, and has neither TensorFlow nor
OpenCV.
"""

import json
import os
import shutil
import subprocess
import sys

from tools.local.servers import start_redis

PRODUCER = """
import json
from pathlib import Path
from importlib.util import find_spec
from tasks import anonymize_image

result = anonymize_image.delay("s3://raw/a.jpg")
models = Path(find_spec("worker").origin).parent / "detection" / "centerface"
data = sorted(path.name for path in models.iterdir() if path.suffix in (".json", ".jpg", ".txt"))
names = ("tensorflow", "ai_edge_litert", "cv2", "numpy", "PIL", "onnx")
heavy = [name for name in names if find_spec(name)]
print(json.dumps({"task": result.id, "heavy": heavy, "data": data}))
"""

PROJECT = """
import tasks
from veil.tasks import anonymize_image, errors

assert tasks.OWN
print(anonymize_image.name, errors.__name__)
"""


def test_a_plain_installation_enqueues_without_anything_heavy(repository, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, source)
    for name in ("tasks", "training", "veil", "worker"):
        shutil.copytree(
            repository / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install"]
    pip += ["--quiet", "--disable-pip-version-check", "--no-compile"]
    # The versions are those of the lock file, so that a new release elsewhere does not fail this
    # test; its hashes are left out, because a folder has none.
    locked = (repository / "requirements" / "flower.txt").read_text().splitlines()
    versions = tmp_path / "versions.txt"
    versions.write_text("\n".join(line.rstrip("\\") for line in locked if not line.startswith(" ")))
    subprocess.run([*pip, "-c", versions, source], check=True, timeout=240)
    redis = start_redis(tmp_path / "redis")
    try:
        done = subprocess.run(
            [environment / "bin" / "python", "-c", PRODUCER],
            check=True,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=60,
            env={**os.environ, **redis.environment()},
        )
        answer = json.loads(done.stdout)
        assert answer["heavy"] == []
        known = ["known_face.NOTICE.txt", "known_face.jpg", "known_face.json"]
        assert answer["data"] == ["calibration.json", *known]
        for command in (["worker"], ["anonymize", tmp_path, "--output", tmp_path / "out"]):
            refused = subprocess.run(
                [environment / "bin" / "veil", *command],
                check=False,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert refused.returncode != 0
            assert "pip install '.[worker]'" in refused.stderr.splitlines()[-1]
            assert "Traceback" not in refused.stderr
        shop = tmp_path / "shop"
        shop.mkdir()
        (shop / "tasks.py").write_text("OWN = True\n")
        named = subprocess.run(
            [environment / "bin" / "python", "-c", PROJECT],
            check=True,
            capture_output=True,
            text=True,
            cwd=shop,
            timeout=60,
        )
        assert named.stdout.split() == ["veil.anonymize_image", "veil.tasks.errors"]
        (message,) = redis.client().lrange("uploads", 0, -1)
        assert json.loads(message)["headers"]["id"] == answer["task"]
    finally:
        redis.server.stop()
