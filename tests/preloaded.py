"""The modules of all commands, which the fork server of `tests.command` loads once.

`tasks.app` reads the environment when it is imported, so each command imports it anew. TensorFlow
starts threads, which a fork would lose.
"""

import functools
from importlib import import_module

import botocore.session

from worker.cli import COMMANDS

MODULES = [entry.module for entry in COMMANDS.values()]
MODULES += ["botocore.httpsession", "celery.backends.redis", "kombu.transport.redis"]
MODULES += ["tasks.storage.s3", "typer.rich_utils", "worker.desk.server", "worker.isolated"]
MODULES += ["worker.detection.batching", "worker.detection.litert", "worker.pipeline"]


def share_descriptions_of_services() -> None:
    """Read boto3's descriptions of S3 and SQS once, not for each client."""
    botocore.session.create_loader = functools.cache(botocore.session.create_loader)


for module in MODULES:
    import_module(module)
share_descriptions_of_services()
