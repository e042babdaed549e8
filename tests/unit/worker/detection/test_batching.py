"""Batching with real threads: batches of one shape, failures and delays."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from tasks.errors import DetectionFailed, DetectorUnavailable
from worker.detection.batching import Batcher
from worker.detection.faces import Detections
from worker.detection.model import DeviceFull

PATIENCE = 30  # Seconds: longer than any test takes.
POISON = 255


def canvas(value, height=4, width=6):
    return np.full((height, width, 3), value, np.uint8)


def answer(value):
    return Detections(np.array([[0, 0, value, value]], np.float32), np.array([0.5], np.float32))


class Model:
    """A model that answers each canvas by its value, fails on POISON, and keeps its batches."""

    def __init__(self):
        self.batches = []

    def predict(self, batch):
        self.batches.append(batch.copy())
        values = batch[:, 0, 0, 0].tolist()
        if POISON in values:
            raise FloatingPointError("poisoned\nwith a second line")
        return [answer(value) for value in values]

    def values(self):
        return [batch[:, 0, 0, 0].tolist() for batch in self.batches]


class Gate(Model):
    """A model that is busy until it is opened."""

    def __init__(self):
        super().__init__()
        self.busy = threading.Event()
        self.open = threading.Event()

    def predict(self, batch):
        self.busy.set()
        assert self.open.wait(PATIENCE)
        return super().predict(batch)


@contextmanager
def batcher(predict, max_size=4, max_wait=0.0, deadline=PATIENCE, lanes=1) -> Iterator[Batcher]:
    made = Batcher(predict, max_size, max_wait, deadline, lanes)
    try:
        yield made
    finally:
        made.close()


def infer(running, canvas):
    """Return the detections in one canvas."""
    (found,) = running.infer([canvas])
    return found


def called_at_once(predict, canvases, max_size):
    """Call for each canvas from a thread of its own while the model is busy; return the futures."""
    busy, there = threading.Event(), threading.Event()

    def gated(batch):
        if busy.is_set():
            return predict(batch)
        busy.set()
        assert there.wait(PATIENCE)
        return [answer(0)]

    with (
        batcher(gated, max_size) as running,
        ThreadPoolExecutor(1 + len(canvases)) as pool,
    ):
        pool.submit(infer, running, canvas(0))
        assert busy.wait(PATIENCE)
        calls = [pool.submit(infer, running, one) for one in canvases]
        while running.waiting < len(canvases):
            time.sleep(0.001)
        there.set()
    return calls


def side(detections):
    return int(detections.boxes_xyxy[0, 2])


def test_everyone_gets_the_answer_to_their_own_canvas():
    with (
        batcher(Model().predict, max_size=3, max_wait=0.001) as running,
        ThreadPoolExecutor(8) as pool,
    ):
        values = list(range(1, 60))
        assert [
            side(found) for found in pool.map(lambda v: infer(running, canvas(v)), values)
        ] == values


def test_an_idle_device_starts_at_once_with_what_there_is():
    model = Model()
    with batcher(model.predict, max_size=8, max_wait=PATIENCE, lanes=2) as running:
        for value in (7, 8):
            assert side(infer(running, canvas(value))) == value
    assert model.values() == [[7], [8]]


def test_while_the_device_is_busy_a_batch_fills_until_it_is_full():
    model = Gate()
    with (
        batcher(model.predict, max_size=2, max_wait=PATIENCE, lanes=2) as running,
        ThreadPoolExecutor(4) as pool,
    ):
        first = pool.submit(infer, running, canvas(1))
        assert model.busy.wait(PATIENCE)
        second = pool.submit(infer, running, canvas(2))
        with pytest.raises(TimeoutError):
            second.result(0.1)
        assert running.waiting == 1  # The other lane is free.
        third = pool.submit(infer, running, canvas(3))
        while running.waiting:
            time.sleep(0.001)
        model.open.set()
        assert [side(one.result(PATIENCE)) for one in (first, second, third)] == [1, 2, 3]
    assert sorted(map(sorted, model.values())) == [[1], [2, 3]]


def test_what_waits_for_others_starts_when_the_device_becomes_idle():
    model = Gate()
    with (
        batcher(model.predict, max_size=8, max_wait=10 * PATIENCE, lanes=2) as running,
        ThreadPoolExecutor(2) as pool,
    ):
        first = pool.submit(infer, running, canvas(1))
        assert model.busy.wait(PATIENCE)
        second = pool.submit(infer, running, canvas(2))
        while not running.waiting:
            time.sleep(0.001)
        model.open.set()
        assert [side(one.result(PATIENCE)) for one in (first, second)] == [1, 2]


def test_what_waits_for_others_waits_no_longer_than_it_may():
    model = Gate()
    with (
        batcher(model.predict, max_size=8, max_wait=0.01, lanes=2) as running,
        ThreadPoolExecutor(2) as pool,
    ):
        first = pool.submit(infer, running, canvas(1))
        assert model.busy.wait(PATIENCE)
        model.busy.clear()
        second = pool.submit(infer, running, canvas(2))
        assert model.busy.wait(PATIENCE)  # with the second, while the first is in hand
        model.open.set()
        assert [side(one.result(PATIENCE)) for one in (first, second)] == [1, 2]


def test_concurrent_canvases_form_full_batches_and_no_fuller():
    model = Model()
    called_at_once(model.predict, [canvas(value) for value in range(1, 13)], max_size=4)
    assert [len(batch) for batch in model.batches] == [4, 4, 4]
    assert sorted(value for batch in model.values() for value in batch) == list(range(1, 13))


def test_what_gathers_while_the_model_is_busy_becomes_bounded_batches():
    model = Gate()
    with batcher(model.predict, max_size=3) as running, ThreadPoolExecutor(8) as pool:
        first = pool.submit(infer, running, canvas(1))
        assert model.busy.wait(PATIENCE)
        rest = [pool.submit(infer, running, canvas(v)) for v in range(2, 9)]
        model.open.set()
        assert [side(future.result(PATIENCE)) for future in [first, *rest]] == list(range(1, 9))
    assert model.values()[0] == [1]
    assert all(1 <= len(batch) <= 3 for batch in model.batches)


def test_a_batch_holds_one_shape_only():
    model = Model()
    canvases = [canvas(1), canvas(2, 6, 4), canvas(3), canvas(4, 6, 4)]
    calls = called_at_once(model.predict, canvases, max_size=2)
    assert [side(call.result()) for call in calls] == [1, 2, 3, 4]
    assert sorted(batch.shape for batch in model.batches) == [(2, 4, 6, 3), (2, 6, 4, 3)]


def test_a_shape_of_its_own_is_not_starved_by_full_batches_of_another():
    model = Model()
    with (
        batcher(model.predict, max_size=2, max_wait=0.01) as running,
        ThreadPoolExecutor(5) as pool,
    ):
        odd = pool.submit(infer, running, canvas(99, 9, 9))
        list(pool.map(lambda v: infer(running, canvas(v)), range(1, 21)))
        assert side(odd.result(PATIENCE)) == 99


def test_a_poisoned_canvas_fails_alone_and_its_neighbours_succeed():
    canvases = [canvas(value) for value in (1, 2, POISON, 3)]
    first, second, poisoned, third = called_at_once(Model().predict, canvases, max_size=4)
    assert [side(call.result()) for call in (first, second, third)] == [1, 2, 3]
    with pytest.raises(DetectionFailed, match=r"the model failed: FloatingPointError: poisoned$"):
        poisoned.result()


def test_an_error_without_words_is_named():
    def predict(batch):
        raise ZeroDivisionError

    with batcher(predict) as running, pytest.raises(DetectionFailed, match="ZeroDivisionError"):
        running.infer([canvas(1)])


def test_memory_that_does_not_suffice_is_no_fault_of_the_picture():
    def predict(batch):
        raise MemoryError

    with batcher(predict) as running, pytest.raises(MemoryError):
        running.infer([canvas(1)])


def test_whoever_the_model_is_busy_with_waits_longer_than_the_others():
    model = Gate()
    with batcher(model.predict, max_size=1, deadline=0.5) as running, ThreadPoolExecutor(2) as pool:
        first = pool.submit(infer, running, canvas(1))
        assert model.busy.wait(PATIENCE)
        second = pool.submit(infer, running, canvas(2))
        assert isinstance(second.exception(PATIENCE), DetectorUnavailable)
        assert not first.done()
        model.open.set()
        assert side(first.result(PATIENCE)) == 1


@pytest.mark.parametrize("answers", [0, 1, 3])
def test_a_model_that_miscounts_its_answers_fails_no_picture_silently(answers):
    def predict(batch):
        return [answer(1)] * (answers if len(batch) == 2 else 0)

    for call in called_at_once(predict, [canvas(1), canvas(1)], max_size=2):
        assert isinstance(call.exception(), DetectionFailed)


def test_past_the_deadline_the_detector_is_unavailable_and_works_again_later():
    model = Gate()
    with batcher(model.predict, deadline=0.5) as running:
        with pytest.raises(DetectorUnavailable, match="within"):
            running.infer([canvas(1)])
        model.open.set()
        assert side(infer(running, canvas(2))) == 2


def test_nobody_computes_for_a_caller_who_gave_up():
    model = Gate()
    with batcher(model.predict, max_size=1, deadline=0.5) as running, ThreadPoolExecutor(2) as pool:
        first = pool.submit(infer, running, canvas(1))
        assert model.busy.wait(PATIENCE)
        second = pool.submit(infer, running, canvas(2))
        for gone, said in (
            (first, "finished a pass within twice"),
            (second, "begun a pass within"),
        ):
            with pytest.raises(
                DetectorUnavailable, match=rf"{said} VEIL_DETECT_SECONDS \(0\.5 s\)"
            ):
                gone.result(PATIENCE)
        model.open.set()
        assert side(infer(running, canvas(3))) == 3
    assert model.values() == [[1], [3]]


def test_a_model_with_two_lanes_has_two_batches_in_hand_at_once():
    model, both = Model(), threading.Barrier(2)

    def predict(batch):
        both.wait(PATIENCE)
        return model.predict(batch)

    with batcher(predict, max_size=1, lanes=2) as running, ThreadPoolExecutor(4) as pool:
        values = [1, 2, 3, 4]
        assert [
            side(found) for found in pool.map(lambda v: infer(running, canvas(v)), values)
        ] == values


def test_closing_lets_the_batch_in_hand_finish_and_turns_the_others_away():
    model = Gate()
    running = Batcher(model.predict, 1, 0.0, PATIENCE)
    with ThreadPoolExecutor(3) as pool:
        in_hand = pool.submit(infer, running, canvas(1))
        assert model.busy.wait(PATIENCE)
        queued = pool.submit(infer, running, canvas(2))
        closing = pool.submit(running.close)
        while not running._closed:
            time.sleep(0.001)
        model.open.set()
        closing.result(PATIENCE)
        assert side(in_hand.result(PATIENCE)) == 1
        assert isinstance(queued.exception(PATIENCE), DetectorUnavailable)
    with pytest.raises(DetectorUnavailable, match="shut down"):
        running.infer([canvas(3)])


def test_closing_twice_is_harmless():
    running = Batcher(Model().predict, 1, 0.0, PATIENCE)
    running.close()
    running.close()
    with pytest.raises(DetectorUnavailable):
        running.infer([canvas(1)])


def test_a_canvas_is_not_modified():
    pixels = canvas(5)
    with batcher(Model().predict) as running:
        running.infer([pixels])
    assert np.array_equal(pixels, canvas(5))


def test_an_error_that_says_who_must_act_is_passed_on_as_it_is():
    def full(batch):
        raise DetectorUnavailable("no memory left")

    with batcher(full) as one, pytest.raises(DetectorUnavailable, match="no memory left"):
        one.infer([canvas(1)])


def test_the_canvases_of_one_picture_form_batches():
    model = Model()
    with batcher(model.predict, max_size=4, max_wait=PATIENCE) as running:
        canvases = [canvas(1), canvas(2, 8, 8), *(canvas(value) for value in (3, 4, 5))]
        canvases += [canvas(value, 8, 8) for value in (6, 7, 8)]
        assert [side(found) for found in running.infer(canvases)] == list(range(1, 9))
    assert model.values() == [[1, 3, 4, 5], [2, 6, 7, 8]]


def test_a_picture_with_one_canvas_that_fails_fails_and_nobody_computes_the_rest():
    model, failed = Model(), threading.Event()

    def predict(batch):
        if batch[0, 0, 0, 0] == 2:
            assert failed.wait(PATIENCE)
        return model.predict(batch)

    with batcher(predict, max_size=1) as running:
        with pytest.raises(DetectionFailed, match="poisoned"):
            running.infer([canvas(POISON), canvas(2), canvas(3)])
        failed.set()
    assert [3] not in model.values()


class Small(Model):
    """A model on a device with memory for so many pixels at once."""

    def __init__(self, pixels):
        super().__init__()
        self._pixels = pixels
        self.refused = []

    def predict(self, batch):
        if batch[..., 0].size > self._pixels:
            self.refused.append(len(batch))
            raise DeviceFull("no memory left")
        return super().predict(batch)


def test_a_batch_that_the_device_has_no_memory_for_is_halved_and_none_as_large_follows():
    model = Small(2 * 4 * 6)
    with batcher(model.predict, max_size=8, max_wait=0.01) as running:
        for _ in range(3):
            found = running.infer([canvas(value) for value in range(1, 9)])
            assert [side(one) for one in found] == list(range(1, 9))
    assert model.refused == [8, 4, 4]
    assert {len(batch) for batch in model.batches} == {2}


def test_smaller_canvases_still_form_larger_batches_after_that():
    model = Small(2 * 8 * 12)
    with batcher(model.predict, max_size=8, max_wait=0.01) as running:
        running.infer([canvas(value, 8, 12) for value in range(1, 9)])
        running.infer([canvas(value, 4, 6) for value in range(1, 9)])
    assert max(len(batch) for batch in model.batches if batch.shape[1:3] == (4, 6)) == 8
    assert max(len(batch) for batch in model.batches if batch.shape[1:3] == (8, 12)) == 2


def test_a_canvas_that_the_device_has_no_memory_for_is_tried_again_later():
    with (
        batcher(Small(1).predict, max_size=2) as running,
        pytest.raises(DetectorUnavailable, match="no memory left"),
    ):
        running.infer([canvas(1), canvas(2)])
