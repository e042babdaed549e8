"""Properties are checked on the same examples each time, a bounded number of them."""

import functools
from collections.abc import Iterator

import botocore.session
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "unit",
    max_examples=20,
    deadline=None,  # two busy cores: time says nothing
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("unit")


@pytest.fixture(scope="session", autouse=True)
def shared_descriptions_of_services() -> Iterator[None]:
    """Read boto3's descriptions of S3 and SQS once, not for each client."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            botocore.session, "create_loader", functools.cache(botocore.session.create_loader)
        )
        yield
