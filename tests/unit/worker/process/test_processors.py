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


@pytest.mark.parametrize(
    ("limit", "expected"), [(f"{1 << 30}\n", 1 << 30), ("max\n", None), (None, None)]
)
def test_a_container_has_no_more_memory_than_its_limit(tmp_path, limit, expected):
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    installed = processors.memory(tmp_path / "absent")

    assert processors.memory(tmp_path / "memory.max") == (expected or installed)


@pytest.mark.parametrize(("memory", "count"), [(100 << 30, 16), (2 << 30, 4), (100 << 20, 1)])
def test_picture_processes_follow_from_processors_and_memory(monkeypatch, memory, count):
    monkeypatch.setattr(processors, "available", lambda: 16 // processors.PROCESSES_A_PROCESSOR)
    monkeypatch.setattr(processors, "memory", lambda: memory)

    assert processors.picture_processes() == count
