"""The exit codes of the ``veil`` command."""

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit code of a command, which scripts and supervisors may rely on."""

    # Everything that was asked for is done, or a worker stopped after finishing its pictures.
    OK = 0

    # A picture or a check failed, and the output names it. A worker ends with this code if it
    # could not start, or if it gave unfinished pictures back to the queue.
    FAILED = 1

    # Nothing was done: an argument, a setting or the model is wrong, or a server is unreachable.
    # Typer ends with the same code when it can't parse the command line.
    UNUSABLE = 2

    # A backfill ended early: by SIGTERM, or because another process has taken its run over.
    STOPPED = 3

    # The watchdog of a worker ended the process, because a picture or a batch took too long. The
    # messages in hand are delivered again.
    STALLED = 70

    # Ctrl-C: 128 + SIGINT, as shells report it.
    INTERRUPTED = 130

    @classmethod
    def ok_if(cls, is_complete: bool) -> "ExitCode":
        """Return OK, or FAILED if something did not succeed."""
        return cls.OK if is_complete else cls.FAILED
