"""A Celery project with its own module ``tasks`` imports ``veil.tasks``, or sends the task by its
name.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.examples import example

TASKS = "OWN = True\n"
OUTCOME = """
import json
import tasks
assert tasks.OWN
from celery import Celery
import os, sys
app = Celery("shop", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
result = app.send_task("veil.anonymize_image", args=[sys.argv[1]], queue="uploads")
try:
    outcome = result.get(timeout=60)
except Exception as error:
    outcome = [type(error).__name__, str(error)]
print(json.dumps(outcome))
"""

GUEST = """
import json, os, sys
import tasks
assert tasks.OWN
from celery import Celery, current_app
app = Celery("shop", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
from veil.tasks import AnonymizeOptions, anonymize_image, errors
options = AnonymizeOptions(region=1.0).to_json()
result = anonymize_image.delay(sys.argv[1], options=options)
try:
    outcome = result.get(timeout=60)
except errors.UnreadableImage as error:
    outcome = [type(error).__module__, str(error)]
assert current_app.main == "shop"
print(json.dumps(outcome))
"""


@pytest.fixture
def run(tmp_path, queue):
    """Run a program in a project that has its own tasks.py, and return its output."""
    (tmp_path / "tasks.py").write_text(TASKS)
    scheme, place = queue.environment["VEIL_REDIS_URL"].split("://")
    url = f"{scheme}://:{queue.redis.password}@{place}"

    def run(program, *arguments):
        (tmp_path / "shop.py").write_text(program)
        done = subprocess.run(
            [sys.executable, "shop.py", *arguments],
            capture_output=True,
            text=True,
            timeout=90,
            cwd=tmp_path,
            env={**os.environ, **queue.environment, "REDIS_URL": url},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_picture_is_anonymized(worker, raw, clean, place, portrait, run):
    source = raw.put(f"{place}a.jpg", portrait)
    report = json.loads(run(OUTCOME, source))
    assert (report["status"], report["faces"]) == ("anonymized", 1)
    assert report["destination"] == clean.uri(f"{place}a.jpg")
    assert clean.open(f"{place}a.jpg").format == "JPEG"


def test_an_error_arrives_by_its_name(worker, raw, clean, place, run):
    source = raw.put(f"{place}a.jpg", b"no picture")
    name, message = json.loads(run(OUTCOME, source))
    assert name == "UnreadableImage"
    assert message
    assert clean.head(f"{place}a.jpg") is None


def test_the_second_name_has_the_task_the_options_and_the_errors(
    worker, raw, clean, place, portrait, run
):
    report = json.loads(run(GUEST, raw.put(f"{place}a.jpg", portrait)))
    assert (report["status"], report["options"]) == ("anonymized", {"region": 1.0})
    assert clean.open(f"{place}a.jpg").format == "JPEG"
    module, message = json.loads(run(GUEST, raw.put(f"{place}b.jpg", b"no picture")))
    assert module == "veil.tasks.errors"
    assert message


def test_the_example_of_the_second_name_works_in_such_a_project(
    worker, raw, clean, place, portrait, run, repository
):
    block = example(repository / "docs" / "enqueue.md", "veil.tasks")
    source = "s3://camera-uploads/a/b.jpg"
    assert source in block
    block = block.replace(source, raw.put(f"{place}a.jpg", portrait))
    assert run(block).split() == [clean.uri(f"{place}a.jpg")]
    block = block.replace(f"{place}a.jpg", f"{place}b.jpg")
    raw.put(f"{place}b.jpg", b"no picture")
    assert run(block).startswith("UnreadableImage ")


def test_the_example_of_the_page_works_in_such_a_project(
    worker, raw, clean, place, portrait, run, repository
):
    block = example(repository / "docs" / "python.md", "send_task")
    source = "s3://raw/a/portrait.jpg"
    assert source in block
    block = block.replace(source, raw.put(f"{place}portrait.jpg", portrait))
    assert run(block).split() == [
        "anonymized",
        clean.uri(f"{place}portrait.jpg"),
    ]
