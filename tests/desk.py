"""A running review desk, and a client that speaks to it as its page does."""

import http.cookiejar
import json
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field

from tools.local.servers import HOST, Server, free_port

TOKEN_LINE = re.compile(r"(http\S+)/login#token=(\S+)  for (.+), once")
START_SECONDS = 60


class Desk:
    """``veil review serve`` as a process, with the tokens that it printed."""

    def __init__(self, programs, folder, environment, *arguments, reviewers=("ana", "ben")):
        self.address = f"http://{HOST}:{(port := free_port())}"
        command = [programs / "veil", "review", "serve", *arguments, "--http", f"{HOST}:{port}"]
        for name in reviewers:
            command += ["--reviewer", name]
        self.log = folder / "desk.log"
        environment = {**environment, "PYTHONUNBUFFERED": "1"}
        self.server = Server("review desk", [str(part) for part in command], self.log, environment)

    def __enter__(self):
        self.server.start()
        deadline = time.monotonic() + START_SECONDS
        while True:
            self.server.check_alive()
            try:
                urllib.request.urlopen(f"{self.address}/login", timeout=5).close()
                return self
            except urllib.error.HTTPError as refusal:
                refusal.close()
                return self
            except OSError:
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.2)

    def __exit__(self, *_):
        self.server.stop()

    @property
    def logins(self):
        """The address to log in at, by reviewer."""
        lines = TOKEN_LINE.findall(self.log.read_text())
        return {name: f"{address}/login#token={token}" for address, token, name in lines}

    def token(self, reviewer):
        return self.logins[reviewer].partition("token=")[2]

    def client(self, reviewer):
        """A client that is logged in."""
        client = Client(self.address)
        client.get("/login")
        assert client.post("/login", {"secret": self.token(reviewer), "name": ""}).status == 200
        return client


@dataclass
class Answer:
    status: int
    headers: dict = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def json(self):
        return json.loads(self.body)


class Client:
    """A browser without a window: it keeps cookies, and follows no redirect."""

    def __init__(self, address, **headers):
        self.address = address
        self.headers = headers
        self.cookies = http.cookiejar.CookieJar()
        self.xsrf = ""

        class NoRedirect(urllib.request.HTTPRedirectHandler):
            def redirect_request(self, *_):
                return None

        cookies = urllib.request.HTTPCookieProcessor(self.cookies)
        self._opener = urllib.request.build_opener(cookies, NoRedirect)

    def get(self, path, **headers):
        answer = self._send(urllib.request.Request(self.address + path), headers)
        if found := re.search(rb'name="xsrf" content="([^"]+)"', answer.body):
            self.xsrf = found[1].decode()
        return answer

    def post(self, path, fields=None, **headers):
        request = urllib.request.Request(
            self.address + path, json.dumps(fields or {}).encode(), method="POST"
        )
        return self._send(request, {"X_Xsrftoken": self.xsrf, **headers})

    def send(self, method, path, **headers):
        return self._send(urllib.request.Request(self.address + path, method=method), headers)

    def _send(self, request, headers):
        for name, value in {**self.headers, **headers}.items():
            if value is not None:
                request.add_header(name.replace("_", "-"), value)
        try:
            with self._opener.open(request, timeout=30) as answer:
                return Answer(answer.status, dict(answer.headers), answer.read())
        except urllib.error.HTTPError as answer:
            with answer:
                return Answer(answer.code, dict(answer.headers), answer.read())
