"""A Flask application on the listeners portpool hands over: werkzeug takes an inherited one by `fd`.

    pip install -r examples/python/requirements.txt
    portpool exec api-server -- python3 examples/python/flask_app.py
    curl http://localhost:9000/

`flask run` has no such option, but gunicorn reads LISTEN_FDS by itself:
`portpool exec api-server -- gunicorn flask_app:app`.
"""

import os
import signal
import socket
import sys
import threading

from flask import Flask, jsonify, request
from werkzeug.serving import make_server

FIRST_FD = 3

app = Flask(__name__)


@app.get("/")
def describe():
    instance = os.environ.get("PORTPOOL_INSTANCE")
    connection = request.environ.get("werkzeug.socket") or request.environ["gunicorn.socket"]
    return jsonify(
        service="flask_app.py",
        port=connection.getsockname()[1],
        pid=os.getpid(),
        instance=int(instance) if instance else None,
    )


def handed_server(fd):
    with socket.socket(fileno=fd) as handed:  # werkzeug goes on with a copy of its own.
        host, port = handed.getsockname()[:2]
        return make_server(host, port, app, threaded=True, fd=fd)


def handed_fds():
    if os.environ.get("LISTEN_PID", str(os.getpid())) != str(os.getpid()):
        return range(0)
    return range(FIRST_FD, FIRST_FD + int(os.environ.get("LISTEN_FDS", 0)))


def main():
    # Waited for below, and by no handler: one that sets an Event can lock itself out.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    servers = [handed_server(fd) for fd in handed_fds()]
    if not servers:
        sys.exit("flask_app.py: no listener in LISTEN_FDS: run it under `portpool exec POOL --`")
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    signal.sigwait({signal.SIGTERM})
    for server in servers:
        server.shutdown()


if __name__ == "__main__":
    main()
