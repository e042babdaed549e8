"""Lua scripts: every file is package data, and a module beside it loads it."""

import re
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

import tasks
from tasks.redis import lua

FOLDER = Path(tasks.__file__).parent
SCRIPTS = sorted(FOLDER.rglob("*.lua"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_in_its_package_and_loaded_by_a_module_beside_it(path):
    package = ".".join(("tasks", *path.parent.relative_to(FOLDER).parts))
    assert (files(package) / path.name).is_file()
    assert lua.load(package, path.stem) == path.read_text()
    loaded = "".join(module.read_text() for module in path.parent.glob("*.py"))
    assert re.search(rf"""lua\.load\(__package__, .*["']{path.stem}["']""", loaded)


def test_scripts_are_in_the_wheel_and_not_in_python_modules():
    packaging = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "*.lua" in packaging["package-data"]["*"]
    assert len(SCRIPTS) >= 10
    assert not [path for path in FOLDER.rglob("*.py") if "redis.call(" in path.read_text()]


def test_the_parts_of_a_script_are_in_the_order_of_their_names():
    script = lua.load("tasks.delivery", "restore", "now", "take_back")
    assert (
        script.index("local function restore") < script.index("local now") < script.index("ZRANGE")
    )
