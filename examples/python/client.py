"""A client of the agent by the standard library alone: takes a slot, serves one HTTP answer over it.

    python3 examples/python/client.py /run/portpool/portpool.sock api-server
"""

import json
import os
import pwd
import socket
import struct
import sys

path, pool = sys.argv[1:]
agent = socket.socket(socket.AF_UNIX)
agent.connect(path)
_, uid, _ = struct.unpack("iII", agent.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
if uid not in {0, os.geteuid(), *(user.pw_uid for user in pwd.getpwall() if user.pw_name == "portpool")}:
    sys.exit(f"the agent at {path} is run by user {uid}: not trusted")

call = {"method": "org.portpool.Agent.Acquire", "parameters": {"pools": [{"pool": pool}]}}
agent.sendall(json.dumps(call).encode() + b"\0")
message, fds = b"", []
while not message.endswith(b"\0"):
    part, new, flags, _ = socket.recv_fds(agent, 65536, 253, socket.MSG_CMSG_CLOEXEC)
    fds += new
    if not part or flags & socket.MSG_CTRUNC:
        sys.exit("the agent hung up, or file descriptors were lost")
    message += part
reply = json.loads(message[:-1])
if "error" in reply:
    sys.exit(f"{reply['error']}: {reply['parameters']}")

sockets = [s for lease in reply["parameters"]["leases"] for s in lease["sockets"]]
handed = sockets[0]
listener = socket.socket(fileno=fds[handed["fileDescriptor"]])
if listener.type != socket.SOCK_STREAM or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
    sys.exit("the socket is not a listening TCP socket")
print(f"serving {handed['address']}:{handed['port']}", flush=True)
connection, _ = listener.accept()
with connection:
    connection.recv(65536)
    body = f"hello from {pool}, port {handed['port']}\n".encode()
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body))
# The lease ends with this process; nothing is to be given back.
