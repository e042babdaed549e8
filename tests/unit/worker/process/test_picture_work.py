"""A picture process loads every library before its sandbox is closed."""

import subprocess
import sys

PROGRAM = """
import sys
from worker.process import picture_work
assert picture_work.prepare() == [], picture_work.prepare()
loaded = set(sys.modules)
assert picture_work.prepare() == []
print(sorted(set(sys.modules) - loaded))
print(sorted(loaded & {"boto3", "botocore", "celery", "redis", "structlog", "tensorflow"}))
"""


def test_every_kind_of_picture_is_prepared_for_without_the_libraries_of_a_worker():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["[]", "[]"]
