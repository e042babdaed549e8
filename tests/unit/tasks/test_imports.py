"""The import rule: producers load nothing heavy, tasks never imports worker, and the command starts light."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import tasks

ROOT = Path(tasks.__file__).parent.parent
MODULES = sorted((ROOT / "tasks").rglob("*.py"))
HEAVY = ["tensorflow", "ai_edge_litert", "cv2", "numpy", "PIL", "onnx", "worker"]


def dotted(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def loaded(*statements):
    """What a new interpreter has in sys.modules after each of `statements`, by its top-level names."""
    program = "import json, sys\nfor line in json.loads(sys.argv[1]):\n exec(line)\n print(json.dumps([*sys.modules]))"
    command = [sys.executable, "-c", program, json.dumps(statements)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""
    return [{name.split(".")[0] for name in json.loads(line)} for line in done.stdout.splitlines()]


def test_producers_load_nothing_heavy_and_the_command_neither_tensorflow_nor_opencv():
    package, workers, *producers, command = loaded(
        "import tasks",
        "import worker",
        "import tasks.app",
        "import tasks.anonymize",
        "from tasks import anonymize_image; assert anonymize_image.name",
        "from tasks import AnonymizeOptions, AnonymizeReport, errors; assert errors.VeilError",
        *(f"import {dotted(path)}" for path in MODULES if path.stem != "__init__"),
        "import worker.cli",
    )
    assert not package & {*HEAVY, "celery", "boto3", "pydantic", "redis"}
    assert not workers & {*HEAVY, "celery", "boto3", "pydantic", "redis"} - {"worker"}
    for names in producers:
        assert "celery" in names
        assert not names & set(HEAVY) - {"worker"}
    assert command & set(HEAVY) == {"worker"}


def test_a_misspelt_name_of_tasks_is_an_attribute_error():
    with pytest.raises(AttributeError, match="anonymise_image"):
        tasks.anonymise_image  # noqa: B018


@pytest.mark.parametrize("package", ["tasks", "training", "worker"])
def test_every_package_says_that_it_is_typed(package):
    assert (ROOT / package / "py.typed").is_file()


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_no_module_of_tasks_imports_what_workers_need_even_late(path):
    assert not {name.split(".")[0] for name in imported(path)} & {*HEAVY, "training"}


@pytest.mark.parametrize("package", ["tasks", "training", "worker"])
def test_every_module_opens_with_one_sentence(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        if path.name == "__init__.py" and not path.read_text().strip():
            continue
        first = ast.get_docstring(ast.parse(path.read_text())).split("\n\n")[0]
        assert first.endswith((".", ":")), path
