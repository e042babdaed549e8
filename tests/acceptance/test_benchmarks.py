"""``make bench``, in short: its lines, and nothing left running."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

QUICK = {"VEIL_PRESET": "fast"}  # the lines are tested, not their figures


@pytest.fixture
def bench(repository, tmp_path, clean_environment):
    """``bench(NAME, VARIABLE=…)``: the lines of one benchmark, the machine's apart."""

    def run(name, **amounts):
        done = subprocess.run(
            [sys.executable, "-m", "tools.benchmarks", name],
            cwd=repository,
            env={**os.environ, "TMPDIR": str(tmp_path), **QUICK, **amounts},
            check=False,
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        measured_on, *lines = (json.loads(line) for line in done.stdout.splitlines())
        assert measured_on["bench"] == "machine"
        assert not list(tmp_path.iterdir())
        assert not [path for path in Path("/proc").glob("[0-9]*/cwd") if _is_below(path, tmp_path)]
        return lines

    return run


def _is_below(cwd, folder):
    try:
        return cwd.readlink().is_relative_to(folder)
    except OSError:
        return False


@pytest.mark.timeout(290)
def test_the_whole_stack_is_compared_with_its_detector(bench):
    (line,) = bench("end_to_end", PICTURES="3", ROUNDS="2")

    assert line["bench"] == "end_to_end"
    assert line["pictures"] == 3
    assert line["ratio"] == pytest.approx(
        line["pictures_per_second"] / line["detector_bound"], rel=0.01
    )
    assert line["ratio"] > 0.1
    assert len(line["ratio_of_rounds"]) == 2
    used = line["cpu_seconds_a_picture"]
    assert used["worker"] > 0
    assert used["detector_alone"] > 0
    assert set(used) == {"worker", "store", "redis", "detector_alone"}  # may be less than a tick


@pytest.mark.timeout(290)
def test_a_device_that_is_slow_enough_is_all_that_is_waited_for(bench):
    (line,) = bench("accelerator", PICTURES="6", ROUNDS="1", SPEEDS="2")

    assert line["device_megapixels_per_second"] == 2
    assert line["detector_bound"] < 4
    assert 0.5 < line["ratio"] <= 1.1
    assert line["cpu_seconds_a_picture"]["detector_alone"] < line["cpu_seconds_a_picture"]["worker"]


@pytest.mark.timeout(290)
def test_the_stages_of_each_format_and_size_are_measured(bench):
    small, large = bench("stages", FORMATS="png", SIZES="0.1,0.4")

    assert [(line["format"], line["megapixels"]) for line in (small, large)] == [
        ("PNG", 0.1),
        ("PNG", 0.4),
    ]
    assert large["seconds"]["encode"] > small["seconds"]["encode"]
    for line in (small, large):
        assert line["seconds"].keys() == {"fetch", "decode", "detect", "mask", "encode", "store"}
        assert all(seconds > 0 for seconds in line["seconds"].values())
        assert 0 <= line["hidden"] <= 1


@pytest.mark.timeout(290)
def test_the_peer_is_measured_on_the_same_pictures(bench, data, exposure_tool):
    sets = {"FACES_DATA": str(data("small").parent), "FACES_JUDGE": str(exposure_tool)}

    environment, line = bench("peer", SETS="small", PICTURES="2", ROUNDS="1", **sets)

    assert environment["deface"] == "1.5.0"
    assert environment["backend"] == "onnxrt"
    assert list(line) == [
        "bench", "set", "pictures", "pictures_per_second", "deface_pictures_per_second", "ratio",
        "exposed_rate", "deface_exposed_rate",
    ]  # fmt: skip
    assert (line["bench"], line["set"], line["pictures"]) == ("peer", "small", 2)
    assert line["ratio"] == pytest.approx(
        line["pictures_per_second"] / line["deface_pictures_per_second"], rel=0.02
    )
    assert 0 <= line["exposed_rate"] <= 1


@pytest.mark.timeout(290)
def test_waiting_is_measured_idle_and_under_load(bench):
    idle, busy = bench("latency", PICTURES="4")

    assert (idle["load"], busy["load"]) == (0.0, 0.8)
    assert busy["arrivals_per_second"] == pytest.approx(0.8 * busy["capacity"], abs=0.02)
    for line in (idle, busy):
        assert 0 < line["p50"] <= line["p95"] <= line["p99"] <= line["max"]


@pytest.mark.timeout(290)
def test_what_workers_and_deep_queues_cost_is_measured(bench):
    asked, one, deep = bench("scaling", PICTURES="4", WORKERS="1", DEPTHS="400")

    assert asked["s3_requests"] == {"GET": 1.0, "HEAD": 2.0, "PUT": 2.0}
    assert asked["redis_round_trips"] > 5
    assert (one["workers"], one["queue_depth"], deep["queue_depth"]) == (1, 4, 400)
    assert 500 < deep["redis_bytes_a_message"] < 3000
    for line in (one, deep):
        assert line["pictures_per_second"] > 0
        assert line["worker_rss_mib"][0] > 100


@pytest.mark.timeout(290)
def test_memory_is_followed_while_mixed_pictures_are_worked_on(bench):
    (summary,) = bench("soak", MINUTES="0.05", PICTURES="4")

    assert summary["pictures"] >= 4
    assert summary["rss_mib"] <= summary["peak_mib"]
    assert len(summary["quarters_mib"]) == 4
