"""The number of processors that a worker counts on, in a container with a quota and without."""

import pytest

from worker.process import processors


@pytest.fixture(autouse=True)
def sixteen_processors(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(16)), raising=False)


@pytest.mark.parametrize(
    ("quota", "count"),
    [
        ("max 100000", 16),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("10000 100000", 1),
        ("3200000 100000", 16),
    ],
)
def test_a_container_has_no_more_than_its_quota(tmp_path, quota, count):
    (tmp_path / "cpu.max").write_text(quota + "\n")

    assert processors.available(tmp_path / "cpu.max") == count


@pytest.mark.parametrize("content", [None, "", "much"])
def test_without_a_quota_all_processors_of_the_scheduler_count(tmp_path, content):
    if content is not None:
        (tmp_path / "cpu.max").write_text(content)

    assert processors.available(tmp_path / "cpu.max") == 16
