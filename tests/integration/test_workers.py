"""``veil worker --workers 2``: two workers from one command share the queue, and stop together."""

import signal
import urllib.request

from tools.local.servers import HOST, free_port


def test_several_workers_share_the_queue_and_stop_with_their_command(
    unattended, worker_settings, start_worker, programs, raw, portrait, place, wait_until
):
    port = free_port()
    environment = {**worker_settings(unattended), "VEIL_METRICS": f"{HOST}:{port}"}
    with start_worker([programs / "veil", "worker", "--workers", "2"], environment) as workers:
        wait_until(lambda: len(workers.lines("worker ready")) == 2, 90)
        names = {line["worker"].partition("@")[0] for line in workers.lines("worker ready")}
        assert names == {"worker1", "worker2"}
        for number in range(4):
            source = raw.put(f"{place}{number}.jpg", portrait)
            assert unattended.report(source)["status"] == "anonymized"
        pages = []
        for own in (port, port + 1):
            with urllib.request.urlopen(f"http://{HOST}:{own}/metrics", timeout=10) as page:
                pages.append(page.read().decode())
        assert all("veil_worker_heartbeat" in page for page in pages)

        workers.server.process.send_signal(signal.SIGTERM)

        assert workers.server.process.wait(60) == 0
    assert not unattended.client.hlen("unacked")
