"""A sentinel that names any server the primary."""

import contextlib
import socketserver
import threading

from tools.local.sentinels import SERVICE
from tools.local.servers import HOST


class LyingSentinel(socketserver.ThreadingTCPServer):
    """A sentinel that names `port` the primary, of the configuration `epoch`.

    With an SSL `context`, it speaks TLS.
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port, epoch, context=None):
        super().__init__((HOST, 0), LyingHandler)
        if context:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.answer = state(port, epoch)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def server_close(self):
        # Its thread would go on with a closed socket, and spin once the descriptor is another's.
        self.shutdown()
        super().server_close()

    @property
    def address(self):
        return HOST, self.server_address[1]


class LyingHandler(socketserver.StreamRequestHandler):
    def handle(self):
        with contextlib.suppress(OSError):
            while line := self.rfile.readline():
                words = []
                for _ in range(int(line[1:])):
                    length = int(self.rfile.readline()[1:])
                    words.append(self.rfile.read(length + 2)[:-2])
                if words[0].upper() == b"SENTINEL":
                    self.wfile.write(self.server.answer)
                elif words[0].upper() == b"HELLO":
                    self.wfile.write(b"-ERR unknown command\r\n")
                else:
                    self.wfile.write(b"+OK\r\n")


def state(port, epoch):
    fields = {
        "name": SERVICE,
        "ip": HOST,
        "port": port,
        "flags": "master",
        "config-epoch": epoch,
        "num-other-sentinels": 2,
    }
    words = [str(word) for pair in fields.items() for word in pair]
    texts = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
    return f"*{len(words)}\r\n{texts}".encode()
