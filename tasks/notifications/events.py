"""Outcomes as CloudEvents 1.0 in their JSON format."""

import uuid
from datetime import UTC, datetime
from typing import Any

from ..messages import AnonymizeReport
from ..records.dead_letters import DeadLetter

CONTENT_TYPE = "application/cloudevents+json"
TYPE = "veil.picture.{}"  # formatted with the outcome
LEFT_OUT = ("boxes_xyxy", "left_xyxy", "status", "source")  # of a report; receipts have the boxes
MAX_MESSAGE_CHARACTERS = 1100

Event = dict[str, Any]


def of_report(report: AnonymizeReport, task_id: str) -> Event:
    """Return the event of a picture that was anonymized, skipped or held."""
    fields = {name: value for name, value in report.to_json().items() if name not in LEFT_OUT}
    return _event(report.status, report.source, {"task_id": task_id, **fields})


def of_letter(letter: DeadLetter) -> Event:
    """Return the event of a picture that became a dead letter."""
    data = {
        "task_id": letter.task_id,
        "destination": letter.destination,
        "error": letter.error,
        "message": letter.message[:MAX_MESSAGE_CHARACTERS],
        "attempts": letter.attempts,
    }
    return _event("dead", letter.source, data)


def _event(outcome: str, source: str, data: dict[str, Any]) -> Event:
    return {
        "specversion": "1.0",
        "id": str(uuid.uuid4()),
        "source": "veil",
        "type": TYPE.format(outcome),
        "subject": source,
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "datacontenttype": "application/json",
        "data": {"outcome": outcome, "source": source, **data},
    }
