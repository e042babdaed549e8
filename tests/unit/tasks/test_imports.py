"""Import rules: producers and the command load nothing heavy, and tasks never imports worker."""

import ast
import functools
import graphlib
import json
import re
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


@functools.cache
def parsed(path):
    """Return the syntax tree of a module."""
    return ast.parse(path.read_text())


def loaded(*statements):
    """Return the top-level modules of a new interpreter after each of `statements`."""
    program = (
        "import json, sys\n"
        "for line in json.loads(sys.argv[1]):\n"
        " exec(line)\n"
        " print(json.dumps([*sys.modules]))"
    )
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


@pytest.mark.parametrize("package", ["tasks", "training", "veil", "worker"])
def test_every_package_says_that_it_is_typed(package):
    assert (ROOT / package / "py.typed").is_file()


def statements(path):
    """Yield the imports of a module, also those in functions and those for types alone."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node


def imported(path):
    """Yield the module that each import statement of `path` names, with the dots of a relative
    one.
    """
    for node in statements(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            yield "." * node.level + (node.module or "")


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_no_module_of_tasks_imports_what_workers_need_even_late(path):
    assert not {name.split(".")[0] for name in imported(path)} & {*HEAVY, "training"}


MODULE_NAME = re.compile(r"tasks(\.\w+)+(:\w+)?")


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_no_module_of_tasks_names_the_package_because_it_has_another_name_too(path):
    assert [name for name in imported(path) if name.split(".")[0] == "tasks"] == []
    nodes = ast.walk(parsed(path))
    texts = [node.value for node in nodes if isinstance(node, ast.Constant)]
    assert [text for text in texts if isinstance(text, str) and MODULE_NAME.fullmatch(text)] == []


GUEST = """
import json
import resource
import sys
from celery import Celery, current_app
from celery.signals import before_task_publish, import_modules

resource.setrlimit(resource.RLIMIT_CORE, (1, 1))

sys.modules["tasks"] = "the module of the project"
shop = Celery("shop", broker="memory://")
from veil.tasks import AnonymizeOptions, AnonymizeReport, anonymize_image, errors
from veil.tasks.app import app

import_modules.send(sender=shop)
headers = {}
before_task_publish.send(sender="shop.resize", body=[(), {}, {}], headers=headers)
stored = {"exc_type": "Busy", "exc_message": ["wait"], "exc_module": "tasks.errors"}
error = app.backend.exception_to_python(stored)
assert type(error) is errors.Busy, type(error)
print(json.dumps({
    "current": current_app.main,
    "task": [anonymize_image.name, anonymize_image.app.main, anonymize_image.Request],
    "include": list(app.conf.include),
    "headers": headers,
    "modules": [name for name in sys.modules if name.startswith("tasks.")],
    "options": AnonymizeOptions(region=1.0).to_json(),
    "core dumps": resource.getrlimit(resource.RLIMIT_CORE),
}))
"""


def test_under_its_second_name_the_package_is_a_guest_in_the_project_of_another_app():
    done = subprocess.run(
        [sys.executable, "-c", GUEST], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert json.loads(done.stdout) == {
        "current": "shop",
        "task": [
            "veil.anonymize_image",
            "veil",
            "veil.tasks.delivery.acknowledgement:Request",
        ],
        "include": ["veil.tasks.anonymize"],
        "headers": {},
        "modules": [],
        "options": {"region": 1.0},
        "core dumps": [1, 1],
    }


def test_the_second_name_has_every_module_of_the_first():
    for path in (*MODULES, *(ROOT / "tasks").rglob("*.lua")):
        assert (ROOT / "veil" / path.relative_to(ROOT)).samefile(path)


@pytest.mark.parametrize("package", ["tasks", "training", "worker"])
def test_every_module_opens_with_one_sentence(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        if path.name == "__init__.py" and not path.read_text().strip():
            continue
        first = ast.get_docstring(parsed(path)).split("\n\n")[0]
        assert first.endswith((".", ":")), path


def named(node, package):
    """Yield what an import statement in `package` names: modules, and for `from` what is taken
    from them.
    """
    for alias in node.names:
        yield alias.name if isinstance(node, ast.Import) else f"{base(node, package)}.{alias.name}"


def base(node, package):
    """Return the absolute name of the module from which a statement in `package` imports."""
    if not node.level:
        return node.module
    parents = package.split(".")
    kept = parents[: len(parents) - node.level + 1]
    return ".".join([*kept, *filter(None, [node.module])])


def import_graph(root, *packages):
    """Return for each module of `packages` below `root` the modules that it loads.

    To import a module loads the packages that it is in. Those that the importing module is in too
    are loaded already, so they count only where something of their own is taken from them.
    """
    paths = {}
    for path in (path for name in packages for path in (root / name).rglob("*.py")):
        paths[".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")] = (
            path
        )
    graph = {}
    for module, path in paths.items():
        loaded = graph[module] = set()
        package = ".".join(path.relative_to(root).parent.parts)
        for node in statements(path):
            for name in named(node, package):
                found = name if name in paths else name.rpartition(".")[0]
                if found in paths:
                    loaded.add(found)
                while found := found.rpartition(".")[0]:
                    if found in paths and not f"{module}.".startswith(f"{found}."):
                        loaded.add(found)
        loaded.discard(module)
    return graph


def test_modules_do_not_import_each_other_in_circles():
    graph = import_graph(ROOT, "tasks", "training", "worker")
    assert "tasks.delivery.work" in graph["tasks.app"]
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    "modules",
    [
        {"a": "import house.b", "b": "import house.a"},
        {
            "a": "from house import b",
            "b": "try:\n pass\nexcept OSError:\n from house.a import name",
        },
        {"__init__": "from house.a import name", "a": "from house import other"},
        {"a": "from . import b", "b": "from .a import name"},
        {"a": "from . import b", "b": "def late():\n from .a import name"},
        {"a": "from . import b", "b": "if TYPE_CHECKING:\n from .a import name"},
        {"__init__": "from .a import name", "a": "from . import other"},
    ],
)
def test_a_circle_is_found_through_statements_of_any_form(tmp_path, modules):
    (tmp_path / "house").mkdir()
    for name, text in {"__init__": "", **modules}.items():
        (tmp_path / "house" / f"{name}.py").write_text(text)
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(import_graph(tmp_path, "house")).prepare()
