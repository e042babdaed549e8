"""What can go wrong with a picture, named by who must act.

    VeilError
      Transient             try again later: the picture is fine, a server is not
        StorageUnavailable    S3 is down, slow or throttling CredentialsRefused    S3 knows the
        credentials no more, or there are none: an operator must act DestinationUnavailable  the
        destination's bucket is missing, or may not be written: an operator must act SourceChanged
        the source was replaced while it was in work: the new one is taken next Busy
        another message for the same output is worked on, or a picture is worked on alone
        DetectorUnavailable   the detector did not answer within its deadline, or its device is out
        of memory QueueUnavailable      Redis can't be reached, or refuses us EventsUnavailable
        the queue that events come from can't be reached
      Permanent             trying again changes nothing: somebody has to look
        InvalidRequest        the message is not a valid request MalformedMessage      what lay on
        the queue is no task message that a worker takes: its sender must act MalformedEvent
        what was sent is no event of an object store BucketNotAllowed      the message names a place
        outside the routes ObjectNotFound        the key or the bucket does not exist AccessDenied
        the credentials do not allow to read it StorageRejected       S3 refused the call for
        another reason RunTakenOver          another process goes on with this run of a backfill
        DestinationTaken      the output key already holds the output of another source EmptyObject
        the object has no bytes UnreadableImage       not a picture, or damaged UnsupportedImage
        a picture of a kind that is not handled ImageTooLarge         over the limits of bytes or
        pixels DetectionFailed       the model failed on this very picture Poison
        processes died at work on it, again and again ModelInvalid          the model is missing or
        does not follow the contract DatasetInvalid        labelled pictures that can't be trained
        on TrainingFailed        training can't go on as it was asked for RunUnknown
        Redis knows no backfill of that name OutputFailed          a local output can't be written
        SettingsInvalid       a setting is wrong

Every class takes one message (keyword-only constructors do not survive Celery's result backend).
A message is one line that says what to do, and never holds a credential.
"""

import re

LONGEST_MESSAGE = 200  # characters of an error that is none of these
DATA = re.compile(
    r"""\bb(['"])(?:\\.|(?!\1).)*(?:\1|$)"""  # bytes as Python writes them, whole or cut off
    r"""|(?:[\[(]*-?\d[\d.e+-]*[\])]*[,\s]+){8,}""",  # an array's values
    re.DOTALL,
)


class VeilError(Exception):
    """Anything Veil reports by name."""

    def __init__(self, message: str = "") -> None:
        super().__init__(" ".join(str(message).split()))


class Transient(VeilError):
    """Worth another try after a pause."""


class StorageUnavailable(Transient):
    """S3 is down, slow or throttling. `retry_after` is the pause, in seconds, that it asked for."""

    retry_after: float | None = None


class CredentialsRefused(Transient):
    """S3 knows the credentials no more, or there are none."""


class DestinationUnavailable(Transient):
    """The destination's bucket is missing, or may not be written."""


class SourceChanged(Transient):
    """The source was replaced while it was in work."""


class Busy(Transient):
    """Somebody else is at work where this picture's work would be."""


class DetectorUnavailable(Transient):
    """The detector did not answer within its deadline."""


class QueueUnavailable(Transient):
    """Redis can't be reached, or refuses us."""


class EventsUnavailable(Transient):
    """The queue that events come from can't be reached."""


class Permanent(VeilError):
    """Trying again changes nothing."""


class InvalidRequest(Permanent):
    """The message is not a valid request."""


class MalformedMessage(Permanent):
    """What lay on the queue is no task message that a worker takes."""


class MalformedEvent(Permanent):
    """What was sent is no event of an object store."""


class BucketNotAllowed(Permanent):
    """The message names a place outside the routes."""


class ObjectNotFound(Permanent):
    """The key or the bucket does not exist."""


class AccessDenied(Permanent):
    """The credentials do not allow to read it."""


class StorageRejected(Permanent):
    """S3 refused the call for a reason that a retry will not change."""


class RunTakenOver(Permanent):
    """Another process goes on with this run of a backfill."""


class DestinationTaken(Permanent):
    """The output key already holds the output of another source."""


class EmptyObject(Permanent):
    """The object has no bytes."""


class UnreadableImage(Permanent):
    """Not a picture, or damaged."""


class UnsupportedImage(Permanent):
    """A picture of a kind that is not handled."""


class ImageTooLarge(Permanent):
    """Over the limits of bytes or pixels."""


class DetectionFailed(Permanent):
    """The model failed on this very picture."""


class Poison(Permanent):
    """Processes died at work on it, again and again."""


class ModelInvalid(Permanent):
    """The model is missing or does not follow the contract."""


class DatasetInvalid(Permanent):
    """Labelled pictures that can't be trained on."""


class TrainingFailed(Permanent):
    """Training can't go on as it was asked for."""


class RunUnknown(Permanent):
    """Redis knows no backfill of that name."""


class OutputFailed(Permanent):
    """A local output can't be written."""


class SettingsInvalid(Permanent):
    """A setting is wrong."""


def without_data(error: Exception) -> Exception:
    """Return an error like `error`, with its traceback and a short text, and without bytes and
    values of arrays.

    Libraries put what they choke on into their errors, and Celery writes an error's arguments into
    its log and the result: a UnicodeDecodeError, for one, holds all the bytes that were decoded.
    """
    text = DATA.sub("(data)", str(error)[: 10 * LONGEST_MESSAGE])[:LONGEST_MESSAGE]
    try:
        same = type(error)(text)
    except Exception:  # the class takes other arguments
        same = RuntimeError(f"{type(error).__name__}: {text}")
    return same.with_traceback(error.__traceback__)
