"""`make demo` before it starts anything."""

import os
import subprocess
import sys

import pytest

REPOSITORY = __file__.partition("/tests/")[0]


@pytest.mark.parametrize("name", ["VEIL_ROUTES", "VEIL_ROUTES_FILE"])
def test_routes_of_the_environment_are_refused_and_nothing_is_removed(tmp_path, name):
    earlier = tmp_path / ".demo" / "summary.json"
    earlier.parent.mkdir()
    earlier.write_text("{}")
    done = subprocess.run(
        [sys.executable, "-m", "tools.demo"],
        cwd=tmp_path,
        env=os.environ | {name: "s3://a=s3://b", "PYTHONPATH": REPOSITORY},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"demo: {name} is set, but the demo's store has only the buckets")
    assert f"run `make demo {name}=`" in line
    assert earlier.exists()
