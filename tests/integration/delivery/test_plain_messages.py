"""Messages that a program without Celery pushes to Redis, as docs/enqueue.md shows them."""

import json
import re
import uuid

import pytest

SECTION = re.compile(r"^## From other languages\n(.*?)^## ", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```json\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLE_SOURCE = "s3://camera-uploads/a/b.jpg"
EXAMPLE_ID = "0b6f0c5e-57f5-4a6b-9f0c-2b7a3a1d9e10"


@pytest.fixture
def blocks(repository):
    (section,) = SECTION.findall((repository / "docs" / "enqueue.md").read_text())
    return BLOCK.findall(section)


@pytest.fixture
def push(queue, blocks, wait_until):
    """Push the documented message for `source`, and return the result that its key then holds."""

    def push(source, replace=lambda message: message):
        task_id = str(uuid.uuid4())
        message = blocks[0]
        assert message.count(EXAMPLE_SOURCE) == message.count(EXAMPLE_ID) == 1
        message = message.replace(EXAMPLE_SOURCE, source).replace(EXAMPLE_ID, task_id)
        queue.client.lpush("uploads", replace(message).encode())
        return wait_until(lambda: final_result(task_id), 60)

    def final_result(task_id):
        result = json.loads(queue.client.get(f"celery-task-meta-{task_id}") or "{}")
        return result if result.get("status") in ("SUCCESS", "FAILURE") else None

    return push


def test_the_documented_message_is_anonymized(worker, raw, clean, place, portrait, push, blocks):
    source = raw.put(f"{place}a.jpg", portrait)
    result = push(source)
    documented = json.loads(blocks[1])
    assert result["status"] == documented["status"] == "SUCCESS"
    assert result["result"].keys() >= documented["result"].keys()
    assert result["result"]["status"] == "anonymized"
    assert result["result"]["destination"] == clean.uri(f"{place}a.jpg")
    assert result["result"]["options"] == {"region": 1.0}
    assert clean.open(f"{place}a.jpg").format == "JPEG"


def test_the_optional_field_can_be_left_out_and_the_message_written_in_one_line(
    worker, raw, place, portrait, push
):
    def shorten(message):
        fields = json.loads(message)
        del fields["headers"]["veil_queued_at"]
        return json.dumps(fields, separators=(",", ":"))

    assert push(raw.put(f"{place}a.jpg", portrait), shorten)["status"] == "SUCCESS"


def test_an_error_has_a_name_and_one_line(worker, raw, place, push):
    result = push(raw.put(f"{place}a.jpg", b"no picture"))
    assert (result["status"], result["result"]["exc_type"]) == ("FAILURE", "UnreadableImage")
    (line,) = result["result"]["exc_message"]
    assert line


@pytest.mark.parametrize("field", ["body", "content-type", "headers", "properties"])
def test_every_other_field_of_the_example_is_required(worker, raw, place, portrait, push, field):
    def without(message):
        fields = json.loads(message)
        task_id = fields["headers"]["id"]
        del fields[field]
        if field == "headers":  # The id tells a waiting program that its message was refused.
            fields["properties"]["correlation_id"] = task_id
        return json.dumps(fields)

    result = push(raw.put(f"{place}a.jpg", portrait), without)
    assert (result["status"], result["result"]["exc_type"]) == ("FAILURE", "MalformedMessage")
