"""The benchmark of GPUs: its figures, and its refusal on a machine without one."""

import numpy as np
import pytest

from tools.benchmarks import gpu
from worker import models
from worker.detection.faces import Detections


def batches(*rows):
    return gpu.Batches(np.array(rows, np.float64).reshape(-1, 3))


def test_time_in_which_two_batches_are_in_the_model_counts_once():
    seen = batches((0, 2, 4), (1, 3, 8), (5, 6, 1), (5.2, 5.5, 1), (8, 20, 2), (30, 40, 8))

    assert seen.between(0, 10) == {"in_model": 0.6, "batch": 3.2}
    assert seen.between(1, 5) == {"in_model": 0.5, "batch": 6.0}


def test_a_worker_without_batches_was_idle():
    assert batches().between(0, 10) == {"in_model": 0.0, "batch": 0.0}


def test_a_face_is_found_if_a_box_overlaps_it():
    faces = np.array([(0, 0, 10, 10), (50, 50, 60, 60)], np.float32)

    assert gpu._found(faces, np.array([(1, 1, 10, 10)], np.float32)) == 1
    assert gpu._found(faces, faces) == 2
    assert gpu._found(faces, np.zeros((0, 4), np.float32)) == 0


class Blind:
    """A model without faces."""

    lanes = 2

    def predict(self, batch):
        return [Detections.none() for _ in batch]


def test_a_measured_model_is_the_same_model_and_writes_its_batches(tmp_path):
    timed = gpu.Timed(Blind(), tmp_path / "batches")

    assert timed.lanes == 2
    for count in (3, 1):
        assert len(timed.predict(np.zeros((count, 64, 64, 3), np.uint8))) == count

    seen = gpu.Batches.read(tmp_path / "batches")
    assert seen.rows[:, 2].tolist() == [3, 1]
    assert (seen.rows[:, 0] <= seen.rows[:, 1]).all()


@pytest.mark.parametrize("name", ["", "cuda"])
def test_without_a_gpu_the_benchmark_says_in_a_line_what_it_needs(name, monkeypatch, capsys):
    monkeypatch.setenv("DEVICE", name)
    monkeypatch.setattr(models, "GPU_DRIVER", "libabsent.so.1")

    gpu.run()

    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert "needs an NVIDIA GPU" in line
