"""Pictures through a real worker process with the real queue, S3 and default model."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from itertools import groupby

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

GPS_IFD = 0x8825
SAMPLES = {
    "gallery.jpg": "JPEG",
    "hallway.png": "PNG",
    "office.webp": "WEBP",
    "sideways.jpg": "JPEG",
}
FACES = {"gallery.jpg": 16, "hallway.png": 8, "office.webp": 1, "sideways.jpg": 1}
CONTENT_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
STAGES = ["fetching", "decoding", "detecting", "masking", "encoding", "storing"]


def upright(image):
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"), np.int16)


def change_inside(before, after, box):
    """Return the mean change, in levels, of the middle of the face's upper half."""
    x1, y1, x2, y2 = box
    width, height = x2 - x1, y2 - y1
    rows = slice(y1 + height // 5, y1 + height * 3 // 5)
    columns = slice(x1 + width // 5, x2 - width // 5)
    return np.abs(before[rows, columns] - after[rows, columns]).mean()


def far_from(boxes, shape):
    """Return a mask of the pixels outside of all boxes, which are grown by their own size."""
    far = np.ones(shape[:2], bool)
    for x1, y1, x2, y2 in boxes:
        width, height = x2 - x1, y2 - y1
        far[max(0, y1 - height) : y2 + height, max(0, x1 - width) : x2 + width] = False
    return far


@pytest.mark.parametrize("name", SAMPLES)
def test_a_picture_comes_out_in_its_format_with_every_face_hidden(
    worker, queue, raw, clean, samples, place, name
):
    source = raw.put(place + name, samples[name].read_bytes())
    with Image.open(samples[name]) as image:
        before = upright(image)

    report = queue.report(source)

    with clean.open(place + name) as image:
        assert image.format == SAMPLES[name] == report["format"]
        assert set(image.getexif()) <= {ExifTags.Base.Orientation}
        after = upright(image)
    assert after.shape == before.shape == (report["height"], report["width"], 3)
    assert report["status"] == "anonymized"
    assert (report["source"], report["destination"]) == (source, clean.uri(place + name))
    assert report["faces"] == len(report["boxes_xyxy"]) == FACES[name]
    for box in report["boxes_xyxy"]:
        assert change_inside(before, after, box) > 4
    far = far_from(report["boxes_xyxy"], before.shape)
    lossless = SAMPLES[name] == "PNG"
    assert np.abs(before - after)[far].mean() <= (0 if lossless else 3)


def test_an_output_says_where_it_comes_from(worker, queue, raw, clean, samples, place):
    key = place + "写真 +%.jpg"
    source = raw.put(key, samples["admiral.jpg"].read_bytes())
    report = queue.report(source)

    head = clean.head(key)

    assert head["ContentType"] == CONTENT_TYPES["JPEG"]
    assert head["ContentLength"] == report["bytes_out"]
    assert raw.head(key)["ContentLength"] == report["bytes_in"]
    metadata = head["Metadata"]
    assert metadata["veil-source-sha256"] == hashlib.sha256(source.encode()).hexdigest()
    assert metadata["veil-source-etag"] == raw.head(key)["ETag"].strip('"')
    assert metadata["veil-recipe"] == report["recipe"]
    assert metadata["veil-faces"] == str(report["faces"])


def test_where_a_picture_was_taken_never_comes_out(worker, queue, raw, clean, samples, place):
    with Image.open(samples["sideways.jpg"]) as image:
        assert image.getexif().get_ifd(GPS_IFD), "the sample must carry a position"
    queue.report(raw.put(place + "a.jpg", samples["sideways.jpg"].read_bytes()))

    content = clean.get(place + "a.jpg")

    assert content.count(b"Exif") == 1
    with clean.open(place + "a.jpg") as image:
        assert set(image.getexif()) == {ExifTags.Base.Orientation}
        assert not image.getexif().get_ifd(GPS_IFD)


def test_development_pictures_come_out_with_every_labelled_face_hidden(
    worker, queue, raw, clean, data, place
):
    folder = data("seed")
    labels = json.loads((folder / "annotations.json").read_text())["images"]
    (item,) = (item for item in labels if item["file"] == "images/input_4.jpg")
    content = (folder / item["file"]).read_bytes()

    queue.report(raw.put(place + "a.jpg", content))

    with Image.open(folder / item["file"]) as image, clean.open(place + "a.jpg") as output:
        before, after = upright(image), upright(output)
    changes = [change_inside(before, after, [round(side) for side in box]) for box in item["faces"]]
    assert len(changes) == 9
    assert min(changes) > 4


def test_a_source_is_never_touched(worker, queue, raw, portrait, place):
    source = raw.put(place + "a.jpg", portrait)
    before = raw.head(place + "a.jpg")

    queue.report(source)

    after = raw.head(place + "a.jpg")
    assert raw.get(place + "a.jpg") == portrait
    assert (after["ETag"], after["LastModified"]) == (before["ETag"], before["LastModified"])


def test_a_request_may_ask_for_more_than_the_settings_say_and_its_output_carries_its_own_recipe(
    worker, queue, raw, clean, portrait, place
):
    source = raw.put(place + "a.jpg", portrait)
    plain = queue.report(source)
    asked = {"method": "fill", "region": "full", "extra": [[0, 0, 12, 9]]}

    report = queue.report(source, options=asked)

    assert report["status"] == "anonymized"
    assert report["recipe"] != plain["recipe"]
    assert clean.head(place + "a.jpg")["Metadata"]["veil-recipe"] == report["recipe"]
    with clean.open(place + "a.jpg") as image:
        after = upright(image)
    ((x1, y1, x2, y2),) = report["boxes_xyxy"]
    assert after[y1 + 4 : y2 - 4, x1 + 4 : x2 - 4].max() < 40
    assert after[:8, :8].max() < 40
    assert report["recipe"].partition("-")[0] == plain["recipe"]
    assert queue.report(source, options=asked)["status"] == "skipped"
    assert queue.report(source, options={})["recipe"] == plain["recipe"]


def test_a_face_in_an_exempt_area_stays_clear(worker, queue, raw, clean, portrait, place):
    source = raw.put(place + "a.jpg", portrait)

    report = queue.report(source, options={"exempt": [[0, 0, 220, 220]]})

    assert (report["status"], report["faces"]) == ("anonymized", 0)
    with clean.open(place + "a.jpg") as image, raw.open(place + "a.jpg") as before:
        assert np.abs(upright(image) - upright(before)).mean() < 3


@pytest.mark.parametrize(
    "shown",
    [{"exempt": [[0, 0, 220, 220]]}, {"rules": {"FACE": {"smallest": 1000}}}],
    ids=["area", "rule"],
)
def test_what_was_to_stay_clear_in_a_picture_is_hidden_in_its_successor(
    worker, queue, raw, portrait, place, shown
):
    source = raw.put(place + "a.jpg", portrait)
    etag = raw.head(place + "a.jpg")["ETag"].strip('"')
    raw.put(place + "a.jpg", portrait + b" ")  # another version, with a face in the same place

    report = queue.report(source, options={**shown, "version": etag})

    assert (report["status"], report["faces"]) == ("anonymized", 1)


def test_a_picture_that_was_done_is_skipped_and_its_output_is_not_written_again(
    worker, queue, raw, clean, portrait, place
):
    source = raw.put(place + "a.jpg", portrait)
    assert queue.report(source)["status"] == "anonymized"
    before = clean.head(place + "a.jpg")

    report = queue.report(source)

    assert report["status"] == "skipped"
    assert report["destination"] == clean.uri(place + "a.jpg")
    after = clean.head(place + "a.jpg")
    assert (after["ETag"], after["LastModified"]) == (before["ETag"], before["LastModified"])


def test_a_source_that_changed_is_done_again(worker, queue, raw, clean, portrait, samples, place):
    source = raw.put(place + "a.jpg", portrait)
    queue.report(source)
    raw.put(place + "a.jpg", samples["admiral.jpg"].read_bytes())

    report = queue.report(source)

    assert report["status"] == "anonymized"
    assert clean.head(place + "a.jpg")["Metadata"]["veil-source-etag"] == raw.head(place + "a.jpg")[
        "ETag"
    ].strip('"')
    with clean.open(place + "a.jpg") as image, Image.open(samples["admiral.jpg"]) as expected:
        assert image.size == expected.size


def test_an_output_goes_where_the_message_says(worker, queue, raw, clean, portrait, place):
    source = raw.put(place + "a.jpg", portrait)

    report = queue.report(source, destination=clean.uri(place + "elsewhere/b.jpg"))

    assert report["destination"] == clean.uri(place + "elsewhere/b.jpg")
    assert clean.keys(place) == [place + "elsewhere/b.jpg"]


def test_one_picture_asked_for_many_times_at_once_is_one_good_output(
    worker, queue, raw, clean, portrait, place
):
    source = raw.put(place + "a.jpg", portrait)

    reports = [result.get(timeout=60) for result in [queue.send(source) for _ in range(6)]]

    assert {report["status"] for report in reports} <= {"anonymized", "skipped"}
    assert clean.keys(place) == [place + "a.jpg"]
    with clean.open(place + "a.jpg") as image:
        image.load()


def test_a_producer_loads_nothing_heavy_and_gets_its_report(
    worker, environment, raw, clean, portrait, place
):
    source = raw.put(place + "a.jpg", portrait)
    script = """
import json, sys
from tasks import anonymize_image
result = anonymize_image.delay(sys.argv[1])
heavy = sorted({"tensorflow", "cv2", "PIL", "numpy", "onnx", "worker"} & set(sys.modules))
print(json.dumps({"heavy": heavy, "report": result.get(timeout=60)}))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, source],
        check=True,
        capture_output=True,
        text=True,
        timeout=90,
        env={**os.environ, **environment},
    )

    printed = json.loads(done.stdout)
    assert printed["heavy"] == []
    assert printed["report"]["status"] == "anonymized"
    assert clean.keys(place) == [place + "a.jpg"]


def test_every_stage_is_an_event_in_its_order(worker, queue, raw, portrait, place, wait_until):
    source = raw.put(place + "a.jpg", portrait)
    events = []
    listening = threading.Event()

    def hear(event):
        events.append(event)
        listening.set()

    with queue.app.connection_for_read() as connection:
        receiver = queue.app.events.Receiver(connection, handlers={"*": hear})
        listener = threading.Thread(
            target=lambda: receiver.capture(limit=None, timeout=None), daemon=True
        )
        listener.start()
        assert listening.wait(30), "a worker answers a new listener with a heartbeat"
        result = queue.send(source)
        result.get(timeout=60)
        wait_until(
            lambda: any(e["type"] == "task-succeeded" and e["uuid"] == result.id for e in events)
        )
        receiver.should_stop = True
        listener.join(30)

    types = [event["type"] for event in events if event.get("uuid") == result.id]
    # Celery sends its own events in batches, so only the order of the stages is certain.
    assert [kind for kind in types if kind.removeprefix("task-") in STAGES] == [
        f"task-{stage}" for stage in STAGES
    ]
    assert {"task-received", "task-started", "task-succeeded"} <= set(types)
    state = queue.app.events.State()
    shown = []
    for event in events:
        state.event(event)
        if event.get("uuid") == result.id:
            shown.append(state.tasks[result.id].state)
    stages = groupby(name for name in shown if name.lower() in STAGES)
    assert [name for name, _ in stages] == [stage.upper() for stage in STAGES]
    assert shown[-1] == "SUCCESS"


def test_each_outcome_is_one_line_of_the_log(worker, queue, raw, portrait, place, wait_until):
    source, missing = raw.put(place + "a.jpg", portrait), raw.uri(place + "missing.jpg")
    report = queue.report(source)
    queue.outcome(queue.send(missing))
    wait_until(lambda: worker.lines(source=missing))

    (line,) = worker.lines(source=source)
    assert line["event"] == "anonymized"
    assert line["faces"] == report["faces"]
    assert line["destination"] == report["destination"]
    assert set(line["seconds"]) == {"fetch", "decode", "detect", "mask", "encode", "store"}
    assert line["total"] >= max(line["seconds"].values())
    (line,) = worker.lines(source=missing)
    assert (line["event"], line["error"]) == ("dead", "ObjectNotFound")


def test_no_secret_is_in_the_log(worker, queue, raw, portrait, place, secrets_of_this_run):
    queue.report(raw.put(place + "a.jpg", portrait))
    queue.outcome(queue.send(raw.uri(place + "missing.jpg")))

    assert len(worker.log) > 0
    for secret in secrets_of_this_run:
        assert secret not in worker.log


def test_one_message_is_one_piece_of_work_in_either_queue(
    worker, queue, raw, portrait, place, wait_until
):
    for name in ("uploads", "backfill"):
        source = raw.put(f"{place}{name}.jpg", portrait)
        result = queue.app.send_task("veil.anonymize_image", (source,), queue=name)
        result.get(timeout=60)

    wait_until(lambda: not queue.client.llen("uploads") and not queue.client.llen("backfill"))
    wait_until(lambda: not queue.client.hlen("unacked"))
    for name in ("uploads", "backfill"):
        (line,) = worker.lines(source=raw.uri(f"{place}{name}.jpg"))
        assert line["event"] == "anonymized"
