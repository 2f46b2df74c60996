"""No test reaches another machine: connections and look-ups of names fail, but for this machine's own.

conftest.py loads this file, and puts its folder on PYTHONPATH: Python imports a module of this name at its start, so
the scripts that tests run as processes of their own are held to it as well.
"""

import socket
import sys

WATCHED = {  # audit event -> where among its arguments the address stands
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.sendmsg": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
}
HERE = {"", "localhost", "0.0.0.0", "::", "::1", socket.gethostname()}


class NetworkBlocked(OSError):
    """Looks like a machine without a network, to code that can do without one."""


def refuse_network(event: str, arguments: tuple) -> None:
    if event not in WATCHED:
        return
    address = arguments[WATCHED[event]]
    host = address[0] if isinstance(address, tuple) else address if event.startswith("socket.get") else None
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if isinstance(host, str) and host not in HERE and not host.startswith("127."):
        raise NetworkBlocked(f"tests run without a network, but {event} asked for {host}")


sys.addaudithook(refuse_network)
