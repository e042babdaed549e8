"""Write the settings into the chart's schema, and render docker/kubernetes: `make manifests`."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.chart_schema import SCHEMA, generated

DOCKER = Path(__file__).resolve().parent.parent / "docker"
CHART = SCHEMA.parent
EXAMPLES = DOCKER / "helm" / "examples"
MANIFESTS = DOCKER / "kubernetes"
VALUES = EXAMPLES / "webhook.yaml"
HEADER = """\
# Rendered by `make manifests` from the chart and the values in docker/helm/examples/webhook.yaml.
"""


def helm_program() -> str | None:
    """Return the path of Helm: that of `make helm`, else that on PATH, else None."""
    folders = (str(Path(sys.executable).parent), os.environ.get("PATH", ""))
    return shutil.which("helm", path=os.pathsep.join(folders))


def manifests(helm: str) -> dict[str, str]:
    """Return the rendered manifests by the names of their files, one for each template in use."""
    with tempfile.TemporaryDirectory() as folder:
        command = [helm, "template", "veil", str(CHART), "--namespace", "veil"]
        subprocess.run(
            [*command, "--values", str(VALUES), "--output-dir", folder],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        rendered = sorted(Path(folder, "veil", "templates").glob("*.yaml"))
        return {path.name: HEADER + path.read_text().rstrip() + "\n" for path in rendered}


def main() -> None:
    SCHEMA.write_text(generated(SCHEMA.read_text()))
    helm = helm_program()
    if helm is None:
        sys.exit("helm is not installed: make helm")
    rendered = manifests(helm)
    for path in MANIFESTS.glob("*.yaml"):
        if path.name not in rendered:
            path.unlink()
    for name, text in rendered.items():
        (MANIFESTS / name).write_text(text)


if __name__ == "__main__":
    main()
