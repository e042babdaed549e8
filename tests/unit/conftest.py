"""Properties are checked on the same examples each time, a bounded number of them."""

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
