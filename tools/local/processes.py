"""The processes of a machine, from /proc."""

from pathlib import Path


def children(pid: int) -> list[int]:
    """Return the process IDs of the children of a process; none if it has ended."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        lists = [(thread / "children").read_text() for thread in threads]
    except OSError:
        return []
    return [int(child) for children in lists for child in children.split()]
