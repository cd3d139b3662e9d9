"""HTTP by the standard library alone, on the listeners portpool hands over.

    portpool exec api-server -- python3 examples/python/http_server.py
    curl http://localhost:9000/
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FIRST_FD = 3
DRAIN_SECONDS = 1.0


class Answer(BaseHTTPRequestHandler):
    timeout = 5  # A silent client gives its thread back after this.

    def do_GET(self):
        instance = os.environ.get("PORTPOOL_INSTANCE")
        body = json.dumps({
            "service": "http_server.py",
            "port": self.connection.getsockname()[1],
            "pid": os.getpid(),
            "instance": int(instance) if instance else None,
        }).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class HandedServer(ThreadingHTTPServer):
    """A server whose socket is bound and listening already."""

    def __init__(self, fd):
        super().__init__(("", 0), Answer, bind_and_activate=False)
        self.socket.close()  # The one the base class made.
        self.socket = socket.socket(fileno=fd)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]


def handed_fds():
    if os.environ.get("LISTEN_PID", str(os.getpid())) != str(os.getpid()):
        return range(0)
    return range(FIRST_FD, FIRST_FD + int(os.environ.get("LISTEN_FDS", 0)))


def main():
    # Waited for below, and by no handler: one that sets an Event can lock itself out.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    servers = [HandedServer(fd) for fd in handed_fds()]
    if not servers:
        sys.exit("http_server.py: no listener in LISTEN_FDS: run it under `portpool exec POOL --`")
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    signal.sigwait({signal.SIGTERM})
    for server in servers:
        server.shutdown()  # Ends the loop; the socket is not touched.
    deadline = time.monotonic() + DRAIN_SECONDS
    for thread in set(threading.enumerate()) - {threading.main_thread()}:
        thread.join(max(0.0, deadline - time.monotonic()))


if __name__ == "__main__":
    main()
