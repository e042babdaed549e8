"""Ports of local servers: several processes take them at once."""

import subprocess
import sys

import pytest

TAKE_ALL = """
from tools.local import servers

servers.PORTS = range(21_000, 21_040)
try:
    for _ in range(600):
        print(servers.free_port(), flush=True)
except servers.ServerFailed:
    pass
print("none", flush=True)
input()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ports are reserved on Linux")
def test_no_port_is_given_to_two_processes(repository):
    children = [
        subprocess.Popen(
            [sys.executable, "-c", TAKE_ALL],
            cwd=repository,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        ports = []
        for child in children:
            while (line := child.stdout.readline().strip()) != "none":
                assert line, "the process ended early"
                ports.append(line)
    finally:
        for child in children:
            child.communicate("\n", timeout=60)

    assert ports
    assert len(ports) == len(set(ports))
