"""The alert rules, evaluated by Prometheus on made-up series."""

import subprocess


def test_each_alert_fires_when_it_should_and_not_before(repository, system_program):
    done = subprocess.run(
        [system_program("promtool"), "test", "rules", "alerts.test.yml"],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=repository / "docker",
    )
    assert done.returncode == 0, done.stdout + done.stderr
